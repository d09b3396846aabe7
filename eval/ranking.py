"""The images of one class in the order of their scores: what every metric of this house starts from.

One sort per class and no gather after it: score, image and truth are packed into one uint64, so that
sorting the keys sorts all three (descending score, ties by ascending image id). Every metric then
needs only the sorted keys and the places of the positives in them.

Shapes: N images, C classes, K <= N images of a class that are not ignored, P positives among them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint8]

Result = TypeVar("Result")

# Columns copied together: a column of a row-major [N, 80] float32 matrix is one value per 320 bytes, so
# copying them one at a time reads each cache line 16 times.
_BLOCK = 16
# Rows packed together, so that what lies between stays in a core's cache.
_ROWS_AT_ONCE = 32_768
# From this many images on, threads are worth their start: numpy sorts and gathers without the interpreter's lock.
_THREADED_FROM = 50_000
_LOW_BIT = np.uint64(1)
_SCORE_SHIFT = np.uint64(32)
_SIGN = np.uint32(0x7FFFFFFF)
_MAX_RANK = 2**31


@dataclass(frozen=True, slots=True)
class Ranking:
    """The images of one class that count, best score first; equal scores by ascending image id.

    Attributes:
        key: uint64[K], ascending. High 32 bits: the score's code (`code_of`), then 31 bits: the place
            of the image in ascending order of ids, last bit: 1 = positive.
        hits: int64[P], the places of the positives in this order, ascending.
    """

    key: npt.NDArray[np.uint64]
    hits: Ints

    def __len__(self) -> int:
        return len(self.key)

    @property
    def positives(self) -> int:
        """P, the number of positive images."""
        return len(self.hits)

    @property
    def score(self) -> Logits:
        """float32[K]: the scores (logits), descending."""
        return _code((self.key >> _SCORE_SHIFT).astype(np.uint32)).view(np.float32)

    @property
    def id_rank(self) -> Ints:
        """int64[K]: for each place, the image's place in ascending order of ids."""
        return ((self.key & np.uint64(0xFFFFFFFF)) >> _LOW_BIT).astype(np.int64)

    def above(self, threshold: npt.ArrayLike) -> Ints:
        """int64[...]: how many images score strictly above each threshold (float64 logits)."""
        wanted = np.asarray(threshold, dtype=np.float64)
        # The largest float32 at or below the threshold: no float32 lies between.
        floor = wanted.astype(np.float32)
        floor = np.where(floor > wanted, np.nextafter(floor, np.float32(-np.inf)), floor)
        return np.searchsorted(self.key, code_of(floor).astype(np.uint64) << _SCORE_SHIFT).astype(np.int64)

    def hits_among(self, count: npt.ArrayLike) -> Ints:
        """int64[...]: how many positives are among the first `count` images."""
        return np.searchsorted(self.hits, np.asarray(count)).astype(np.int64)

    def group_ends(self) -> Ints:
        """int64[G]: the last place of each group of equal scores, ascending."""
        code = self.key >> _SCORE_SHIFT
        return np.flatnonzero(np.append(code[1:] != code[:-1], len(code) > 0))


def _code(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """float32 bits -> a code that ascends as the float descends, and back (it is its own inverse)."""
    negative = (bits.view(np.int32) >> 31).view(np.uint32)
    return bits ^ (_SIGN & ~negative)


def code_of(score: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """uint32[...] that ascends as the float32 score descends; equal for -0.0 and 0.0."""
    return _code((np.asarray(score, dtype=np.float32) + np.float32(0)).view(np.uint32))


def id_ranks(image_ids: Sequence[str] | None, count: int) -> npt.NDArray[np.uint64]:
    """uint64[N]: each row's place in ascending order of image ids; None: the order of the rows."""
    ranks = np.arange(count, dtype=np.uint64)
    if image_ids is None:
        return ranks
    if len(image_ids) != count:
        raise InputError(f"{len(image_ids)} image ids for {count} rows of scores")
    order = sorted(range(count), key=image_ids.__getitem__)
    placed = np.empty_like(ranks)
    placed[order] = ranks
    return placed


def rank_pairs(logit: Logits, target: Bits, mask: Bits, ranks: npt.NDArray[np.uint64]) -> Ranking:
    """Rank one class. All four arrays are [N]; pairs with mask 0 are left out."""
    if len(ranks) > _MAX_RANK:
        raise InputError(f"at most {_MAX_RANK} pairs can be ranked together, got {len(ranks)}")
    key = np.empty(len(ranks), np.uint64)
    for start in range(0, len(key), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = key[rows]
        part[:] = code_of(logit[rows])
        part <<= _SCORE_SHIFT
        part |= ranks[rows] << _LOW_BIT
        part |= target[rows]
    if not mask.all():
        key = key[mask != 0]
    key.sort()
    # The lowest byte is the first one on the machines that numpy's wheels are built for; `astype` asks nobody.
    return Ranking(key, np.flatnonzero(key.astype(np.uint8) & np.uint8(1)))


def checked(
    logit: npt.ArrayLike,
    target: npt.ArrayLike,
    mask: npt.ArrayLike,
    image_ids: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Logits, Bits, Bits]:
    """The three matrices as float32[N, C], uint8[N, C], uint8[N, C].

    Raises `InputError` for shapes that differ, targets or masks other than 0 and 1, and for a score that
    is NaN or infinite (as float32), naming the image and the class (their indices where no names are given).
    """
    with np.errstate(over="ignore"):
        scores = np.asarray(logit).astype(np.float32, copy=False)
    truth, valid = (np.asarray(array).astype(np.uint8, copy=False) for array in (target, mask))
    if scores.ndim != 2 or scores.shape != truth.shape or scores.shape != valid.shape:
        shapes = ", ".join(str(list(array.shape)) for array in (scores, truth, valid))
        raise InputError(f"scores, target and mask must all be [images, classes], got {shapes}")
    for name, bits in (("target", truth), ("mask", valid)):
        if bits.size and bits.max() > 1:
            raise InputError(f"{name} must hold 0 and 1 only, got {bits.max()}")
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        image = f"'{image_ids[row]}'" if image_ids is not None else f"in row {row}"
        label = f"'{classes[column]}'" if classes is not None else f"in column {column}"
        raise InputError(
            f"a score must be finite, got {scores[row, column]} for image {image}, class {label}"
        )
    return scores, truth, valid


def in_threads(call: Callable[[int], Result], count: int, num_images: int) -> Iterator[Result]:
    """Yield call(0) ... call(count - 1) in order; where there are many images, on all cores that are ours to use."""
    workers = threads(num_images)
    if workers == 1:
        yield from map(call, range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(call, range(count))


def threads(num_images: int) -> int:
    """How many threads are worth their start: one for few images, else one for each core that is ours to use."""
    if num_images < _THREADED_FROM:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rankings(
    logit: Logits, target: Bits, mask: Bits, image_ids: Sequence[str] | None = None
) -> Iterator[Ranking]:
    """Yield the `Ranking` of each class of [N, C] matrices (see `checked`), in class order."""
    return ranked_with(lambda ranking: ranking, logit, target, mask, image_ids)


def ranked_with(
    use: Callable[[Ranking], Result],
    logit: Logits,
    target: Bits,
    mask: Bits,
    image_ids: Sequence[str] | None = None,
) -> Iterator[Result]:
    """Yield `use` of the `Ranking` of each class, in class order, classes in threads (see `in_threads`)."""
    count, num_classes = logit.shape
    ranks = id_ranks(image_ids, count)
    workers = threads(count)
    # Several blocks for each thread, so that none waits long for the last one.
    width = max(1, min(_BLOCK, num_classes // (4 * workers))) if workers > 1 else _BLOCK

    def block(number: int) -> list[Result]:
        columns = slice(number * width, (number + 1) * width)
        parts = (np.ascontiguousarray(array[:, columns].T) for array in (logit, target, mask))
        return [
            use(rank_pairs(scores, truth, valid, ranks)) for scores, truth, valid in zip(*parts, strict=True)
        ]

    for results in in_threads(block, -(-num_classes // width), count):
        yield from results
