"""95 % intervals by a seeded bootstrap over images: what a figure is worth on this many images.

Images are drawn with replacement, all classes together, so that one image drawn twice counts twice in
every class (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, percentile interval). Nothing
is sorted again: a replicate is a weight per image, and every metric is a ratio of cumulated weights.
Weights are drawn in ascending order of image ids: the order of the rows has no influence, and two
models scored on the same images get the same replicates from the same seed.

Shapes: N images, C classes, T points of a tail curve, B replicates, K images and P positives of a class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.metrics import KINDS, Kind, TailCurve, envelope
from eval.ranking import Floats, Ints, Ranking

REPLICATES = 1000
# Weights held at once, in bytes: [N, B] of uint8 for as many replicates as fit.
_BYTES_AT_ONCE = 64 * 2**20


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
        return _nan_mean(values)

    def mean_tail(self, curve: str, columns: Sequence[int] | None = None) -> Floats:
        """float64[B, T]: the mean Tailacc curve of each replicate."""
        values = self.tail[curve] if columns is None else self.tail[curve][:, columns]
        return _nan_mean(values)


def _nan_mean(values: Floats) -> Floats:
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
    step = max(1, _BYTES_AT_ONCE // max(1, num_images))
    for start in range(0, replicates, step):
        part = slice(start, min(start + step, replicates))
        weight = _weights(rng, num_images, part.stop - part.start)
        for c, ranking in enumerate(ranked):
            drawn = _Drawn(ranking, weight, [curve.above[c] for curve in curves.values()])
            for kind in kinds:
                ap[kind][part, c] = drawn.average_precision(kind)
            for name, curve in curves.items():
                tail[name][part, c] = drawn.tailacc(curve.above[c]).T
    return Bootstrap(ap, tail)


def _weights(rng: np.random.Generator, num_images: int, count: int) -> npt.NDArray[np.uint8]:
    """uint8[N, B]: how often each image is drawn. (More than 255 draws of one of N has no chance.)"""
    out = np.empty((count, num_images), np.uint8)
    for row in out:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return np.ascontiguousarray(out.T)


class _Drawn:
    """One ranked class under B weightings: cumulated weights at the places that metrics ask for."""

    def __init__(self, ranking: Ranking, weight: npt.NDArray[np.uint8], above: Sequence[Ints]) -> None:
        self.ranking = ranking
        ends = ranking.group_ends()
        self._group = ends[np.searchsorted(ends, ranking.hits)]
        # Numbers of first images whose total weight is wanted; weights are summed between them.
        self._counts = np.unique(np.concatenate([[0], ranking.hits + 1, self._group + 1, *above]))
        rows = ranking.id_rank
        last = int(self._counts[-1])
        self._total = np.zeros((len(self._counts), weight.shape[1]), np.int64)
        if last:
            sums = np.add.reduceat(weight[rows[:last]], self._counts[:-1], axis=0, dtype=np.int64)
            np.cumsum(sums, axis=0, out=self._total[1:])
        self._hit = weight[rows[ranking.hits]].astype(np.int64)
        # [P + 1, B]: the weight of the first 0, 1 ... P positives.
        self._found = np.zeros((ranking.positives + 1, weight.shape[1]), np.int64)
        np.cumsum(self._hit, axis=0, out=self._found[1:])

    def _images(self, count: Ints) -> Ints:
        """int64[..., B]: the weight of the first `count` images."""
        return self._total[np.searchsorted(self._counts, count)]

    def average_precision(self, kind: Kind) -> Floats:
        """float64[B], as `eval.metrics.ranked_average_precision` of the images drawn."""
        positives = self._found[-1]
        if kind == "sklearn":
            place = self._group + 1
            found = self._found[self.ranking.hits_among(place)]
        else:
            place, found = self.ranking.hits + 1, self._found[1:]
        precision = found / np.maximum(self._images(place), 1)
        if kind != "sklearn":
            precision = envelope(precision.T).T
        with np.errstate(invalid="ignore"):
            if kind != "voc2007":
                return np.asarray((self._hit * precision).sum(axis=0) / positives)
            if not len(precision):
                return np.full(positives.shape, np.nan)
            columns = np.arange(len(positives))
            total = np.zeros(len(positives))
            for tenth in range(11):
                first = np.count_nonzero(10 * found < tenth * positives, axis=0)
                total += precision[np.minimum(first, len(precision) - 1), columns]
            return np.where(positives > 0, total / 11, np.nan)

    def tailacc(self, above: Ints) -> Floats:
        """float64[T, B]: the share of positives, by weight, among the first `above` images; NaN for none."""
        images = self._images(above)
        found = self._found[self.ranking.hits_among(above)]
        return np.where(images > 0, found / np.maximum(images, 1), np.nan)
