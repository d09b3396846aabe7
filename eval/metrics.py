"""The definition of every metric in this house, in numpy alone: training and evaluation share it.

For one class: float32 logits, labels 0 or 1, and a mask; ignored images (mask 0) are removed first and
are neither true nor false positives. Images are sorted by descending score, ties by ascending image id.
P(k) is the precision among the first k images, R(k) the share of the positives among them.

Shapes: N images, C classes, T thresholds, P positives of a class.

    ap = average_precision(logit, target, mask, image_ids)      # float64[C]
    mean, num_classes = mean_average_precision(ap)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data.errors import unknown
from eval.ranking import (
    Bits,
    Floats,
    Ints,
    Logits,
    Ranking,
    checked,
    code_of,
    id_ranks,
    rank_pairs,
    ranked_with,
)

Kind = Literal["voc2010", "voc2007", "sklearn"]
KINDS: tuple[Kind, ...] = ("voc2010", "voc2007", "sklearn")
TAIL_POINTS = 20
# A logit of 0 is a score of 0.5. A prediction is "positive" strictly above it.
CLASSIFICATION_THRESHOLD = 0.0
# The inequality of Tailacc is strict, so at the maximum itself the tail is empty: the last position of the
# curve lies this much below it.
JUST_BELOW_MAX = 1e-6
_ROWS_AT_ONCE = 65_536


def average_precision(
    logit: Logits,
    target: Bits,
    mask: Bits,
    image_ids: Sequence[str] | None = None,
    kind: Kind = "voc2010",
    *,
    classes: Sequence[str] | None = None,
) -> Floats:
    """Average precision of each class.

    Args:
        logit: float32[N, C]; only its order within a class matters.
        target: uint8[N, C], 1 = positive.
        mask: uint8[N, C], 0 = ignored.
        image_ids: N ids that break ties (ascending); None: the order of the rows.
        kind: "voc2010" (area under the precision envelope, VOC2012 devkit 3.4.1, the headline),
            "voc2007" (mean over recall 0, 0.1 ... 1 of the highest precision at that recall or more),
            "sklearn" (no envelope, equal scores share one threshold, `average_precision_score`).
        classes: C names, for error messages.

    Returns:
        float64[C] in [0, 1]; NaN for a class without a positive.

    Raises:
        InputError: shapes that differ, or a NaN or infinite score, naming image and class.
    """
    matrices = checked(logit, target, mask, image_ids, classes)
    found = ranked_with(lambda ranking: ranked_average_precision(ranking, kind), *matrices, image_ids)
    return np.array(list(found))


def mean_average_precision(ap: npt.ArrayLike) -> tuple[float, int]:
    """The mean over the classes that have an AP, and how many these are; (NaN, 0) where none has."""
    values = np.asarray(ap, dtype=np.float64)
    values = values[~np.isnan(values)]
    return (float(values.mean()) if len(values) else float("nan")), len(values)


def ranked_average_precision(ranking: Ranking, kind: Kind = "voc2010") -> float:
    """The AP of one ranked class; see `average_precision`."""
    hits, positives = ranking.hits, ranking.positives
    if kind not in KINDS:
        raise unknown("kind of average precision", kind, KINDS)
    if not positives:
        return float("nan")
    if kind == "sklearn":
        ends = ranking.group_ends()
        last = ends[np.searchsorted(ends, hits)]
        return float(np.mean(ranking.hits_among(last + 1) / (last + 1)))
    # Precision rises at positives only, so the envelope's corners are all among them.
    highest = envelope(np.arange(1, positives + 1) / (hits + 1))
    if kind == "voc2010":
        return float(highest.mean())
    # The first positive (from 1) at which recall is at least i/10, in whole numbers: no rounding at 0.3.
    first = -(np.arange(11) * -positives // 10)
    return float(highest[np.maximum(first, 1) - 1].mean())


def envelope(precision: Floats) -> Floats:
    """The highest precision from each place on, along the last axis."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def ties(ranking: Ranking) -> tuple[int, int]:
    """How many images share their score with another of the class, and how many of these stand in a group
    that mixes positives and negatives (only there can the order of equal scores change an AP)."""
    ends = ranking.group_ends()
    sizes = np.diff(ends, prepend=-1)
    hits = np.diff(ranking.hits_among(ends + 1), prepend=0)
    mixed = (hits > 0) & (hits < sizes)
    return int(sizes[sizes > 1].sum()), int(sizes[mixed].sum())


@dataclass(frozen=True, slots=True)
class TailCurve:
    """Tailacc(t) of C classes at T thresholds each: the share of positives among the images above t.

    Attributes:
        position: float64[T], what the curve is drawn over: the relative position or the absolute t.
        threshold: float64[C, T], the logit t of each point; NaN for a class with no image above the
            classification threshold.
        above: int64[C, T], images strictly above t.
        hits: int64[C, T], positives among them.
        images: int64[C], images that count (are not ignored).
    """

    position: Floats
    threshold: Floats
    above: Ints
    hits: Ints
    images: Ints

    @property
    def value(self) -> Floats:
        """float64[C, T]: Tailacc; NaN where no image is above t."""
        return _ratio(self.hits, self.above)

    @property
    def mean(self) -> Floats:
        """float64[T]: the mean over the classes that have an image above t; NaN where none has."""
        return _ratio(np.nansum(self.value, axis=0), self.num_classes)

    @property
    def num_classes(self) -> Ints:
        """int64[T]: the classes behind each point."""
        return np.asarray(np.count_nonzero(self.above, axis=0), np.int64)

    @property
    def num_images(self) -> Ints:
        """int64[T]: the images above t, summed over the classes."""
        return np.asarray(self.above.sum(axis=0), np.int64)

    @property
    def coverage(self) -> Floats:
        """float64[T]: the share of images above t, averaged over the classes behind the point; 0 for none."""
        share = np.nansum(_ratio(self.above, self.images[:, None]), axis=0)
        return np.asarray(share / np.maximum(self.num_classes, 1), np.float64)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """part / whole, NaN where whole is 0."""
    numerator, denominator = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def tail_curve(ranked: Sequence[Ranking], position: Floats, threshold: Floats) -> TailCurve:
    """Tailacc at given logits `threshold` (float64[C, T]; NaN = an empty tail)."""
    above = np.zeros(threshold.shape, np.int64)
    hits = np.zeros(threshold.shape, np.int64)
    for c, ranking in enumerate(ranked):
        some = ~np.isnan(threshold[c])
        above[c, some] = ranking.above(threshold[c, some])
        hits[c] = ranking.hits_among(above[c])
    return TailCurve(position, threshold, above, hits, np.array([len(r) for r in ranked], np.int64))


def tailacc(
    ranked: Sequence[Ranking], points: int = TAIL_POINTS, start: float = CLASSIFICATION_THRESHOLD
) -> TailCurve:
    """Tailacc over the relative position: 0 = the classification threshold, 1 = the class's highest logit.

    The last position is `1 - JUST_BELOW_MAX`, since nothing scores above the maximum. A class with no
    image above the threshold has no tail anywhere.
    """
    position = np.linspace(0, 1, points)
    position[-1] = 1 - JUST_BELOW_MAX
    top = np.array([r.score[0] if len(r) else np.nan for r in ranked], np.float64)
    top[~(top > start)] = np.nan
    return tail_curve(ranked, position, start + position * (top[:, None] - start))


def tail_area(mean: Floats, position: Floats) -> Floats:
    """float64[...]: the area under Tailacc curves float64[..., T] over their positions float64[T], as a share of the
    width, by trapezoids over the points that are known; a single such point stands for all, none gives NaN."""
    curves = mean.reshape(-1, mean.shape[-1])
    out = np.full(len(curves), np.nan)
    for i, curve in enumerate(curves):
        known = ~np.isnan(curve)
        x, y = position[known], curve[known]
        if len(x) > 1:
            out[i] = np.trapezoid(y, x) / (x[-1] - x[0])
        elif len(x):
            out[i] = y[0]
    return out.reshape(mean.shape[:-1])


def tailacc_absolute(
    ranked: Sequence[Ranking], points: int = TAIL_POINTS, start: float = CLASSIFICATION_THRESHOLD
) -> TailCurve:
    """Tailacc over one grid of logits for all classes, from the threshold to just below the highest one."""
    top = max((float(r.score[0]) for r in ranked if len(r)), default=start)
    grid = np.linspace(start, max(top, start), points)
    grid[-1] = start + (1 - JUST_BELOW_MAX) * (grid[-1] - start)
    return tail_curve(ranked, grid, np.tile(grid, (len(ranked), 1)))


def accuracy(ranked: Sequence[Ranking], threshold: npt.ArrayLike = CLASSIFICATION_THRESHOLD) -> Floats:
    """float64[C]: the share of right answers where "yes" is a logit above `threshold` (float or [C])."""
    above, hits, images, positives = _counts(ranked, threshold)
    return _ratio(hits + (images - positives) - (above - hits), images)


def always_no_accuracy(ranked: Sequence[Ranking]) -> Floats:
    """float64[C]: the accuracy of saying "no" to every image: the share of negatives."""
    return _ratio([len(r) - r.positives for r in ranked], [len(r) for r in ranked])


def _counts(ranked: Sequence[Ranking], threshold: npt.ArrayLike) -> tuple[Ints, Ints, Ints, Ints]:
    """int64[C] each: images above the threshold, positives among them, images, positives."""
    limits = np.broadcast_to(np.asarray(threshold, np.float64), (len(ranked),))
    above = np.array([r.above(t) for r, t in zip(ranked, limits, strict=True)], np.int64)
    hits = np.array([r.hits_among(n) for r, n in zip(ranked, above, strict=True)], np.int64)
    images = np.array([len(r) for r in ranked], np.int64)
    return above, hits, images, np.array([r.positives for r in ranked], np.int64)


@dataclass(frozen=True, slots=True)
class F1:
    """F1 over classes (CF1: from the mean precision and the mean recall of the classes that have a
    positive; precision 0 where nothing is predicted) and over all pairs (OF1), as the multi-label
    literature prints them (for instance Query2Label, arXiv 2107.10834)."""

    class_precision: float
    class_recall: float
    class_f1: float
    overall_precision: float
    overall_recall: float
    overall_f1: float


def f1(ranked: Sequence[Ranking], threshold: npt.ArrayLike = CLASSIFICATION_THRESHOLD) -> F1:
    """CF1 and OF1 where "yes" is a logit above `threshold` (one, or one per class)."""
    above, hits, _, positives = _counts(ranked, threshold)
    has = positives > 0
    cp = float(np.nan_to_num(_ratio(hits, above))[has].mean()) if has.any() else float("nan")
    cr = float(_ratio(hits, positives)[has].mean()) if has.any() else float("nan")
    op = float(np.nan_to_num(_ratio(hits.sum(), above.sum())))
    recall = float(_ratio(hits.sum(), positives.sum()))
    return F1(cp, cr, _harmonic(cp, cr), op, recall, _harmonic(op, recall))


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else a + b


def precision_at(ranking: Ranking, count: int) -> float:
    """Precision among the first `count` images (or all, where there are fewer); NaN without a positive."""
    count = min(count, len(ranking))
    return float(ranking.hits_among(count)) / count if ranking.positives else float("nan")


def precision_at_coverage(ranking: Ranking, share: float) -> float:
    """Precision among the best `share` of the images (rounded, at least one); NaN without a positive."""
    return precision_at(ranking, max(1, round(share * len(ranking))))


def micro_average_precision(
    logit: Logits, target: Bits, mask: Bits, image_ids: Sequence[str] | None = None, kind: Kind = "voc2010"
) -> float:
    """The AP of all pairs ranked together; ties by ascending image id, then class order."""
    scores, truth, valid = checked(logit, target, mask, image_ids)
    count, num_classes = scores.shape
    columns = np.arange(num_classes, dtype=np.uint64)
    places = (id_ranks(image_ids, count)[:, None] * np.uint64(num_classes) + columns).astype(np.uint64)
    ranking = rank_pairs(scores.ravel(), truth.ravel(), valid.ravel(), places.ravel())
    return ranked_average_precision(ranking, kind)


def per_sample_average_precision(logit: Logits, target: Bits, mask: Bits) -> Floats:
    """float64[N]: scikit-learn's AP of each image over its classes; NaN where the image has no positive.

    This ranks classes within an image, not images within a class, so it does not ask whether scores of
    different images compare. It is no metric of this house: it explains figures that others call mAP.
    """
    scores, truth, valid = checked(logit, target, mask)
    out = [
        _rows_average_precision(
            scores[i : i + _ROWS_AT_ONCE], truth[i : i + _ROWS_AT_ONCE], valid[i : i + _ROWS_AT_ONCE]
        )
        for i in range(0, len(scores), _ROWS_AT_ONCE)
    ]
    return np.concatenate(out) if out else np.empty(0)


def _rows_average_precision(scores: Logits, truth: Bits, valid: Bits) -> Floats:
    """`per_sample_average_precision` of a block of rows."""
    # As in eval.ranking: code, then truth. Ignored pairs get the highest key, behind every finite score.
    key = (code_of(scores).astype(np.uint64) << np.uint64(1)) | truth
    key[valid == 0] = np.uint64(2**34)
    key.sort(axis=1)
    hit = (key & np.uint64(1)).astype(np.int64)
    code = key >> np.uint64(1)
    columns = np.arange(scores.shape[1])
    is_end = np.ones(scores.shape, bool)
    is_end[:, :-1] = code[:, 1:] != code[:, :-1]
    end = np.where(is_end, columns, scores.shape[1])
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    found = np.take_along_axis(np.cumsum(hit, axis=1), end, axis=1)
    return _ratio((hit * found / (end + 1)).sum(axis=1), hit.sum(axis=1))
