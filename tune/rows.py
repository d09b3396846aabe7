"""What is known of each trial, and the table of them as a file."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

TABLE = "trials.csv"
# What a trial can end as, or be in.
STATES = ("running", "completed", "pruned", "failed", "unfinished")


@dataclass(frozen=True, slots=True)
class TrialRow:
    """What is known of one trial.

    Attributes:
        trial_id: Ray's.
        state: running, completed, pruned (stopped early by the scheduler), failed, or unfinished.
        point: the settings that were chosen for it, flat: "backbone" (a name without its weights), "loss", "lr"...
        epoch: the last finished one.
        best_map: best selection mAP (VOC 2010) so far, NaN before the first epoch.
        map_low, map_high: its 95 % interval by the bootstrap over images, NaN before the first epoch.
        cost: serving cost in milliseconds of one core an image, NaN where it was not measured.
        first_step: seconds from the trial's start to its first training step, NaN before it.
        restarts: how often it was started again after a fault.
        node: the machine that ran it last, by Ray's id.
        gpu: name of its GPU, "" on a CPU.
        run_id: of MLflow, "" where it is not (yet) known.
        reason: why it failed, one line.
    """

    trial_id: str
    state: str
    point: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    best_map: float = math.nan
    map_low: float = math.nan
    map_high: float = math.nan
    cost: float = math.nan
    first_step: float = math.nan
    restarts: int = 0
    node: str = ""
    gpu: str = ""
    run_id: str = ""
    reason: str = ""


def best_first(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """By best mAP, descending; trials without an epoch last."""
    return sorted(rows, key=lambda row: -row.best_map if math.isfinite(row.best_map) else math.inf)


def write_table(path: Path, rows: Sequence[TrialRow]) -> None:
    """The table of trials as CSV, in the order given: a column for each setting of the points, then the rest."""
    settings = list(dict.fromkeys(key for row in rows for key in row.point))
    names = [name for name in TrialRow.__slots__ if name != "point"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*names[:2], *(f"point.{key}" for key in settings), *names[2:]])
        for row in rows:
            values = [getattr(row, name) for name in names]
            writer.writerow([*values[:2], *(row.point.get(key, "") for key in settings), *values[2:]])


def read_table(path: Path) -> list[TrialRow]:
    """What `write_table` wrote; numbers in points come back as numbers."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [_row(line) for line in csv.DictReader(stream)]


def _row(line: dict[str, str]) -> TrialRow:
    point = {
        key.removeprefix("point."): _value(text)
        for key, text in line.items()
        if key.startswith("point.") and text
    }
    row = TrialRow(line["trial_id"], line["state"], point)
    kinds = {"epoch": int, "restarts": int}
    texts = ("node", "gpu", "run_id", "reason")
    rest: dict[str, Any] = {
        name: line[name] if name in texts else kinds.get(name, float)(line[name])
        for name in TrialRow.__slots__
        if name not in ("trial_id", "state", "point")
    }
    return replace(row, **rest)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
