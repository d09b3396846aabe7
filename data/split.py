"""The selection part: images held out of train, on which epochs, thresholds and settings are chosen."""

import numpy as np
import numpy.typing as npt

from data.errors import InputError

Counts = npt.NDArray[np.int64]


def stratified_split(
    target: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split N images in two so that each class keeps its share of positives on both sides.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label Data",
    ECML PKDD 2011): the rarest class first, each of its images goes to the side that wants it most. That
    alone can leave a class of few positives on one side only, so single images are then moved until every
    class with at least two positives has one on each side, where a move that robs no other class exists.
    Neither part is empty.

    Args:
        target: uint8[N, C], 1 = positive.
        mask: uint8[N, C], 0 = ignored: such a pair counts for no class.
        fraction: share of the images in the selection part, between 0 and 1.
        seed: decides between equals; the same seed gives the same split.

    Returns:
        Indices of the train part and of the selection part, each int64 and sorted; every image is in one.

    Raises:
        InputError: where the fraction is not strictly between 0 and 1, or there are fewer than two images.
    """
    images = len(target)
    if not 0 < fraction < 1:
        raise InputError(f"the selection fraction must be between 0 and 1, got {fraction}")
    if images < 2:
        raise InputError(f"a split needs at least two images, got {images}")
    random = np.random.default_rng(seed)
    order = random.permutation(images)
    positive = (target[order] * mask[order]).astype(np.int64)

    side = _assign(positive, fraction, random)
    _repair(positive, side)
    for empty in (0, 1):
        if not (side == empty).any():  # fewer images than the fraction can share out: still one a side
            side[int(np.argmin(positive.sum(axis=1)))] = empty
    return np.sort(order[side == 0]), np.sort(order[side == 1])


def _assign(positive: Counts, fraction: float, random: np.random.Generator) -> Counts:
    """int64[N]: 0 = train, 1 = selection. `positive` is int64[N, C]."""
    images = len(positive)
    share = np.array([1 - fraction, fraction])
    wanted = images * share  # how many images each side still wants
    wanted_of = np.outer(share, positive.sum(axis=0))  # [2, C]: how many positives of each class
    side = np.full(images, -1, dtype=np.int64)

    def put(image: int, column: int | None) -> None:
        gap = 0.0 if column is None else wanted_of[1, column] - wanted_of[0, column]
        gap = gap or wanted[1] - wanted[0] or random.choice((-1.0, 1.0))
        chosen = int(gap > 0)
        side[image] = chosen
        wanted[chosen] -= 1
        wanted_of[chosen] -= positive[image]

    while True:
        left = positive[side < 0].sum(axis=0)
        if not left.any():
            break
        rarest = left[left > 0].min()
        column = int(random.choice(np.flatnonzero(left == rarest)))
        for image in np.flatnonzero((side < 0) & (positive[:, column] > 0)):
            put(int(image), column)
    for image in np.flatnonzero(side < 0):
        put(int(image), None)
    return side


def _repair(positive: Counts, side: Counts) -> None:
    """Move images, in place, so that a class with two positives or more has one on each side.

    An image is moved only where it is not the last positive of such a class on the side that it leaves, so
    each move leaves one gap less and the loop ends.
    """
    total = positive.sum(axis=0)
    moved = True
    while moved:
        moved = False
        for column in np.flatnonzero(total >= 2):
            for empty in (0, 1):
                count = positive[side != empty].sum(axis=0)  # [C] on the side that would give
                if count[column] != total[column]:
                    continue
                last = (count == 1) & (total >= 2)
                able = (side != empty) & (positive[:, column] > 0) & ~(positive[:, last] > 0).any(axis=1)
                candidates = np.flatnonzero(able)
                if len(candidates):
                    # The image with the fewest classes disturbs the other shares least.
                    labels = positive[candidates].sum(axis=1)
                    side[candidates[int(np.argmin(labels))]] = empty
                    moved = True
