"""The difference between two score files of the same images, and what it is worth.

Both files are resampled with the same images in each replicate, so what makes an image hard for both cancels:
the interval of the difference is narrower than the two intervals suggest (paired bootstrap, as in Efron &
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 8).

Shapes: N images, C classes, B replicates.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from data.errors import InputError
from data.labels import LabelSet
from data.scores import Scores, read_scores
from eval.intervals import bootstrap, interval
from eval.joining import Joined, class_columns, examples, join, load_labels
from eval.metrics import KINDS, mean_average_precision, ranked_average_precision
from eval.options import CompareConfig
from eval.ranking import rankings
from eval.table import percent


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of A and of B in [0, 1], and A - B with its 95 % interval; NaN where a class has no positive."""

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "A is better" or "B is better" where the interval excludes 0; "" otherwise, whatever the difference is."""
        if math.isnan(self.low) or self.low <= 0 <= self.high:
            return ""
        return "A is better" if self.low > 0 else "B is better"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences: of each class's AP (VOC 2010), and of mAP for each definition, the headline first.

    Attributes:
        name: of the labels.
        images: N.
        overall: mAP by VOC 2010, VOC 2007 and scikit-learn.
        classes: AP of each class.
        notes: what a reader must know.
        replicates, seed: of the bootstrap.
    """

    name: str
    images: int
    overall: tuple[Difference, ...]
    classes: tuple[Difference, ...]
    notes: tuple[str, ...]
    replicates: int
    seed: int


def compare(a: Joined, b: Joined, replicates: int = 1000, seed: int = 0) -> Comparison:
    """Compare two score files that were joined to the same labels.

    Raises:
        InputError: different images or classes, or fewer than one replicate.
    """
    if set(a.image_ids) != set(b.image_ids) or a.classes != b.classes or a.fingerprint != b.fingerprint:
        raise InputError("two score files are compared on the same labels, images and classes")
    if replicates < 1:
        raise InputError(f"--replicates must be at least 1, got {replicates}")
    found, samples = [], []
    for joined in (a, b):
        ranked = list(rankings(joined.logit, joined.target, joined.mask, joined.image_ids))
        found.append({k: np.array([ranked_average_precision(r, k) for r in ranked]) for k in KINDS})
        samples.append(bootstrap(ranked, len(joined.image_ids), None, replicates, seed))

    overall = []
    for kind in KINDS:
        low, high = interval(samples[0].mean_ap(kind) - samples[1].mean_ap(kind))
        one, two = (mean_average_precision(ap[kind])[0] for ap in found)
        overall.append(Difference(f"mAP ({kind})", one, two, one - two, float(low), float(high)))
    lows, highs = interval(samples[0].ap["voc2010"] - samples[1].ap["voc2010"])
    columns = zip(a.classes, found[0]["voc2010"], found[1]["voc2010"], lows, highs, strict=True)
    classes = [
        Difference(name, float(one), float(two), float(one - two), float(low), float(high))
        for name, one, two, low, high in columns
    ]
    notes = tuple(dict.fromkeys([*a.notes, *b.notes]))
    return Comparison(a.name, len(a.image_ids), tuple(overall), tuple(classes), notes, replicates, seed)


def compare_files(config: CompareConfig, console: Console | None = None) -> Comparison:
    """Read both files, compare, and print the table and the verdict; writes `config.json` where it is given."""
    console = console or Console()
    a, b = read_scores(config.a), read_scores(config.b)
    labels = load_labels(config.data, config.split, config.labels)
    wanted = [name.strip() for name in config.classes.split(",") if name.strip()]
    names = (str(config.a), str(config.b))
    found = compare_scores(a, b, labels, names, wanted, config.allow_missing, config.replicates, config.seed)
    _print(found, config, console)
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"a": config.a.name, "b": config.b.name, **comparison_json(found)}
        config.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return found


def compare_scores(
    a: Scores,
    b: Scores,
    labels: LabelSet,
    files: tuple[str, str],
    wanted: Sequence[str] = (),
    allow_missing: bool = False,
    replicates: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two score files on the labelled images that both score.

    Args:
        a, b: the scores.
        labels: what both are judged against.
        files: what the two are called in messages.
        wanted: names of the classes to compare; empty: all that both score.
        allow_missing: leave out images that one does not score, instead of refusing.
        replicates, seed: of the bootstrap.

    Raises:
        InputError: no class in common, an unknown class, or images that one file alone scores.
    """
    shared = [name for name in a.classes if name in b.classes]
    if not shared:
        raise InputError(
            f"{files[0]} and {files[1]} have no class in common: {examples(a.classes)}; {examples(b.classes)}"
        )
    names = [shared[c] for c in class_columns(wanted, shared)] or shared
    alone = sorted((set(a.classes) ^ set(b.classes)) - set(names))
    notes = [f"{len(alone)} classes are scored in one file only: {examples(alone)}"] if alone else []
    if wanted:
        columns = class_columns(names, labels.classes)
        target, mask = labels.target[:, columns], labels.mask[:, columns]
        labels = replace(labels, classes=tuple(names), target=target, mask=mask)
    either = set(a.image_ids) ^ set(b.image_ids)
    single = [image_id for image_id in labels.image_ids if image_id in either]
    if single:
        what = f"{len(single)} labelled images are scored in one file only: {examples(single)}"
        if not allow_missing:
            raise InputError(f"{what}; score them in both, or leave them out with --allow-missing")
        notes.append(f"{what}; they were left out by --allow-missing")
    both = set(a.image_ids) & set(b.image_ids)
    one, two = (join(_part(s, names, both), labels, allow_missing or bool(single)) for s in (a, b))
    found = compare(one, two, replicates, seed)
    return replace(found, notes=(*found.notes, *notes))


def _part(scores: Scores, names: Sequence[str], ids: set[str]) -> Scores:
    """The scores of some classes and images."""
    rows = [i for i, image_id in enumerate(scores.image_ids) if image_id in ids]
    index = np.ix_(rows, [scores.classes.index(name) for name in names])
    kept = tuple(scores.image_ids[i] for i in rows)
    logit, score = scores.logit[index], scores.score[index]
    return Scores(tuple(names), kept, logit, score, scores.metadata, scores.failed)


def _print(found: Comparison, config: CompareConfig, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"A = {config.a}, B = {config.b}; {found.name}: {found.images} images; AP (VOC 2010) and mAP in %")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("class", no_wrap=True)
    for name in ("A", "B", "A - B", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in found.classes:
        _add(table, row)
    table.add_section()
    for row in found.overall:
        _add(table, row, style="bold" if row is found.overall[0] else None)
    console.width = max(
        console.width, console.measure(table, options=console.options.update(width=1000)).maximum
    )
    console.print(table)
    for note in found.notes:
        say(f"note: {note}")
    say(verdict(found))


def _add(table: Table, row: Difference, style: str | None = None) -> None:
    known = not math.isnan(row.low)
    gap = f"{100 * row.difference:+.2f}" if not math.isnan(row.difference) else "n/a"
    span = f"{100 * row.low:+.2f} to {100 * row.high:+.2f}" if known else "n/a"
    table.add_row(row.name, percent(row.a), percent(row.b), gap, span, row.verdict, style=style)


def verdict(found: Comparison) -> str:
    """What may be said: a winner only where the interval of the mAP difference excludes 0."""
    head = found.overall[0]
    if math.isnan(head.low):
        return "no class has a positive: nothing can be compared"
    gap = f"A - B = {100 * head.difference:+.2f} points of mAP (VOC 2010), 95 % interval "
    gap += f"{100 * head.low:+.2f} to {100 * head.high:+.2f}"
    said = f"{head.verdict}: {gap}" if head.verdict else f"no difference is shown: {gap}, which includes 0"
    apart = [row for row in found.classes if row.verdict]
    if apart:
        names = ", ".join(f"{row.name} ({row.verdict[0]})" for row in apart)
        expected = 0.05 * sum(not math.isnan(row.low) for row in found.classes)
        said += (
            f". Single classes: {names}; of {len(found.classes)} classes about {expected:.1f} would stand here "
            "by chance alone"
        )
    return said


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Every figure, and what it rests on; NaN becomes null."""

    def row(item: Difference) -> dict[str, Any]:
        content = {**asdict(item), "verdict": item.verdict or None}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in content.items()}

    return {
        "labels": found.name,
        "images": found.images,
        "map": {kind: row(item) for kind, item in zip(KINDS, found.overall, strict=True)},
        "ap": {item.name: row(item) for item in found.classes},
        "bootstrap": {"level": 0.95, "replicates": found.replicates, "seed": found.seed},
        "notes": list(found.notes),
        "verdict": verdict(found),
    }
