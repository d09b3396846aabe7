"""Explains a published number: what else people compute on the same scores and call "mAP".

None of these is a metric of this house; each is named so that a figure that does not agree can be understood.
"""

from dataclasses import dataclass

import numpy as np

from eval.joining import Joined
from eval.metrics import (
    Kind,
    average_precision,
    mean_average_precision,
    micro_average_precision,
    per_sample_average_precision,
)
from eval.ranking import Bits

PER_SAMPLE = "per-sample AP"
PER_SAMPLE_ALL = "per-sample AP, difficult as negative"
MICRO = "micro AP"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure that may have been called "mAP": its name, its value in [0, 1], and what it does."""

    name: str
    value: float
    meaning: str


def figures(joined: Joined) -> list[Figure]:
    """The well-known other figures on the same scores; those about difficult objects only where there are any."""
    logit, target, mask, ids = joined.logit, joined.target, joined.mask, joined.image_ids

    def macro(kind: Kind, valid: Bits) -> float:
        return mean_average_precision(average_precision(logit, target, valid, ids, kind))[0]

    def rows(valid: Bits) -> float:
        return mean_average_precision(per_sample_average_precision(logit, target, valid))[0]

    found = [
        Figure(
            PER_SAMPLE,
            rows(mask),
            "ranks the classes within each image and averages over images; images are never compared, so it "
            "is no mean over classes; the commonest reason for a figure that is too high",
        ),
        Figure(
            MICRO,
            micro_average_precision(logit, target, mask, ids),
            "ranks all (image, class) pairs in one list; frequent classes count most",
        ),
    ]
    if not mask.all():
        everything = np.ones_like(mask)
        found += [
            Figure(
                PER_SAMPLE_ALL,
                rows(everything),
                "as above, with images that show only difficult objects of a class as its negatives",
            ),
            Figure(
                "mAP (VOC 2010), difficult as negative",
                macro("voc2010", everything),
                "counts images that show only difficult objects of a class as its negatives; too low",
            ),
            Figure(
                "mAP (scikit-learn), difficult as negative",
                macro("sklearn", everything),
                "the same, without the precision envelope; too low",
            ),
        ]
    return found
