"""Do scores mean what they say? Reliability, and the maps and thresholds that are fitted on the selection part.

Pure numpy: the export fits with it, the report measures with it. A calibration is a line per class on the
logit, `score = sigmoid(scale * logit + bias)` with `scale > 0`, so that it never changes a ranking.

Shapes: N images, C classes. Ignored pairs (mask 0) take no part in anything.

    platt = fit_platt(logit, target, mask)                  # on the selection part
    score = platt.apply(logit)                              # float32[N, C]
    thresholds = fit_thresholds(score, target, mask, "f1")  # float64[C]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data.errors import InputError, unknown
from eval.ranking import Bits, Floats, Ints, Logits

BINS = 15
FOLDS = 2
CalibrationKind = Literal["platt", "temperature", "none"]
_STEPS = 100
_SMALLEST_STEP = 1e-10
# Of the gradient of the mean loss. Logits are float32, so more digits mean nothing.
_FLAT = 1e-9
# Added to the Hessian's diagonal, as Lin, Lin & Weng do: it stays invertible where all logits are equal.
_RIDGE = 1e-12


@dataclass(frozen=True, slots=True)
class Reliability:
    """The reliability diagram of one class: B bins of equal width over the scores from 0 to 1.

    Attributes:
        count: int64[B], images in the bin; bin b holds the scores in (b / B, (b + 1) / B], the first also 0.
        mean_score: float64[B], NaN for an empty bin.
        positive_share: float64[B], the share of positives, NaN for an empty bin.
        ece: expected calibration error in [0, 1] (see `expected_calibration_error`).
    """

    count: Ints
    mean_score: Floats
    positive_share: Floats
    ece: float


def reliability(score: npt.ArrayLike, target: Bits, mask: Bits, bins: int = BINS) -> Reliability:
    """The reliability diagram of one class from float32[N] scores in [0, 1], uint8[N] targets and mask.

    Raises:
        InputError: fewer than one bin, shapes that differ, or a score outside [0, 1].
    """
    if bins < 1:
        raise InputError(f"a reliability diagram needs at least 1 bin, got {bins}")
    values, truth, valid = np.asarray(score, np.float64), np.asarray(target), np.asarray(mask)
    if values.ndim != 1 or values.shape != truth.shape or values.shape != valid.shape:
        shapes = ", ".join(str(list(a.shape)) for a in (values, truth, valid))
        raise InputError(f"score, target and mask of one class must all be [images], got {shapes}")
    keep = valid != 0
    values, truth = values[keep], truth[keep]
    if len(values) and not (values.min() >= 0 and values.max() <= 1):
        raise InputError(f"a score must be in [0, 1], got {values.min()} to {values.max()}")
    place = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, weights=values, minlength=bins) / count
        share = np.bincount(place, weights=truth, minlength=bins) / count
    return Reliability(count, mean_score, share, expected_calibration_error(count, mean_score, share))


def expected_calibration_error(count: Ints, mean_score: Floats, positive_share: Floats) -> float:
    """The mean over the images of |share of positives - mean score| of their bin (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, equation 3); NaN where there is no image. All arrays are [B]."""
    if not count.sum():
        return float("nan")
    gap = np.where(count > 0, np.abs(positive_share - mean_score), 0.0)
    return float((count * gap).sum() / count.sum())


@dataclass(frozen=True, slots=True)
class Calibration:
    """`score = sigmoid(scale * logit + bias)` for C classes.

    Attributes:
        scale: float64[C], greater than 0.
        bias: float64[C].
        kind: "platt", "temperature" or "none".
        kept: the columns that keep scale 1 and bias 0 because nothing could be fitted: no positive, no
            negative, or logits that rank no better than chance (a fit would turn the ranking round).
    """

    scale: Floats
    bias: Floats
    kind: CalibrationKind
    kept: tuple[int, ...] = ()

    def apply(self, logit: Logits) -> Logits:
        """float32[N, C] calibrated scores of float32[N, C] logits."""
        return sigmoid(logit * self.scale + self.bias).astype(np.float32)


def sigmoid(x: npt.ArrayLike) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64))), np.float64)


def identity(num_classes: int) -> Calibration:
    """Scores are the sigmoid of the logits."""
    return Calibration(np.ones(num_classes), np.zeros(num_classes), "none")


def fit_platt(logit: Logits, target: Bits, mask: Bits) -> Calibration:
    """Scale and bias of each class by maximum likelihood on float32[N, C] logits (Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999), with his smoothed targets, which keep separable classes finite, and the Newton
    method of Lin, Lin & Weng, "A note on Platt's probabilistic outputs", 2007."""
    return _fit("platt", _platt, logit, target, mask)


def fit_temperature(logit: Logits, target: Bits, mask: Bits) -> Calibration:
    """Scale = 1 / temperature of each class by maximum likelihood, bias 0 (Guo et al. 2017, section 4.2, one
    temperature for each yes/no output). The targets are Platt's: a separable class has no finite scale without."""
    return _fit("temperature", _temperature, logit, target, mask)


_Fit = Callable[[Floats, Floats], tuple[float, float]]


def _fit(kind: CalibrationKind, fit: _Fit, logit: Logits, target: Bits, mask: Bits) -> Calibration:
    num_classes = logit.shape[1]
    scale, bias, kept = np.ones(num_classes), np.zeros(num_classes), []
    for c in range(num_classes):
        valid = mask[:, c] != 0
        values, truth = logit[valid, c].astype(np.float64), target[valid, c]
        positives = int(truth.sum())
        negatives = len(truth) - positives
        a, b = 0.0, 0.0
        if positives and negatives:
            smooth = np.where(truth != 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
            a, b = fit(values, smooth)
        # As float32, which the model file holds: a scale that is 0 there would make all scores equal.
        if np.float32(a) > 0:
            scale[c], bias[c] = a, b
        else:
            kept.append(c)
    return Calibration(scale, bias, kind, tuple(kept))


def _loss(x: Floats, smooth: Floats) -> float:
    """Mean cross entropy of sigmoid(x) against targets in (0, 1)."""
    return float(np.mean(np.logaddexp(0, x) - smooth * x))


def _platt(values: Floats, smooth: Floats) -> tuple[float, float]:
    """Newton with backtracking from scale 0 and the bias of the prior (Lin, Lin & Weng, algorithm 1)."""
    a, b = 0.0, float(np.log(smooth.mean() / (1 - smooth.mean())))
    best = _loss(a * values + b, smooth)
    for _ in range(_STEPS):
        p = sigmoid(a * values + b)
        error, weight = p - smooth, p * (1 - p)
        slope = float(np.mean(error * values)), float(np.mean(error))
        if max(abs(slope[0]), abs(slope[1])) < _FLAT:
            break
        haa = float(np.mean(weight * values * values)) + _RIDGE
        hab, hbb = float(np.mean(weight * values)), float(np.mean(weight)) + _RIDGE
        det = haa * hbb - hab * hab
        da = -(hbb * slope[0] - hab * slope[1]) / det
        db = -(haa * slope[1] - hab * slope[0]) / det
        down = slope[0] * da + slope[1] * db
        step = 1.0
        while step >= _SMALLEST_STEP:
            loss = _loss((a + step * da) * values + b + step * db, smooth)
            if loss < best + 1e-4 * step * down:
                break
            step /= 2
        else:
            break
        a, b, best = a + step * da, b + step * db, loss
    return a, b


def _temperature(values: Floats, smooth: Floats) -> tuple[float, float]:
    """The scale at which the slope of the loss is 0, by bisection and Newton steps; 0 where it is not positive."""

    def slope(a: float) -> tuple[float, float]:
        p = sigmoid(a * values)
        return float(np.mean((p - smooth) * values)), float(np.mean(p * (1 - p) * values * values))

    low, high = 0.0, 1.0
    if slope(low)[0] >= 0:
        return 0.0, 0.0
    # The loss is convex and, with smoothed targets, rises in the end.
    while slope(high)[0] < 0:
        low, high = high, 2 * high
    a = (low + high) / 2
    for _ in range(_STEPS):
        first, second = slope(a)
        if abs(first) < _FLAT:
            break
        low, high = (a, high) if first < 0 else (low, a)
        newton = a - first / second if second > 0 else low
        a = newton if low < newton < high else (low + high) / 2
    return a, 0.0


FITS: dict[CalibrationKind, Callable[[Logits, Bits, Bits], Calibration]] = {
    "platt": fit_platt,
    "temperature": fit_temperature,
    "none": lambda logit, target, mask: identity(logit.shape[1]),
}


def cross_fitted_scores(
    kind: CalibrationKind, logit: Logits, target: Bits, mask: Bits, seed: int = 0
) -> Logits:
    """float32[N, C]: the score of each image under a calibration that was fitted on the other half of the images.

    The halves are drawn for each class, seeded, each with its share of the positives.
    """
    if kind not in FITS:
        raise unknown("calibration", kind, FITS)
    order = np.random.default_rng(seed).permutation(len(logit))
    fold = np.zeros(logit.shape, np.int64)
    for c in range(logit.shape[1]):
        sign = order[np.argsort(target[order, c], kind="stable")]
        fold[sign, c] = np.arange(len(sign)) % FOLDS
    out = np.empty(logit.shape, np.float32)
    for part in range(FOLDS):
        fitted = FITS[kind](logit, target, np.where(fold == part, 0, mask).astype(np.uint8))
        out = np.where(fold == part, fitted.apply(logit), out)
    return out


def negative_log_likelihood(score: npt.ArrayLike, target: Bits, mask: Bits) -> float:
    """Mean cross entropy in nats over the pairs that count, of scores[N, C]; NaN where there is none."""
    valid = mask != 0
    tiny = np.finfo(np.float32).tiny
    values = np.asarray(score, np.float64)[valid]
    right = np.where(target[valid] != 0, values, 1 - values)
    return float(-np.mean(np.log(np.maximum(right, tiny)))) if len(right) else float("nan")


def choose_calibration(
    logit: Logits, target: Bits, mask: Bits, seed: int = 0
) -> tuple[CalibrationKind, Mapping[CalibrationKind, float]]:
    """The kind with the lowest cross-fitted negative log-likelihood, and that of each kind.

    Cross-fitting (2 folds) keeps a small selection part from choosing the map that fits its noise best.
    Between equals the simpler one wins.
    """
    order: tuple[CalibrationKind, ...] = ("none", "temperature", "platt")
    found = {
        kind: negative_log_likelihood(cross_fitted_scores(kind, logit, target, mask, seed), target, mask)
        for kind in order
    }
    return min(order, key=lambda kind: found[kind]), found


def fit_thresholds(score: npt.ArrayLike, target: Bits, mask: Bits, wish: float | Literal["f1"]) -> Floats:
    """float64[C]: a threshold per class for float32[N, C] scores; a label is shown strictly above it.

    Args:
        score: in [0, 1].
        target: uint8[N, C].
        mask: uint8[N, C].
        wish: "f1" for the highest F1 (0.5 for a class without a positive), or a precision in (0, 1]: the lowest
            threshold above which the precision is at least that (1.0, so never shown, where no threshold is).

    Each lies half-way between two neighbouring scores, as a float32, so that neither moves across it.
    """
    if wish != "f1" and not 0 < wish <= 1:
        raise InputError(f"a wished precision must be above 0 and at most 1, got {wish}")
    values = np.asarray(score, np.float32)
    return np.array(
        [_threshold(values[m != 0, c], target[m != 0, c], wish) for c, m in enumerate(np.asarray(mask).T)]
    )


def _threshold(score: Logits, truth: Bits, wish: float | Literal["f1"]) -> float:
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], truth[order].astype(np.int64)
    lower = np.append(ranked[1:], np.float32(0))
    # A cut may lie only between different scores.
    cuts = np.flatnonzero(ranked > lower)
    found = np.cumsum(hit)
    if not len(cuts) or not found[-1]:
        return 0.5 if wish == "f1" else 1.0
    tp = found[cuts]
    if wish == "f1":
        best = int(np.argmax(2 * tp / (cuts + 1 + found[-1])))
    else:
        able = np.flatnonzero(tp / (cuts + 1) >= wish)
        if not len(able):
            return 1.0
        best = int(able[-1])
    high, low = ranked[cuts[best]], lower[cuts[best]]
    middle = np.float32((float(high) + float(low)) / 2)
    return float(middle if middle < high else low)
