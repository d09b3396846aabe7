"""What is taken for what: the pairs of classes where one is often called when the other is shown.

Shapes: N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics import CLASSIFICATION_THRESHOLD
from eval.ranking import Bits, Ints, Logits

PAIRS = 10
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Confusion:
    """Class `called` was said of images that show `shown` and not `called`.

    Attributes:
        called, shown: class names.
        count: such images.
        chances: images that show `shown` and not `called`, whatever was said of them.
    """

    called: str
    shown: str
    count: int
    chances: int

    @property
    def rate(self) -> float:
        """The share of the chances in which the wrong class was called."""
        return self.count / self.chances


def confusion_counts(logit: Logits, target: Bits, mask: Bits) -> tuple[Ints, Ints]:
    """How often class c is called (logit above 0) of images that show c' and not c; and the chances for it.

    Pairs of image and class with mask 0 are neither shown nor absent.

    Returns:
        int64[C, C] false positives and int64[C, C] chances: row = the class called, column = the class shown.
    """
    num_classes = logit.shape[1]
    count = np.zeros((num_classes, num_classes), np.int64)
    chances = np.zeros_like(count)
    for start in range(0, len(logit), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        # As float32, which counts exactly up to 2**24 rows, so that the products run in BLAS.
        shown = (target[rows] & mask[rows]).astype(np.float32)
        absent = (mask[rows] & (1 - target[rows])).astype(np.float32)
        called = absent * (logit[rows] > CLASSIFICATION_THRESHOLD)
        count += (called.T @ shown).astype(np.int64)
        chances += (absent.T @ shown).astype(np.int64)
    return count, chances


def most_confused(
    classes: Sequence[str], logit: Logits, target: Bits, mask: Bits, limit: int = PAIRS
) -> tuple[Confusion, ...]:
    """The pairs confused most often, by count, then by rate; pairs that never were are left out."""
    count, chances = confusion_counts(logit, target, mask)
    rate = count / np.maximum(chances, 1)
    order = np.lexsort((-rate.ravel(), -count.ravel()))[:limit]
    found = (np.unravel_index(place, count.shape) for place in order)
    return tuple(
        Confusion(classes[c], classes[other], int(count[c, other]), int(chances[c, other]))
        for c, other in found
        if count[c, other]
    )
