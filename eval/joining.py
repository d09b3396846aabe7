"""Scores meet labels, by image id and class name. Nothing is dropped in silence: an error or a counted note.

Shapes: N images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.csv_labels import read_label_csv
from data.errors import InputError, unknown
from data.labels import LabelSet
from data.scores import Scores
from data.voc import default_devkit, read_voc
from eval.ranking import Bits, Logits

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Joined:
    """Scores and labels of the same N images over the same C classes, rows in the labels' order.

    Attributes:
        name: what a person calls the labels, such as "VOC2012 val".
        classes: C names, in the score file's order.
        image_ids: N unique ids.
        logit, score: float32[N, C]; ranking is on the logit, the score is for a person to read.
        target, mask: uint8[N, C].
        paths: N image files, or empty where the photographs are not at hand.
        notes: what a reader of the figures must know, each counted and naming examples.
        failed: image id -> reason, of labelled images that could not be scored.
        labelled: the number of labelled images, scored or not.
        fingerprint: of the labels as they were read.
    """

    name: str
    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    logit: Logits
    score: Logits
    target: Bits
    mask: Bits
    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    failed: Mapping[str, str]
    labelled: int
    fingerprint: str


def load_labels(data: Path | None, split: str, labels: Path | None, images: Path | None = None) -> LabelSet:
    """The labels that a report was asked for: a CSV, a devkit, or the default devkit where neither is given."""
    if labels is not None:
        if data is not None:
            raise InputError(f"labels come from --data or from --labels, got both: {data} and {labels}")
        return read_label_csv(labels, images)
    if images is not None:
        raise InputError(f"--images goes with --labels (a devkit has its own), got --images {images}")
    return read_voc(data if data is not None else default_devkit(), split)


def join(scores: Scores, labels: LabelSet, allow_missing: bool = False) -> Joined:
    """Join by image id and class name.

    Raises:
        InputError: a scored class that the labels don't know; no image in common; labelled images without
            a score that are not listed as failed, unless `allow_missing`.
    """
    for name in scores.classes:
        if name not in labels.classes:
            raise unknown(f"class in the scores (the labels are '{labels.name}')", name, labels.classes)
    notes = list(labels.notes)
    unscored = [name for name in labels.classes if name not in scores.classes]
    if unscored:
        notes.append(
            f"{len(unscored)} labelled classes have no scores and take no part: {', '.join(unscored)}"
        )
    row_of = {image_id: row for row, image_id in enumerate(scores.image_ids)}
    judged = [i for i, image_id in enumerate(labels.image_ids) if image_id in row_of]
    if not judged:
        raise InputError(
            f"no image of '{labels.name}' has a score: labels have {examples(labels.image_ids)}, "
            f"scores have {examples(scores.image_ids)}"
        )
    known = set(labels.image_ids)
    extra = [image_id for image_id in scores.image_ids if image_id not in known]
    if extra:
        notes.append(f"{len(extra)} scored images have no label and take no part: {examples(extra)}")
    failed = {i: scores.failed[i] for i in labels.image_ids if i not in row_of and i in scores.failed}
    if failed:
        notes.append(
            f"{len(failed)} labelled images failed to score and take no part: {examples(list(failed))}"
        )
    lost = [i for i in labels.image_ids if i not in row_of and i not in failed]
    if lost:
        what = f"{len(lost)} of {len(labels)} labelled images have no score: {examples(lost)}"
        if not allow_missing:
            raise InputError(f"{what}; score them, or leave them out with --allow-missing")
        notes.append(f"{what}; they were left out by --allow-missing")
    rows = np.array([row_of[labels.image_ids[i]] for i in judged], np.int64)
    index = np.array(judged, np.int64)
    columns = np.array([labels.classes.index(name) for name in scores.classes], np.int64)
    return Joined(
        name=labels.name,
        classes=scores.classes,
        image_ids=tuple(labels.image_ids[i] for i in judged),
        logit=scores.logit[rows],
        score=scores.score[rows],
        target=labels.target[np.ix_(index, columns)],
        mask=labels.mask[np.ix_(index, columns)],
        paths=tuple(labels.paths[i] for i in judged) if labels.paths else (),
        notes=tuple(notes),
        failed=failed,
        labelled=len(labels),
        fingerprint=labels.fingerprint(),
    )


def examples(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _EXAMPLES
    return ", ".join(names[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")


def class_columns(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The columns of the wanted class names; raises `InputError` for a name that has no column."""
    for name in names:
        if name not in classes:
            raise unknown("class", name, classes)
    return [classes.index(name) for name in dict.fromkeys(names)]
