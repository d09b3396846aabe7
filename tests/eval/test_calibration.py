"""Calibration against slow transcriptions, scikit-learn and laws that the data were drawn from."""

import itertools
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression

from data.errors import InputError
from eval.calibration import (
    Calibration,
    choose_calibration,
    cross_fitted_scores,
    fit_platt,
    fit_temperature,
    fit_thresholds,
    negative_log_likelihood,
    reliability,
    sigmoid,
)

Drawn = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def drawn(scale: float, bias: float, count: int = 4000, classes: int = 2, seed: int = 0) -> Drawn:
    """Logits whose truth was drawn with probability sigmoid(scale * logit + bias), and a mask."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 3, (count, classes)).astype(np.float32)
    target = (rng.uniform(size=logit.shape) < sigmoid(scale * logit + bias)).astype(np.uint8)
    return logit, target, (rng.uniform(size=logit.shape) < 0.9).astype(np.uint8)


def slow_reliability(score: Any, target: Any, mask: Any, bins: int) -> tuple[list[int], float]:
    """Counts and expected calibration error, bin by bin as in Guo et al. 2017."""
    pairs = [(float(s), int(y)) for s, y, m in zip(score, target, mask, strict=True) if m]
    counts, error = [], 0.0
    for b in range(bins):
        inside = [(s, y) for s, y in pairs if (b / bins < s <= (b + 1) / bins) or (b == 0 and s == 0)]
        counts.append(len(inside))
        if inside:
            gap = abs(np.mean([y for _, y in inside]) - np.mean([s for s, _ in inside]))
            error += len(inside) / len(pairs) * float(gap)
    return counts, error if pairs else math.nan


@st.composite
def one_class(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    count = draw(st.integers(0, 30))
    score = draw(arrays(np.float32, count, elements=st.floats(0, 1, width=32)))
    target, mask = (draw(arrays(np.uint8, count, elements=st.integers(0, 1))) for _ in range(2))
    return score, target, mask


@given(case=one_class(), bins=st.integers(1, 20))
def test_reliability__agrees_with_the_definition(case: Any, bins: int) -> None:
    found = reliability(*case, bins)
    # A score within a rounding of an edge may be counted on either side of it.
    edges = np.abs(case[0] * bins - np.round(case[0] * bins)) < 1e-5
    if not edges.any():
        counts, error = slow_reliability(*case, bins)
        assert list(found.count) == counts
        assert found.ece == pytest.approx(error, abs=1e-9, nan_ok=True)
    assert found.count.sum() == case[2].sum()
    assert np.array_equal(np.isnan(found.mean_score), found.count == 0)


def test_reliability__known_by_hand() -> None:
    score = np.array([0.0, 0.1, 0.5, 0.9, 1.0, 0.7], np.float32)
    found = reliability(
        score, np.array([0, 1, 1, 1, 1, 0], np.uint8), np.array([1, 1, 1, 1, 1, 0], np.uint8), 2
    )
    # (0, 0.5]: mean score 0.2, 2 of 3 positive. (0.5, 1]: mean score 0.95, all positive.
    assert list(found.count) == [3, 2]
    np.testing.assert_allclose(found.mean_score, [0.2, 0.95])
    np.testing.assert_allclose(found.positive_share, [2 / 3, 1])
    assert found.ece == pytest.approx(3 / 5 * (2 / 3 - 0.2) + 2 / 5 * 0.05)


def test_reliability__bad_input_is_said() -> None:
    bits = np.ones(2, np.uint8)
    with pytest.raises(InputError, match=r"a score must be in \[0, 1\], got -0\.5 to 2\.0"):
        reliability(np.array([2.0, -0.5]), bits, bits)
    with pytest.raises(InputError, match=r"must be in \[0, 1\]"):
        reliability(np.array([np.nan, 0.5]), bits, bits)
    with pytest.raises(InputError, match="at least 1 bin, got 0"):
        reliability(np.zeros(2), bits, bits, 0)
    with pytest.raises(InputError, match=r"\[images\], got \[2, 1\]"):
        reliability(np.zeros((2, 1)), bits, bits)


@pytest.mark.parametrize(("scale", "bias"), [(0.5, -1.0), (2.0, 0.0), (1.0, 1.5)])
def test_fit_platt__finds_the_law_and_the_optimum(scale: float, bias: float) -> None:
    logit, target, mask = drawn(scale, bias)
    found = fit_platt(logit, target, mask)
    np.testing.assert_allclose(found.scale, scale, rtol=0.12)
    np.testing.assert_allclose(found.bias, bias, atol=0.2)
    assert found.kept == ()
    for c in range(2):
        # Platt's smoothed targets change little here: scikit-learn's unpenalised fit is beside it.
        valid = mask[:, c] == 1
        theirs = LogisticRegression(C=np.inf, tol=1e-8).fit(logit[valid, c : c + 1], target[valid, c])
        assert found.scale[c] == pytest.approx(theirs.coef_[0, 0], rel=0.02)
        assert found.bias[c] == pytest.approx(theirs.intercept_[0], abs=0.02)


@pytest.mark.parametrize("fit", [fit_platt, fit_temperature])
def test_fit__no_neighbour_is_better(fit: Any) -> None:
    logit, target, mask = drawn(0.6, -0.5, count=300, classes=1, seed=4)
    found = fit(logit, target, mask)
    values, truth = logit[mask == 1].astype(np.float64), target[mask == 1]
    positives = truth.sum()
    smooth = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2))

    def loss(a: float, b: float) -> float:
        x = a * values + b
        return float(np.sum(np.logaddexp(0, x) - smooth * x))

    best = loss(found.scale[0], found.bias[0])
    shifts = (0.0,) if fit is fit_temperature else (-1e-3, 0.0, 1e-3)
    for da, db in itertools.product((-1e-3, 1e-3), shifts):
        assert loss(found.scale[0] + da, found.bias[0] + db) > best
    if fit is fit_temperature:
        assert found.bias[0] == 0


@pytest.mark.parametrize("fit", [fit_platt, fit_temperature])
def test_fit__degenerate_classes_keep_the_identity_and_are_said(fit: Any) -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(size=(40, 6)).astype(np.float32)
    target = (logit + rng.normal(size=logit.shape) > 0).astype(np.uint8)
    mask = np.ones_like(target)
    target[:, 0] = 0  # no positive
    target[:, 1] = 1  # no negative
    mask[:, 2] = 0  # nothing counts
    target[:, 3] = logit[:, 3] < 0  # ranks the wrong way round
    target[:, 4] = logit[:, 4] > 0  # separable: finite all the same
    found = fit(logit, target, mask)
    assert found.kept == (0, 1, 2, 3)
    np.testing.assert_array_equal(found.scale[:4], 1)
    np.testing.assert_array_equal(found.bias[:4], 0)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    constant = fit(
        np.full((6, 1), 2, np.float32), np.array([[1], [0], [1], [0], [1], [0]], np.uint8), mask[:6, :1]
    )
    assert np.isfinite([constant.scale[0], constant.bias[0]]).all()
    assert constant.scale[0] > 0


@settings(max_examples=30)
@given(data=st.data())
def test_fit__ranking_is_kept_and_ignored_pairs_have_no_influence(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(2, 25)), 2)
    logit = data.draw(arrays(np.float32, shape, elements=st.floats(-60, 60, width=32)))
    target, mask = (data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1))) for _ in range(2))
    noise = data.draw(arrays(np.float32, shape, elements=st.floats(-60, 60, width=32)))
    other = np.where(mask == 1, logit, noise), np.where(mask == 1, target, 1 - target).astype(np.uint8)
    for fit in (fit_platt, fit_temperature):
        found, again = fit(logit, target, mask), fit(*other, mask)
        np.testing.assert_array_equal(found.scale, again.scale)
        np.testing.assert_array_equal(found.bias, again.bias)
        score = found.apply(logit)
        assert ((score >= 0) & (score <= 1)).all()
        for c in range(2):
            order = np.argsort(logit[:, c], kind="stable")
            assert (np.diff(score[order, c]) >= 0).all()
    score = sigmoid(logit).astype(np.float32)
    changed = np.where(mask == 1, score, 0.3).astype(np.float32)
    for wish in ("f1", 0.7):
        np.testing.assert_array_equal(
            fit_thresholds(score, target, mask, wish),
            fit_thresholds(changed, other[1], mask, wish),  # type: ignore[arg-type]
        )


def test_apply__lowers_the_calibration_error() -> None:
    logit, target, mask = drawn(0.4, -1.0)
    fresh, truth, valid = drawn(0.4, -1.0, seed=1)
    before = reliability(sigmoid(fresh[:, 0]), truth[:, 0], valid[:, 0]).ece
    after = reliability(fit_platt(logit, target, mask).apply(fresh)[:, 0], truth[:, 0], valid[:, 0]).ece
    assert before > 0.15
    assert after < 0.04


@pytest.mark.parametrize(
    ("law", "kind"), [((1.0, 0.0), "none"), ((0.4, 0.0), "temperature"), ((0.6, -1.5), "platt")]
)
def test_choose_calibration__the_simplest_that_the_law_needs(law: tuple[float, float], kind: str) -> None:
    best, found = choose_calibration(*drawn(*law, count=1500, seed=2))
    assert best == kind
    assert set(found) == {"none", "temperature", "platt"}


def test_cross_fitted_scores__no_image_is_fitted_on_itself() -> None:
    logit, target, mask = drawn(0.5, -1.0, count=60, classes=1)
    scores = cross_fitted_scores("platt", logit, target, mask)
    for i in range(60):
        turned = target.copy()
        turned[i] = 1 - turned[i]
        # The halves are drawn by the truth, so those of a turned image differ: hold the halves by its mask alone.
        hidden = mask.copy()
        hidden[i] = 0
        changed = cross_fitted_scores("platt", logit, target, hidden)
        assert changed[i, 0] == scores[i, 0]
    with pytest.raises(InputError, match="unknown calibration 'isotonic'"):
        cross_fitted_scores("isotonic", logit, target, mask)  # type: ignore[arg-type]


def test_negative_log_likelihood__by_hand() -> None:
    score, target = np.array([[0.8, 0.1], [0.5, 0.9]]), np.array([[1, 0], [0, 0]], np.uint8)
    mask = np.array([[1, 1], [1, 0]], np.uint8)
    assert negative_log_likelihood(score, target, mask) == pytest.approx(-np.log([0.8, 0.9, 0.5]).mean())
    assert math.isnan(negative_log_likelihood(score, target, np.zeros_like(mask)))


def slow_threshold_value(score: Any, truth: Any, t: float, wish: Any) -> float:
    """F1, or the recall where the precision is reached, of "yes" strictly above t."""
    said = score > t
    tp = int((said & (truth == 1)).sum())
    if wish == "f1":
        return 2 * tp / max(int(said.sum()) + int(truth.sum()), 1)
    return float(said.sum()) if said.any() and tp / said.sum() >= wish else -1.0


@given(case=one_class(), wish=st.sampled_from(["f1", 0.5, 0.9, 1.0]))
def test_fit_thresholds__no_other_cut_is_better(case: Any, wish: float | Literal["f1"]) -> None:
    score, target, mask = case
    (found,) = fit_thresholds(score[:, None], target[:, None], mask[:, None], wish)
    assert 0 <= found <= 1
    assert np.float32(found) == found
    values, truth = score[mask == 1], target[mask == 1]
    reached = slow_threshold_value(values, truth, found, wish)
    for t in (0.0, *values):
        if truth.any():
            assert slow_threshold_value(values, truth, float(t), wish) <= max(reached, 0) + 1e-12
    if not truth.any():
        assert found == (0.5 if wish == "f1" else 1.0)
    elif wish != "f1" and reached < 0:
        assert found == 1.0


def test_fit_thresholds__half_way_and_never_through_equal_scores() -> None:
    score = np.array([[0.9], [0.6], [0.6], [0.2]], np.float32)
    target = np.array([[1], [1], [0], [0]], np.uint8)
    mask = np.ones_like(target)
    assert fit_thresholds(score, target, mask, "f1")[0] == pytest.approx(0.4, abs=1e-6)
    assert fit_thresholds(score, target, mask, 1.0)[0] == pytest.approx(0.75, abs=1e-6)
    assert fit_thresholds(score, 1 - target, mask, 1.0)[0] == 1.0
    with pytest.raises(InputError, match="above 0 and at most 1"):
        fit_thresholds(score, target, mask, 1.5)


def test_calibration__apply_is_the_formula_of_the_model_file() -> None:
    found = Calibration(np.array([2.0]), np.array([-1.0]), "platt").apply(
        np.array([[1.0], [-800.0]], np.float32)
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], [1 / (1 + math.exp(-1)), 0])
