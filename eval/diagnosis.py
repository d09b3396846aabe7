"""Explains a published number: what else people compute on the same scores and call "mAP".

The figures of this house come first, then the well-known others, each named so that a figure that does not agree
can be understood.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import InputError
from eval.joining import Joined
from eval.metrics import (
    CLASSIFICATION_THRESHOLD,
    accuracy,
    mean_average_precision,
    micro_average_precision,
    per_sample_average_precision,
    precision_at,
    ranked_average_precision,
)
from eval.ranking import Bits, Floats, Logits, Ranking, ranked_with

TOP = 50
_NUMBER = re.compile(r"(\d*)\.?(\d*)\s*(%?)")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure that may have been called "mAP": its name, its value in [0, 1], and what it does."""

    name: str
    value: float
    meaning: str


def headline_figures(joined: Joined) -> list[Figure]:
    """This house's own three definitions, ignored pairs left out."""
    voc2010, sklearn, voc2007 = _macro(joined, joined.target, joined.mask)
    ignored = "difficult ignored, " if not joined.mask.all() else ""
    return [
        Figure("mAP (VOC 2010)", voc2010, f"{ignored}area under the precision envelope: the headline"),
        Figure("mAP (scikit-learn)", sklearn, f"{ignored}average_precision_score of each class, no envelope"),
        Figure("mAP (VOC 2007, 11-point)", voc2007, f"{ignored}eleven recall levels only; VOC's before 2010"),
    ]


def figures(joined: Joined) -> list[Figure]:
    """The well-known other figures on the same scores; those about ignored pairs only where there are any."""
    logit, target, mask, ids = joined.logit, joined.target, joined.mask, joined.image_ids
    rows = per_sample_average_precision(logit, target, mask)
    found = [
        Figure(
            "per-sample AP",
            mean_average_precision(rows)[0],
            "ranks the classes within each image and averages over images; images are never compared, so it "
            "is no mean over classes; the commonest reason for a figure that is too high",
        )
    ]
    found += _empty_rows(rows)
    found.append(
        Figure(
            "micro AP",
            micro_average_precision(logit, target, mask, ids),
            "ranks all (image, class) pairs in one list; frequent classes count most",
        )
    )
    if not mask.all():
        found += _difficult_otherwise(joined)
    return found + _thresholded(joined) + _fixed_tail(joined)


def _macro(joined: Joined, target: Bits, mask: Bits) -> tuple[float, float, float]:
    """mAP by VOC 2010, scikit-learn and VOC 2007, from one ranking of each class."""

    def three(ranking: Ranking) -> list[float]:
        return [ranked_average_precision(ranking, kind) for kind in ("voc2010", "sklearn", "voc2007")]

    values = np.array(list(ranked_with(three, joined.logit, target, mask, joined.image_ids)))
    a, b, c = (mean_average_precision(column)[0] for column in values.T)
    return a, b, c


def _empty_rows(rows: Floats) -> list[Figure]:
    """Per-sample figures that differ where images have no positive."""
    empty = np.isnan(rows)
    if not empty.any():
        return []
    what = f"{np.count_nonzero(empty)} images have no positive"
    return [
        Figure("per-sample AP, empty = 0", float(np.where(empty, 0, rows).mean()), f"{what}; each counts 0"),
        Figure(
            "label ranking AP",
            float(np.where(empty, 1, rows).mean()),
            f"{what}; each counts 1 (label_ranking_average_precision_score)",
        ),
    ]


def _difficult_otherwise(joined: Joined) -> list[Figure]:
    everything = np.ones_like(joined.mask)
    positive = np.where(joined.mask == 0, 1, joined.target).astype(np.uint8)
    negative = np.where(joined.mask == 0, 0, joined.target).astype(np.uint8)
    found = []
    for sign, truth, which, effect in (
        ("negative", negative, "its negatives", "too low"),
        ("positive", positive, "its positives", "another question"),
    ):
        rows = per_sample_average_precision(joined.logit, truth, everything)
        voc2010, sklearn, voc2007 = _macro(joined, truth, everything)
        meaning = f"images that show only difficult objects of a class are {which}"
        found += [
            Figure(
                f"per-sample AP, difficult as {sign}",
                mean_average_precision(rows)[0],
                f"as “per-sample AP”, and {meaning}",
            ),
            Figure(f"mAP (VOC 2010), difficult as {sign}", voc2010, f"{meaning}; {effect}"),
            Figure(f"mAP (scikit-learn), difficult as {sign}", sklearn, "the same, no precision envelope"),
            Figure(f"mAP (VOC 2007), difficult as {sign}", voc2007, "the same, 11 recall levels"),
        ]
    return found


def _thresholded(joined: Joined) -> list[Figure]:
    decided = (joined.logit > CLASSIFICATION_THRESHOLD).astype(np.float32)

    def both(ranking: Ranking) -> tuple[float, float]:
        return ranked_average_precision(ranking, "sklearn"), float(accuracy([ranking], 0.5)[0])

    values = np.array(list(ranked_with(both, decided, joined.target, joined.mask, joined.image_ids)))
    return [
        Figure(
            "thresholded scores",
            mean_average_precision(values[:, 0])[0],
            "average_precision_score of yes/no answers at a score of 0.5 in place of scores; too low",
        ),
        Figure(
            "accuracy",
            mean_average_precision(values[:, 1])[0],
            "the share of right yes/no answers; “no” to everything is nearly as good",
        ),
    ]


def _fixed_tail(joined: Joined) -> list[Figure]:
    def both(ranking: Ranking) -> tuple[float, float]:
        count = min(TOP, len(ranking))
        sorted_apart = min(ranking.positives, count) / count if ranking.positives else np.nan
        return precision_at(ranking, TOP), sorted_apart

    matrices: tuple[Logits, Bits, Bits] = (joined.logit, joined.target, joined.mask)
    values = np.array(list(ranked_with(both, *matrices, joined.image_ids)))
    return [
        Figure(
            f"fixed top-{TOP} tail",
            mean_average_precision(values[:, 0])[0],
            f"precision among the {TOP} best scores of each class, whatever they are; no Tailacc(t), no AP",
        ),
        Figure(
            f"fixed top-{TOP} tail, labels sorted apart",
            mean_average_precision(values[:, 1])[0],
            "the labels were sorted too before the scores' order indexed them: it says nothing of the scores "
            "(an AP made so is 1 for any scores)",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Published:
    """A number as it was printed: its value in [0, 1] and half a unit of its last digit."""

    value: float
    rounding: float

    @classmethod
    def parse(cls, text: str) -> "Published":
        """ "0.92", "92.0" or "92 %"; above 1 it is taken as percent.

        Raises:
            InputError: no number from 0 to 100.
        """
        match = _NUMBER.fullmatch(text.strip())
        if not match or not (match[1] or match[2]):
            raise InputError(f"--published must be a number such as 0.92 or 92.0, got '{text}'")
        value, rounding = float(f"{match[1] or 0}.{match[2] or 0}"), 0.5 * 10.0 ** -len(match[2])
        if match[3] or value > 1:
            value, rounding = value / 100, rounding / 100
        if value > 1:
            raise InputError(f"--published must be from 0 to 1, or in percent to 100, got '{text}'")
        return cls(value, rounding)


def explain(published: Published, found: Sequence[Figure]) -> tuple[list[Figure], str]:
    """The figures by their distance from the published number, nearest first, and a verdict in words.

    A figure agrees where it rounds to the number as it was printed.
    """
    gap: Callable[[Figure], float] = lambda figure: abs(figure.value - published.value)  # noqa: E731
    order = sorted((figure for figure in found if not np.isnan(figure.value)), key=gap)
    # A little more than half a unit: 0.9250000001 was printed as 0.93 by one program and as 0.92 by another.
    agree = [figure for figure in order if gap(figure) <= published.rounding * (1 + 1e-6)]
    if not order:
        return order, "no figure can be computed: no class has a positive"
    nearest = order[0]
    said = f"{nearest.name} = {nearest.value:.4f}"
    if not agree:
        return (
            order,
            f"nothing here rounds to {published.value:.4g}; the nearest is {said}: {nearest.meaning}",
        )
    others = [f"{figure.name} ({figure.value:.4f})" for figure in agree[1:]]
    more = f"; so do {', '.join(others)}" if others else ""
    return order, f"{published.value:.4g} agrees with {said}: {nearest.meaning}{more}"
