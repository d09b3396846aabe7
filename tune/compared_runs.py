"""The runs that a person names, from MLflow or from their folders: settings, figures and score file of each.

    from tune.compared_runs import find_runs
    first, second = find_runs(["3f2a91c0", "runs/train/first"])

No model is needed, and no torch.
"""

import csv
import json
import math
import os
import re
import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from train.selection_scores import SelectionScores, read_selection_scores
from train.tracking import PARENT_TAG, open_store
from tune.points import STATE_TAG
from tune.rows import TABLE, TrialRow, best_first, read_table

SCORES, CONFIG, HISTORY, ENVIRONMENT = "selection.npz", "config.json", "history.csv", "environment.json"
# Runs are called A, B ... beside each other.
LETTERS = string.ascii_uppercase
OF_SEARCH = 5
_SHOWN_CHOICES = 8


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of one run.

    Attributes:
        name: the run's name in MLflow, or its folder's.
        where: MLflow run id, or folder.
        state: as MLflow and the search call it.
        parameters: dotted names, values as text.
        map, map_low, map_high: best selection mAP (VOC 2010) with its 95 % interval; NaN where unknown.
        ap: AP (VOC 2010) of each class at that epoch.
        best_epoch, epochs: counted from 1; the finished ones.
        seconds: of training, without evaluation.
        images_per_second: of training.
        scores: of each image of the selection part; None where the run has no such file.
    """

    name: str
    where: str
    state: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    map: float = math.nan
    map_low: float = math.nan
    map_high: float = math.nan
    ap: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = math.nan
    images_per_second: float = math.nan
    scores: SelectionScores | None = None


def find_runs(names: Sequence[str], search: Path | None = None) -> list[Run]:
    """The runs of those names, in that order, and the best trials of a search.

    Args:
        names: MLflow run ids, or their first six characters or more; names of runs; run folders.
        search: folder of a search.

    Raises:
        InputError: no such run, several of that name, no store, a damaged file, or fewer than two runs.
    """
    runs = [*_trials(search)] if search else []
    runs += [_named(name) for name in names]
    if len(runs) < 2:
        raise InputError(
            f"a comparison takes two runs or more, got {len(runs)}: RUN RUN ..., or --search OUT"
        )
    if len(runs) > len(LETTERS):
        raise InputError(f"at most {len(LETTERS)} runs are compared, got {len(runs)}")
    seen: set[str] = set()
    for run in runs:
        if run.where in seen:
            raise InputError(f"the run {run.where} is named twice; a comparison takes different runs")
        seen.add(run.where)
    return runs


def _trials(out: Path) -> list[Run]:
    if not (out / TABLE).is_file():
        raise InputError(f"--search: {out} holds no {TABLE}; give the folder of a search that has ended")
    rows = [row for row in best_first(read_table(out / TABLE)) if math.isfinite(row.best_map)]
    if len(rows) < 2:
        raise InputError(
            f"--search: {len(rows)} trials of {out} finished an epoch; a comparison takes two or more"
        )

    def trial(row: TrialRow) -> Run:
        folder = out / "trials" / row.trial_id
        # A trial may have run on another machine: then MLflow has what it wrote.
        return _named(str(folder) if (folder / CONFIG).is_file() or not row.run_id else row.run_id)

    return [trial(row) for row in rows[:OF_SEARCH]]


def _named(name: str) -> Run:
    if Path(name).is_dir():
        return read_folder(Path(name))
    store = open_store()
    if store is None:
        raise InputError(
            f"'{name}' is no run folder, and there is no MLflow store to ask: no mlflow.db in {Path.cwd()}, and "
            f"MLFLOW_TRACKING_URI is {os.environ.get('MLFLOW_TRACKING_URI') or 'not set'}"
        )
    from mlflow.exceptions import MlflowException

    try:
        return read_mlflow(store, _found(store, name))
    except MlflowException as error:
        raise InputError(f"MLflow could not be asked for the run '{name}': {error}") from error


def read_folder(folder: Path) -> Run:
    """A run from what it wrote into its folder.

    Raises:
        InputError: it is not the folder of a run.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no {CONFIG}: it is not a run folder")
    from train.config_files import flatten

    parameters = flatten(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    history: list[dict[str, str]] = []
    if (folder / HISTORY).is_file():
        with (folder / HISTORY).open(newline="", encoding="utf-8") as stream:
            history = list(csv.DictReader(stream))
    columns = {key: [float(line[key]) for line in history] for key in (history[0] if history else {})}
    scores = read_selection_scores(folder / SCORES) if (folder / SCORES).is_file() else None
    state = "unknown"
    if (folder / ENVIRONMENT).is_file():
        sessions = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["sessions"]
        state = str(sessions[-1]["status"]).lower()
    last = parameters.get("schedule.keep") == "last"
    figures = _figures(columns, {}, last) | _scored(scores)
    text = {key: str(value) for key, value in parameters.items()}
    return Run(folder.name, str(folder), state, text, scores=scores, **figures)


def read_mlflow(store: Any, run: Any) -> Run:
    """A run from MLflow, its score file downloaded from its artifacts where it has one."""
    run_id, metrics, tags = run.info.run_id, run.data.metrics, run.data.tags
    names = ("val/map", "time/seconds", "time/images_per_second")
    columns = {
        name: [
            m.value
            for m in sorted(store.get_metric_history(run_id, name), key=lambda m: (m.step, m.timestamp))
        ]
        for name in names
        if name in metrics
    }
    scores = None
    if any(item.path == SCORES for item in store.list_artifacts(run_id)):
        with tempfile.TemporaryDirectory() as folder:
            scores = read_selection_scores(Path(store.download_artifacts(run_id, SCORES, folder)))
    state = tags.get(STATE_TAG) or run.info.status.lower()
    last = run.data.params.get("schedule.keep") == "last"
    figures = _figures(columns, metrics, last) | _scored(scores)
    return Run(run.info.run_name or run_id, run_id, state, dict(run.data.params), scores=scores, **figures)


def _figures(
    columns: Mapping[str, Sequence[float]], metrics: Mapping[str, float], last: bool
) -> dict[str, Any]:
    """The figures of a run from its epochs and from the metrics of its end, where it has come to it."""
    maps, seconds = columns.get("val/map", []), columns.get("time/seconds", [])
    rates = columns.get("time/images_per_second", [])
    best = len(maps) - 1 if last else int(np.argmax(maps)) if maps else 0
    known = {
        "map": metrics.get("best/map", maps[best] if maps else math.nan),
        "map_low": metrics.get("best/map_low", math.nan),
        "map_high": metrics.get("best/map_high", math.nan),
        "best_epoch": int(metrics.get("best/epoch", best + 1 if maps else 0)),
        "epochs": len(maps),
        "ap": {k.removeprefix("best/ap/"): v for k, v in metrics.items() if k.startswith("best/ap/")},
    }
    if seconds and sum(seconds) > 0:
        images = sum(s * r for s, r in zip(seconds, rates, strict=False))
        known |= {"seconds": sum(seconds), "images_per_second": images / sum(seconds)}
    return known


def _scored(scores: SelectionScores | None) -> dict[str, Any]:
    """The figures that the score file gives."""
    if scores is None:
        return {}
    low, high = scores.map_interval()
    ap = dict(zip(scores.classes, map(float, scores.ap()), strict=True))
    return {"map": scores.map(), "map_low": low, "map_high": high, "ap": ap}


def _found(store: Any, name: str) -> Any:
    """The MLflow run of an id, the beginning of one, or a name."""
    everywhere = [experiment.experiment_id for experiment in store.search_experiments()]
    found: Sequence[Any] = []
    if re.fullmatch("[0-9a-f]{6,32}", name):
        found = store.search_runs(everywhere, f"attributes.run_id LIKE '{name}%'")
    quote = "'" if '"' in name else '"'
    found = found or store.search_runs(everywhere, f"attributes.run_name = {quote}{name}{quote}")
    if len(found) > 1:
        raise InputError(f"'{name}' fits {len(found)} runs; give the id of one: {_choices(found)}")
    if not found:
        newest = store.search_runs(everywhere, order_by=["attributes.start_time DESC"], max_results=50)
        trained = [run for run in newest if run.data.tags.get("kind") != "search"]
        raise InputError(
            f"there is no run '{name}': neither a run folder, nor in MLflow a run id (or its first 6 characters or "
            f"more) or the name of a run; the newest runs there: {_choices(trained) or 'none'}"
        )
    (run,) = found
    if run.data.tags.get("kind") == "search":
        children = store.search_runs(
            [run.info.experiment_id],
            f"tags.`{PARENT_TAG}` = '{run.info.run_id}'",
            order_by=["metrics.`best/map` DESC"],
        )
        raise InputError(f"'{name}' is a search; name two of its trials, best first: {_choices(children)}")
    return run


def _choices(runs: Sequence[Any]) -> str:
    shown = [f"{run.info.run_id[:8]} ({run.info.run_name})" for run in runs[:_SHOWN_CHOICES]]
    return ", ".join(shown) + (f" and {len(runs) - len(shown)} more" if len(runs) > len(shown) else "")
