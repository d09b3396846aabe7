"""What differs between runs: in parameters, in metrics with intervals, and in single classes.

    from tune.compared_runs import find_runs
    from tune.comparing import compare_runs, print_comparison
    print_comparison(compare_runs(find_runs(["3f2a91c0", "runs/train/first"])))

The intervals come from selection.npz, in the run folder or among the artifacts of the MLflow run: the images are
drawn anew, the same for all runs, so that what makes an image hard for all cancels. No model is needed, and no torch.

Shapes: C classes, R runs, B replicates.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.errors import unknown
from eval.intervals import REPLICATES, interval, nan_mean
from train.selection_scores import Paired, SelectionScores
from tune.compared_runs import LETTERS, SCORES, Run

# Where a run writes and how it was started: they differ always and say nothing.
_PLACES = {"out", "overwrite", "resume", "data.cache", "tracking.run_name"}
# Characters that the first columns of the table of parameters or classes take, and each run beside them: runs that do
# not fit the terminal go into a table of their own.
_FIRST, _CELL = 28, 16
# Of a class with fewer positives the bootstrap knows too few images to say what is noise.
LEAST_POSITIVES = 5
_COLOURS = {1: "green", -1: "red", 0: ""}


@dataclass(frozen=True, slots=True)
class Difference:
    """A run minus the first one, on the same images.

    Attributes:
        map: of mAP.
        ap: of each class's AP; NaN for a class without a positive.
        positives: images of each class.
    """

    map: Paired
    ap: Mapping[str, Paired]
    positives: Mapping[str, int]

    def apart(self, name: str) -> int:
        """1 and -1: the run is better and worse at that class outside the noise; 0: that cannot be told."""
        return self.ap[name].verdict if self.positives[name] >= LEAST_POSITIVES else 0


@dataclass(frozen=True, slots=True)
class Compared:
    """Runs beside each other.

    Attributes:
        runs: R of them; the first is what the others are compared with.
        parameters: those that differ: name -> R values, "-" where a run has none.
        classes: names of the classes to show.
        differences: R, None for the first and for a run without scores of the same images.
        notes: what a reader must know.
    """

    runs: tuple[Run, ...]
    parameters: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]
    differences: tuple[Difference | None, ...]
    notes: tuple[str, ...]


def differing(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """The parameters that are not the same in all runs: name -> one value a run, "-" where it has none."""
    names = sorted({name for run in runs for name in run.parameters} - _PLACES)
    rows = {name: tuple(run.parameters.get(name, "-") for run in runs) for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def compare_runs(runs: Sequence[Run], classes: Sequence[str] = ()) -> Compared:
    """Compare every run with the first.

    Args:
        runs: two or more.
        classes: names of the classes to show; empty: all.

    Raises:
        InputError: an unknown class.
    """
    known = tuple(dict.fromkeys(name for run in runs for name in run.ap))
    for name in classes:
        if name not in known:
            raise unknown("class", name, known)
    base, notes = runs[0], []
    samples = base.scores.replicates() if base.scores else None
    differences: list[Difference | None] = [None]
    if base.scores is None:
        notes.append(f"A has no {SCORES}: no difference has an interval")
    for letter, run in zip(LETTERS[1:], runs[1:], strict=False):
        differences.append(None)
        if base.scores is None or samples is None:
            continue
        if run.scores is None:
            notes.append(f"{letter} has no {SCORES}: its difference has no interval")
        elif not run.scores.same_images(base.scores):
            counts = f"{len(run.scores.image_ids)} and {len(base.scores.image_ids)}"
            notes.append(
                f"{letter} and A were not selected on the same images with the same labels ({counts} images): their "
                "difference has no interval, and may come from the images alone"
            )
        else:
            differences[-1] = _difference(run.scores, base.scores, samples)
    return Compared(tuple(runs), differing(runs), tuple(classes) or known, tuple(differences), tuple(notes))


def _difference(a: SelectionScores, b: SelectionScores, samples: npt.NDArray[np.float64]) -> Difference:
    """A - B, from float64[B, C] of each replicate of A and of B."""
    one, two = a.replicates(), samples
    low, high = interval(nan_mean(one) - nan_mean(two))
    whole = Paired(a.map() - b.map(), float(low), float(high))
    lows, highs = interval(one - two)
    columns = zip(a.classes, a.ap() - b.ap(), lows, highs, strict=True)
    ap = {name: Paired(float(d), float(lo), float(hi)) for name, d, lo, hi in columns}
    return Difference(whole, ap, positives(a))


def positives(scores: SelectionScores) -> dict[str, int]:
    """How many images of the selection part have each class."""
    counts = (scores.target * scores.mask).sum(axis=0, dtype=np.int64)
    return dict(zip(scores.classes, map(int, counts), strict=True))


def verdict(compared: Compared, place: int) -> str:
    """What may be said of a run (place counted from 0, not 0) against the first one; a plain sentence."""
    letter, found, scores = LETTERS[place], compared.differences[place], compared.runs[place].scores
    if found is None or scores is None:
        return f"{letter} and A: what their difference is worth is not known."
    if found.map.verdict == 0:
        return f"{letter} and A cannot be told apart on these {len(scores.image_ids)} images."
    return f"{letter} is {'better' if found.map.verdict > 0 else 'worse'} than A outside the noise."


def print_comparison(compared: Compared, console: Console | None = None) -> None:
    """The tables and the verdicts, as wide as the terminal."""
    console = console or Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    for letter, run in zip(LETTERS, compared.runs, strict=False):
        say(f"{letter}  {run.name}  ({run.where}, {run.state})")
    say("")
    if compared.parameters:
        say("parameters that differ")
        for places in _chunks(compared, console):
            console.print(_parameter_table(compared, places))
    else:
        say("No parameter differs.\n")
    say("selection mAP (VOC 2010), with 95 % intervals")
    console.print(_metric_table(compared))
    for place in range(1, len(compared.runs)):
        say(verdict(compared, place))
    if any(compared.differences):
        say("The noise is that of the images; another seed of the same settings moves the mAP too.")
    for note in compared.notes:
        say(f"note: {note}")
    if not compared.classes:
        return
    say("\nAP of each class at the best epoch, and the 95 % interval of its difference to A")
    for places in _chunks(compared, console):
        console.print(_class_table(compared, places))
    if any(compared.differences):
        known = [name for name in compared.classes if _most_positives(compared, name) >= LEAST_POSITIVES]
        say(
            f"* differs from A outside the noise; about {0.05 * len(known):.1f} of {len(known)} classes would by "
            f"chance alone. Classes with fewer than {LEAST_POSITIVES} positives are not judged."
        )


def _most_positives(compared: Compared, name: str) -> int:
    """Images of the class among those that the differences rest on."""
    return max((found.positives.get(name, 0) for found in compared.differences if found), default=0)


def _chunks(compared: Compared, console: Console) -> Iterator[list[int]]:
    """The places of the runs that fit side by side; the first run stands in every table."""
    size = max(1, (console.width - _FIRST) // _CELL)
    others = list(range(1, len(compared.runs)))
    for start in range(0, len(others), size):
        yield [0, *others[start : start + size]]


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _parameter_table(compared: Compared, places: Sequence[int]) -> Table:
    table = _table()
    table.add_column("parameter", overflow="fold")
    for place in places:
        table.add_column(LETTERS[place], overflow="fold")
    for name, values in compared.parameters.items():
        table.add_row(name, *(_short(values[place]) for place in places))
    return table


def _short(value: str) -> str:
    """Six digits of a broken number, anything else as it is."""
    try:
        return f"{float(value):.6g}" if not value.lstrip("-").isdigit() else value
    except ValueError:
        return value


def _metric_table(compared: Compared) -> Table:
    table = _table()
    names = ("run", "mAP", "interval", "epoch", "seconds", "images/s", "minus A")
    for name in names:
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for place, run in enumerate(compared.runs):
        span = "-" if math.isnan(run.map_low) else _limits(run.map_low, run.map_high, ".3f")
        epoch = f"{run.best_epoch}/{run.epochs}" if run.epochs else "-"
        cells = (LETTERS[place], _number(run.map, ".4f"), span, epoch)
        rate = (_number(run.seconds, ".0f"), _number(run.images_per_second, ".0f"))
        table.add_row(*cells, *rate, _gap(compared, place))
    return table


def _gap(compared: Compared, place: int) -> Text:
    """The difference of mAP to the first run, with its interval where there is one."""
    found = compared.differences[place]
    if found is not None:
        return Text(f"{found.map.difference:+.4f} {_span(found.map)}", style=_COLOURS[found.map.verdict])
    plain = compared.runs[place].map - compared.runs[0].map
    return Text(f"{plain:+.4f}" if place and math.isfinite(plain) else "")


def _class_table(compared: Compared, places: Sequence[int]) -> Table:
    table = _table()
    table.add_column("class", overflow="fold")
    table.add_column("n", justify="right")
    for place in places:
        table.add_column(LETTERS[place])
    for name in compared.classes:
        cells = []
        for place in places:
            found = compared.differences[place]
            text = _number(compared.runs[place].ap.get(name, math.nan), ".4f")
            if found is None or name not in found.ap or math.isnan(found.ap[name].low):
                cells.append(Text(text))
                continue
            paired, apart = found.ap[name], found.apart(name)
            cells.append(Text(f"{text}{'*' if apart else ''} {_span(paired)}", style=_COLOURS[apart]))
        count = _most_positives(compared, name)
        table.add_row(name, str(count) if any(compared.differences) else "", *cells)
    return table


def _span(paired: Paired) -> str:
    return _limits(paired.low, paired.high, "+.3f")


def _limits(low: float, high: float, form: str) -> str:
    """`[-.012,+.034]`: without a space, at which a terminal would break the line."""
    return "[" + ",".join(f"{x:{form}}".replace("0.", ".", 1) for x in (low, high)) + "]"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "-"


def comparison_json(compared: Compared) -> dict[str, Any]:
    """Every figure, and what it rests on; NaN becomes null."""
    names = [item for item in Run.__slots__ if item not in ("parameters", "scores")]
    runs = []
    for place, (letter, run) in enumerate(zip(LETTERS, compared.runs, strict=False)):
        about: dict[str, Any] = {"letter": letter} | {name: getattr(run, name) for name in names}
        about["images"] = len(run.scores.image_ids) if run.scores else None
        found = compared.differences[place]
        if found is not None:
            about["minus_a"] = {
                "map": asdict(found.map) | {"apart": found.map.verdict},
                "ap": {
                    name: asdict(paired) | {"positives": found.positives[name], "apart": found.apart(name)}
                    for name, paired in found.ap.items()
                },
                "verdict": verdict(compared, place),
            }
        runs.append(about)
    content = {
        "runs": runs,
        "parameters": {name: list(values) for name, values in compared.parameters.items()},
        "bootstrap": {"level": 0.95, "replicates": REPLICATES, "seed": 0},
        "notes": list(compared.notes),
    }
    plain: dict[str, Any] = _without_nan(content)
    return plain


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_comparison(path: Path, compared: Compared) -> None:
    """Write `comparison_json` to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(comparison_json(compared), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
