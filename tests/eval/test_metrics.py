"""Each metric against known small answers, a slow direct transcription of its definition, and scikit-learn."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from data.errors import InputError
from eval import metrics
from eval.metrics import average_precision, mean_average_precision
from eval.ranking import Ranking, rankings

Case = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[str]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Scores with many ties, labels, a mask, and ids in no order."""
    shape = (draw(st.integers(1, 24)), draw(st.integers(1, 4)))
    few = st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.25, 1.0, 1.5, 3.0])
    wide = st.floats(-50, 50, width=32)
    logit = draw(arrays(np.float32, shape, elements=draw(st.sampled_from([few, wide]))))
    target = draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    mask = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 1])))
    ids = draw(st.permutations([f"im{i:03d}" for i in range(shape[0])]))
    return logit, target, mask, list(ids)


def in_order(case: Case, c: int) -> list[tuple[float, int]]:
    """(score, label) of the images of class c that count, by descending score, then ascending id."""
    logit, target, mask, ids = case
    rows = [i for i in range(len(ids)) if mask[i, c]]
    rows.sort(key=lambda i: (-float(logit[i, c]), ids[i]))
    return [(float(logit[i, c]), int(target[i, c])) for i in rows]


def slow_ap(pairs: list[tuple[float, int]], kind: str) -> float:
    """The definitions, word by word."""
    positives = sum(y for _, y in pairs)
    if positives == 0:
        return math.nan
    tp = np.cumsum([y for _, y in pairs])
    precision = [tp[k] / (k + 1) for k in range(len(pairs))]
    recall = [tp[k] / positives for k in range(len(pairs))]
    if kind == "voc2010":
        total, before = 0.0, 0.0
        for r in recall:
            total += (r - before) * max(p for p, r2 in zip(precision, recall, strict=True) if r2 >= r)
            before = r
        return total
    if kind == "voc2007":
        points = []
        for i in range(11):
            at = [p for p, t in zip(precision, tp, strict=True) if 10 * t >= i * positives]
            points.append(max(at))
        return sum(points) / 11
    total, before = 0.0, 0.0
    for threshold in sorted({s for s, _ in pairs}, reverse=True):
        above = [y for s, y in pairs if s >= threshold]
        total += (sum(above) / positives - before) * sum(above) / len(above)
        before = sum(above) / positives
    return total


@pytest.mark.parametrize("kind", metrics.KINDS)
@given(case=cases())
def test_average_precision__agrees_with_the_definition(kind: Any, case: Case) -> None:
    logit, target, mask, ids = case
    ap = average_precision(logit, target, mask, ids, kind)
    assert ap.dtype == np.float64
    np.testing.assert_allclose(
        ap, [slow_ap(in_order(case, c), kind) for c in range(logit.shape[1])], atol=1e-12
    )


@given(case=cases())
def test_average_precision__agrees_with_scikit_learn(case: Case) -> None:
    logit, target, mask, ids = case
    ap = average_precision(logit, target, mask, ids, "sklearn")
    for c, value in enumerate(ap):
        valid = mask[:, c] == 1
        if target[valid, c].any():
            assert value == pytest.approx(
                average_precision_score(target[valid, c], logit[valid, c]), abs=1e-12
            )
        else:
            assert math.isnan(value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    # Ranked truth 1 0 1 1 0: precision at the hits 1, 2/3, 3/4; the envelope lifts 2/3 to 3/4.
    [
        ("voc2010", (1 + 3 / 4 + 3 / 4) / 3),
        ("voc2007", (4 * 1 + 7 * 3 / 4) / 11),
        ("sklearn", (1 + 2 / 3 + 3 / 4) / 3),
    ],
)
def test_average_precision__known_by_hand(kind: Any, expected: float) -> None:
    logit = np.array([[5], [4], [3], [2], [1]], np.float32)
    target = np.array([[1], [0], [1], [1], [0]], np.uint8)
    assert average_precision(logit, target, np.ones_like(target), kind=kind)[0] == pytest.approx(expected)


def test_average_precision__ties_by_ascending_image_id() -> None:
    logit, mask = np.zeros((2, 1), np.float32), np.ones((2, 1), np.uint8)
    target = np.array([[1], [0]], np.uint8)
    assert average_precision(logit, target, mask, ["a", "b"])[0] == 1.0
    assert average_precision(logit, target, mask, ["b", "a"])[0] == 0.5
    assert average_precision(logit, target, mask)[0] == 1.0


def test_average_precision__degenerate_classes() -> None:
    # no positive; all positive; all ignored; constant scores with one positive in four
    logit = np.array([[1, 1, 1, 7], [2, 2, 2, 7], [3, 3, 3, 7], [4, 4, 4, 7]], np.float32)
    target = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], np.uint8)
    mask = np.ones_like(target)
    mask[:, 2] = 0
    np.testing.assert_allclose(average_precision(logit, target, mask), [np.nan, 1, np.nan, 0.25])
    np.testing.assert_allclose(average_precision(logit, target, mask, kind="sklearn")[3], 0.25)
    assert mean_average_precision([np.nan, 1, np.nan, 0.25]) == (0.625, 2)


def test_mean_average_precision__no_class_has_one() -> None:
    mean, count = mean_average_precision([np.nan, np.nan])
    assert math.isnan(mean)
    assert count == 0


@given(case=cases(), data=st.data())
def test_average_precision__order_of_rows_has_no_influence(case: Case, data: st.DataObject) -> None:
    logit, target, mask, ids = case
    rows = data.draw(st.permutations(range(len(ids))))
    shuffled = average_precision(logit[rows], target[rows], mask[rows], [ids[i] for i in rows])
    np.testing.assert_array_equal(average_precision(logit, target, mask, ids), shuffled)


@given(case=cases())
def test_average_precision__monotone_map_has_no_influence(case: Case) -> None:
    logit, target, mask, ids = case
    # The place of each value among the distinct values: strictly monotone, and exact in float32.
    mapped = np.searchsorted(np.unique(logit), logit).astype(np.float32) ** 3 - 100
    for kind in metrics.KINDS:
        np.testing.assert_array_equal(
            average_precision(logit, target, mask, ids, kind),
            average_precision(mapped, target, mask, ids, kind),
        )


@given(case=cases(), data=st.data())
def test_all_metrics__ignored_pairs_have_no_influence(case: Case, data: st.DataObject) -> None:
    logit, target, mask, ids = case
    noise = data.draw(arrays(np.float32, logit.shape, elements=st.floats(-90, 90, width=32)))
    other_logit = np.where(mask == 1, logit, noise)
    other_target = np.where(mask == 1, target, 1 - target).astype(np.uint8)
    for kind in metrics.KINDS:
        np.testing.assert_array_equal(
            average_precision(logit, target, mask, ids, kind),
            average_precision(other_logit, other_target, mask, ids, kind),
        )
    one, two = (list(rankings(s, y, mask, ids)) for s, y in ((logit, target), (other_logit, other_target)))
    np.testing.assert_array_equal(metrics.tailacc(one).value, metrics.tailacc(two).value)
    np.testing.assert_array_equal(metrics.tailacc_absolute(one).value, metrics.tailacc_absolute(two).value)
    np.testing.assert_array_equal(metrics.accuracy(one), metrics.accuracy(two))
    np.testing.assert_array_equal(metrics.always_no_accuracy(one), metrics.always_no_accuracy(two))
    np.testing.assert_array_equal(
        metrics.per_sample_average_precision(logit, target, mask),
        metrics.per_sample_average_precision(other_logit, other_target, mask),
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_average_precision__score_that_is_not_finite_is_named(bad: float) -> None:
    logit = np.zeros((3, 2), np.float32)
    logit[1, 1] = bad
    bits = np.ones((3, 2), np.uint8)
    with pytest.raises(InputError, match=r"finite.*image 'b', class 'dog'"):
        average_precision(logit, bits, bits, ["a", "b", "c"], classes=["cat", "dog"])
    with pytest.raises(InputError, match="in row 1, class in column 1"):
        average_precision(logit, bits, bits)


def test_average_precision__wrong_shapes_and_values() -> None:
    logit, bits = np.zeros((3, 2), np.float32), np.ones((3, 2), np.uint8)
    with pytest.raises(InputError, match=r"\[3, 2\], \[2, 2\], \[3, 2\]"):
        average_precision(logit, bits[:2], bits)
    with pytest.raises(InputError, match="mask must hold 0 and 1 only, got 255"):
        average_precision(logit, bits, bits * 255)
    with pytest.raises(InputError, match="2 image ids for 3 rows"):
        average_precision(logit, bits, bits, ["a", "b"])
    with pytest.raises(InputError, match="unknown kind of average precision 'coco'"):
        average_precision(logit, bits, bits, kind="coco")  # type: ignore[arg-type]


def ranked(case: Case) -> list[Ranking]:
    return list(rankings(*case))


def slow_tail(pairs: list[tuple[float, int]], t: float) -> float:
    """Tailacc(t) as the definition says, with the prediction "positive" above the threshold 0."""
    tail = [(int(s > 0), y) for s, y in pairs if s > t]
    return sum(f == y for f, y in tail) / len(tail) if tail else math.nan


@given(case=cases())
def test_tailacc__agrees_with_the_definition(case: Case) -> None:
    curve = metrics.tailacc(ranked(case))
    num_classes = case[0].shape[1]
    assert curve.position.shape == (20,)
    expected = np.full((num_classes, 20), np.nan)
    share = np.full((num_classes, 20), np.nan)
    for c in range(num_classes):
        pairs = in_order(case, c)
        top = max((s for s, _ in pairs), default=0.0)
        if top > 0:
            for i, position in enumerate(curve.position):
                t = position * top
                expected[c, i] = slow_tail(pairs, t)
                share[c, i] = sum(s > t for s, _ in pairs) / len(pairs)
    np.testing.assert_allclose(curve.value, expected, atol=1e-12)
    np.testing.assert_array_equal(curve.num_classes, (~np.isnan(expected)).sum(axis=0))
    for i in range(20):
        if curve.num_classes[i]:
            assert curve.mean[i] == pytest.approx(np.nanmean(expected[:, i]))
            assert curve.coverage[i] == pytest.approx(np.nanmean(share[:, i]))
        else:
            assert math.isnan(curve.mean[i])
            assert curve.coverage[i] == 0


def test_tailacc__known_by_hand() -> None:
    # Above 0: logits 4 (yes), 3 (no), 1 (yes). The last point lies just below 4: one image, and it is right.
    logit = np.array([[4, -1], [3, -2], [1, -1], [-1, -4]], np.float32)
    target = np.array([[1, 1], [0, 0], [1, 0], [1, 1]], np.uint8)
    curve = metrics.tailacc(list(rankings(logit, target, np.ones_like(target))))
    assert curve.position[0] == 0
    assert 1 - 1e-5 < curve.position[-1] < 1
    assert curve.value[0, 0] == pytest.approx(2 / 3)
    assert curve.value[0, 10] == pytest.approx(1 / 2)  # t = 2.1
    assert curve.value[0, -1] == 1
    assert np.isnan(
        curve.value[1]
    ).all()  # no image of the second class is above the threshold: no tail, not 0
    assert list(curve.num_classes) == [1] * 20
    assert list(curve.num_images[[0, 10, -1]]) == [3, 2, 1]
    assert list(curve.coverage[[0, 10, -1]]) == [0.75, 0.5, 0.25]


def test_tailacc__strict_at_the_threshold() -> None:
    logit = np.array([[0.0], [-0.0], [2.0]], np.float32)
    target = np.array([[1], [1], [0]], np.uint8)
    curve = metrics.tailacc(list(rankings(logit, target, np.ones_like(target))))
    assert list(curve.above[0]) == [1] * 20
    assert list(curve.value[0]) == [0.0] * 20


@given(case=cases())
def test_tailacc_absolute__one_grid_for_all_classes(case: Case) -> None:
    curve = metrics.tailacc_absolute(ranked(case))
    for c in range(case[0].shape[1]):
        pairs = in_order(case, c)
        expected = [slow_tail(pairs, t) for t in curve.position]
        np.testing.assert_allclose(curve.value[c], expected, atol=1e-12)
    if any(s > 0 for c in range(case[0].shape[1]) for s, _ in in_order(case, c)):
        assert curve.num_classes[-1] >= 1  # the last point lies just below the highest of all


@given(case=cases(), threshold=st.sampled_from([-0.5, 0.0, 0.1, 1.0]))
def test_accuracy__agrees_with_counting(case: Case, threshold: float) -> None:
    with_threshold = metrics.accuracy(ranked(case), threshold)
    always_no = metrics.always_no_accuracy(ranked(case))
    for c in range(case[0].shape[1]):
        pairs = in_order(case, c)
        right = [int(s > threshold) == y for s, y in pairs]
        np.testing.assert_allclose(with_threshold[c], np.mean(right) if right else np.nan)
        np.testing.assert_allclose(always_no[c], np.mean([y == 0 for _, y in pairs]) if pairs else np.nan)


@given(case=cases())
def test_f1__agrees_with_counting(case: Case) -> None:
    pairs = [in_order(case, c) for c in range(case[0].shape[1])]
    pairs = [p for p in pairs if any(y for _, y in p)] or [[]]
    tp = [sum(y for s, y in p if s > 0) for p in pairs]
    said = [sum(s > 0 for s, _ in p) for p in pairs]
    true = [sum(y for _, y in p) for p in pairs]
    found = metrics.f1(ranked(case))
    if not sum(true):
        assert math.isnan(found.class_f1)
        return
    precision = float(np.mean([a / b if b else 0 for a, b in zip(tp, said, strict=True)]))
    recall = float(np.mean([a / b for a, b in zip(tp, true, strict=True)]))
    assert found.class_precision == pytest.approx(precision)
    assert found.class_recall == pytest.approx(recall)
    assert found.class_f1 == pytest.approx(2 * precision * recall / max(precision + recall, 1e-300))
    everywhere = sum(s > 0 for c in range(case[0].shape[1]) for s, _ in in_order(case, c))
    assert found.overall_precision == pytest.approx(sum(tp) / everywhere if everywhere else 0)
    assert found.overall_recall == pytest.approx(sum(tp) / sum(true))


def test_precision_at__cut_and_short_lists() -> None:
    logit = np.arange(10, 0, -1, dtype=np.float32)[:, None]
    target = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0, 0], np.uint8)[:, None]
    (ranking,) = rankings(logit, target, np.ones_like(target))
    assert metrics.precision_at(ranking, 4) == 0.75
    assert metrics.precision_at(ranking, 50) == 0.3
    assert metrics.precision_at_coverage(ranking, 0.10) == 1.0
    assert metrics.precision_at_coverage(ranking, 0.50) == pytest.approx(0.6)
    (empty,) = rankings(logit, np.zeros_like(target), np.ones_like(target))
    assert math.isnan(metrics.precision_at(empty, 4))


@given(case=cases())
def test_micro_average_precision__agrees_with_scikit_learn(case: Case) -> None:
    logit, target, mask, ids = case
    value = metrics.micro_average_precision(logit, target, mask, ids, "sklearn")
    valid = mask == 1
    if target[valid].any():
        assert value == pytest.approx(average_precision_score(target[valid], logit[valid]), abs=1e-12)
    else:
        assert math.isnan(value)


@given(case=cases())
def test_per_sample_average_precision__agrees_with_scikit_learn(case: Case) -> None:
    logit, target, mask, _ = case
    found = metrics.per_sample_average_precision(logit, target, mask)
    for i, value in enumerate(found):
        valid = mask[i] == 1
        if target[i, valid].any():
            expected = average_precision_score(target[i, valid], logit[i, valid])
            assert value == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(value)


@given(case=cases())
def test_ties__counts_groups_of_equal_scores(case: Case) -> None:
    for c, ranking in enumerate(ranked(case)):
        groups: dict[float, list[int]] = {}
        for s, y in in_order(case, c):
            groups.setdefault(s, []).append(y)
        tied = sum(len(g) for g in groups.values() if len(g) > 1)
        mixed = sum(len(g) for g in groups.values() if 0 < sum(g) < len(g))
        assert metrics.ties(ranking) == (tied, mixed)


@settings(max_examples=20)
@given(case=cases(), thresholds=st.lists(st.floats(-60, 60), min_size=1))
def test_above__strict_for_thresholds_between_float32_values(case: Case, thresholds: list[float]) -> None:
    for c, ranking in enumerate(ranked(case)):
        scores = [s for s, _ in in_order(case, c)]
        np.testing.assert_array_equal(ranking.score, np.array(scores, np.float32))
        for t in [*thresholds, *scores, *(s + 1e-12 for s in scores), *(s - 1e-12 for s in scores)]:
            assert ranking.above(t) == sum(s > t for s in scores)


def everything(case: Case) -> dict[str, Any]:
    """Every figure of a case that is one number or one number a class or point."""
    logit, target, mask, ids = case
    one = ranked(case)
    tail, absolute = metrics.tailacc(one), metrics.tailacc_absolute(one)
    return {
        **{kind: average_precision(logit, target, mask, ids, kind) for kind in metrics.KINDS},
        **{f"micro {kind}": metrics.micro_average_precision(*case, kind) for kind in metrics.KINDS},
        "tailacc": tail.value,
        "absolute": absolute.value,
        "coverage": tail.coverage,
        "area": metrics.tail_area(tail.mean, tail.position),
        "accuracy": metrics.accuracy(one),
        "always no": metrics.always_no_accuracy(one),
        "f1": np.array([getattr(metrics.f1(one), name) for name in metrics.F1.__slots__]),
        "first 3": np.array([metrics.precision_at(r, 3) for r in one]),
        "best half": np.array([metrics.precision_at_coverage(r, 0.5) for r in one]),
        "ties": np.array([metrics.ties(r) for r in one]),
    }


@settings(max_examples=40)
@given(case=cases(), data=st.data())
def test_everything__order_of_rows_and_ignored_pairs_have_no_influence(
    case: Case, data: st.DataObject
) -> None:
    logit, target, mask, ids = case
    rows = data.draw(st.permutations(range(len(ids))))
    noise = data.draw(arrays(np.float32, logit.shape, elements=st.floats(-90, 90, width=32)))
    other_logit = np.where(mask == 1, logit, noise)[rows]
    other_target = np.where(mask == 1, target, 1 - target).astype(np.uint8)[rows]
    other = other_logit, other_target, mask[rows], [ids[i] for i in rows]
    found, again = everything(case), everything(other)
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


@settings(max_examples=40)
@given(case=cases())
def test_everything__monotone_maps_leave_what_only_ranks(case: Case) -> None:
    logit, target, mask, ids = case
    # One strictly monotone map for all classes, exact in float32.
    mapped = np.searchsorted(np.unique(logit), logit).astype(np.float32) ** 3 - 100
    found, again = everything(case), everything((mapped, target, mask, ids))
    for name in (
        "voc2010",
        "micro voc2010",
        "micro voc2007",
        "micro sklearn",
        "first 3",
        "best half",
        "ties",
    ):
        np.testing.assert_array_equal(found[name], again[name], err_msg=name)


@given(case=cases())
def test_everything__is_a_share(case: Case) -> None:
    for name, value in everything(case).items():
        known = np.asarray(value)[~np.isnan(value)]
        assert name == "ties" or ((known >= 0) & (known <= 1)).all(), name


def test_everything__degenerate_classes() -> None:
    # no positive; all positive; all ignored; constant scores; nothing above the threshold
    logit = np.array([[1, 1, 1, 7, -1], [2, 2, 2, 7, -2], [3, 3, 3, 7, -3], [4, 4, 4, 7, -4]], np.float32)
    target = np.array([[0, 1, 1, 0, 1], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], np.uint8)
    mask = np.ones_like(target)
    mask[:, 2] = 0
    found = everything((logit, target, mask, ["a", "b", "c", "d"]))
    nan = math.nan
    np.testing.assert_array_equal(found["tailacc"][:, 0], [0, 1, nan, 0.25, nan])
    np.testing.assert_array_equal(found["accuracy"], [0, 1, nan, 0.25, 0.75])
    np.testing.assert_array_equal(found["always no"], [1, 0, nan, 0.75, 0.75])
    np.testing.assert_allclose(found["first 3"], [nan, 1, nan, 0, 1 / 3])
    np.testing.assert_array_equal(found["ties"], [[0, 0], [0, 0], [0, 0], [4, 4], [0, 0]])
    nobody = (logit, target, np.zeros_like(mask), ["a", "b", "c", "d"])
    for name in ("voc2010", "micro sklearn", "tailacc", "accuracy", "area"):
        assert np.isnan(everything(nobody)[name]).all(), name


def test_tail_area__trapezoids_over_what_is_known() -> None:
    position = np.array([0, 0.5, 1])
    curves = np.array([[0.5, 1, 1], [0.2, 0.4, np.nan], [np.nan, 0.7, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(metrics.tail_area(curves, position), [0.875, 0.3, 0.7, np.nan])
    assert metrics.tail_area(curves[0], position) == pytest.approx(0.875)
