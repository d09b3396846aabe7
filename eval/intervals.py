"""95 % intervals by a seeded bootstrap over images: what a figure is worth on this many images.

Images are drawn with replacement, all classes together, so that one image drawn twice counts twice in
every class (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, percentile interval). Nothing
is sorted again: a replicate is a weight per image, and every metric is a ratio of cumulated weights.
Weights are drawn in ascending order of image ids: the order of the rows has no influence, and two
models scored on the same images get the same replicates from the same seed.

What makes it fast: eight replicates share one uint64 per image, one byte each, so that one gather and one
cumulated sum serve all eight. Only differences of cumulated sums are read, at most `_SPAN` images apart: the
bytes of such a difference can't overflow, and what overflowed before cancels (all sums are modulo 2**64).

Shapes: N images, C classes, T points of a tail curve, B replicates, K images and P positives of a class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.metrics import KINDS, Kind, TailCurve, envelope
from eval.ranking import Floats, Ints, Ranking, in_threads

REPLICATES = 1000
# Weights held at once, in bytes: one byte for each image and replicate.
_BYTES_AT_ONCE = 64 * 2**20
# Gathered at once by one thread, in bytes: small enough to stay in a core's cache where the images allow it.
_GATHER_BYTES = 2 * 2**20
_PACK = 8
# A byte holds the weight of this many images: their total weight is near Poisson(64), and above 255 has no chance.
_SPAN = 64

Packs = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Replicates of the metrics of one score file.

    Attributes:
        ap: for each kind, float64[B, C]; NaN where a replicate has no positive of the class.
        tail: for each curve, float64[B, C, T] Tailacc; NaN where no drawn image is above t. The
            thresholds t are those of the data as they are, in every replicate.
    """

    ap: Mapping[Kind, Floats]
    tail: Mapping[str, Floats]

    def mean_ap(self, kind: Kind, columns: Sequence[int] | None = None) -> Floats:
        """float64[B]: the mAP of each replicate, over all classes or those at `columns`."""
        values = self.ap[kind] if columns is None else self.ap[kind][:, columns]
        return nan_mean(values)

    def mean_tail(self, curve: str, columns: Sequence[int] | None = None) -> Floats:
        """float64[B, T]: the mean Tailacc curve of each replicate."""
        values = self.tail[curve] if columns is None else self.tail[curve][:, columns]
        return nan_mean(values)


def nan_mean(values: Floats) -> Floats:
    """The mean over axis 1 of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def interval(samples: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """The percentile interval over axis 0: (low, high), each [...]; NaN where every sample is."""
    known = ~np.isnan(samples)
    filled = np.where(known.any(axis=0), samples, 0.0)
    low, high = np.nanquantile(filled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    lost = ~known.any(axis=0)
    return np.where(lost, np.nan, low), np.where(lost, np.nan, high)


def bootstrap(
    ranked: Sequence[Ranking],
    num_images: int,
    curves: Mapping[str, TailCurve] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    kinds: Sequence[Kind] = KINDS,
) -> Bootstrap:
    """Resample the images `replicates` times and compute AP and Tailacc of every class each time.

    Args:
        ranked: the C rankings of one score file (`eval.ranking.rankings`).
        num_images: N, the images that were ranked, ignored or not.
        curves: tail curves of the same rankings, by name.
        replicates: B.
        seed: same seed, same images: same replicates.
        kinds: the average precisions wanted.
    """
    rng = np.random.default_rng(seed)
    curves = curves or {}
    ap = {kind: np.empty((replicates, len(ranked))) for kind in kinds}
    tail = {name: np.empty((replicates, *curve.above.shape)) for name, curve in curves.items()}
    step = _PACK * max(1, _BYTES_AT_ONCE // (_PACK * max(1, num_images)))
    for start in range(0, replicates, step):
        count = min(step, replicates - start)
        packs = _weights(rng, num_images, count)

        def resample(c: int, packs: Packs = packs, start: int = start, count: int = count) -> None:
            places = _Places.of(ranked[c], [curve.above[c] for curve in curves.values()])
            together = max(1, _GATHER_BYTES // (_PACK * max(1, places.last)))
            for first in range(0, len(packs), together):
                drawn = _Drawn(places, packs[first : first + together], count - first * _PACK)
                begin = start + first * _PACK
                part = slice(begin, begin + drawn.replicates)
                for kind in kinds:
                    ap[kind][part, c] = drawn.average_precision(kind)
                for name, curve in curves.items():
                    tail[name][part, c] = drawn.tailacc(curve.above[c])

        for _ in in_threads(resample, len(ranked), num_images):
            pass
    return Bootstrap(ap, tail)


def _weights(rng: np.random.Generator, num_images: int, count: int) -> Packs:
    """uint64[ceil(B / 8), N]: how often each image is drawn, a byte for each of eight replicates."""
    out = np.zeros((-(-count // _PACK), num_images, _PACK), np.uint8)
    for b in range(count):
        drawn = rng.integers(num_images, size=num_images)
        out[b // _PACK, :, b % _PACK] = np.bincount(drawn, minlength=num_images)
    return out.view(np.uint64)[:, :, 0]


def _unpack(packs: Packs, count: int) -> npt.NDArray[np.uint8]:
    """uint64[B / 8, M] -> uint8[B, M], the first `count` replicates."""
    lanes = packs.view(np.uint8).reshape(len(packs), -1, _PACK).transpose(0, 2, 1)
    return lanes.reshape(len(packs) * _PACK, -1)[:count]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where one class's metrics read the cumulated weights.

    Attributes:
        ranking: the class.
        rows: int64[last], the images (in ascending order of ids) down to the last place that is read.
        counts: int64[M], ascending from 0, at most `_SPAN` apart: numbers of first images whose weight is known.
        group: int64[P], for each positive the last place of its group of equal scores.
    """

    ranking: Ranking
    rows: Ints
    counts: Ints
    group: Ints

    @classmethod
    def of(cls, ranking: Ranking, above: Sequence[Ints]) -> "_Places":
        ends = ranking.group_ends()
        group = ends[np.searchsorted(ends, ranking.hits)]
        wanted = np.unique(np.concatenate([[0], ranking.hits + 1, group + 1, *above]))
        last = int(wanted[-1])
        counts = np.union1d(wanted, np.arange(0, last, _SPAN))
        return cls(ranking, ranking.id_rank[:last], counts, group)

    @property
    def last(self) -> int:
        return len(self.rows)


class _Drawn:
    """One ranked class under B weightings, `packs` uint64[B / 8, N] of which the first `count` are wanted."""

    def __init__(self, places: _Places, packs: Packs, count: int) -> None:
        self._places = places
        self.replicates = min(count, len(packs) * _PACK)
        sums = packs.take(places.rows, axis=1)
        hits = sums.take(places.ranking.hits, axis=1)
        np.cumsum(sums, axis=1, out=sums)
        at = np.zeros((len(packs), len(places.counts)), np.uint64)
        at[:, 1:] = sums.take(places.counts[1:] - 1, axis=1)
        # [B, M]: the weight of the first `counts` images.
        self._total = np.zeros((self.replicates, len(places.counts)), np.int64)
        np.cumsum(_unpack(np.diff(at, axis=1), self.replicates), axis=1, out=self._total[:, 1:])
        self._hit = _unpack(hits, self.replicates)
        # [B, P + 1]: the weight of the first 0, 1 ... P positives.
        self._found = np.zeros((self.replicates, places.ranking.positives + 1), np.int64)
        np.cumsum(self._hit, axis=1, out=self._found[:, 1:])

    def _images(self, count: Ints) -> Ints:
        """int64[B, ...]: the weight of the first `count` images."""
        return self._total.take(np.searchsorted(self._places.counts, count), axis=1)

    def average_precision(self, kind: Kind) -> Floats:
        """float64[B], as `eval.metrics.ranked_average_precision` of the images drawn."""
        ranking, positives = self._places.ranking, self._found[:, -1]
        if not ranking.positives:
            return np.full(self.replicates, np.nan)
        if kind == "sklearn":
            place = self._places.group + 1
            found = self._found.take(ranking.hits_among(place), axis=1)
        else:
            place, found = ranking.hits + 1, self._found[:, 1:]
        precision = found / np.maximum(self._images(place), 1)
        if kind != "sklearn":
            precision = envelope(precision)
        with np.errstate(invalid="ignore"):
            if kind != "voc2007":
                return np.asarray((self._hit * precision).sum(axis=1) / positives)
        # For each replicate, the first positive at which recall is at least i/10.
        wanted = -(np.arange(11) * -positives[:, None] // 10)
        first = np.stack([np.searchsorted(f, w) for f, w in zip(found, wanted, strict=True)])
        points = np.take_along_axis(precision, np.minimum(first, ranking.positives - 1), axis=1)
        return np.where(positives > 0, points.mean(axis=1), np.nan)

    def tailacc(self, above: Ints) -> Floats:
        """float64[B, T]: the share of positives, by weight, among the first `above` images; NaN for none."""
        images = self._images(above)
        found = self._found.take(self._places.ranking.hits_among(above), axis=1)
        return np.where(images > 0, found / np.maximum(images, 1), np.nan)
