import numpy as np
import pytest

from eval.intervals import bootstrap, interval
from eval.metrics import KINDS, average_precision, tail_curve, tailacc
from eval.ranking import rankings


def example(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 images, 3 classes, with ties, ignored pairs, and a rare class that some replicates lack."""
    rng = np.random.default_rng(seed)
    logit = np.round(rng.normal(size=(60, 3)) * 2, 1).astype(np.float32)
    target = (rng.uniform(size=(60, 3)) < [0.4, 0.1, 0.02]).astype(np.uint8)
    target[7, 2] = 1
    return logit, target, (rng.uniform(size=(60, 3)) < 0.9).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_bootstrap__a_replicate_is_the_metric_of_the_images_drawn(kind: str) -> None:
    logit, target, mask = example()
    ranked = list(rankings(logit, target, mask))
    curve = tailacc(ranked)
    found = bootstrap(ranked, 60, {"relative": curve}, replicates=25, seed=5)
    rng = np.random.default_rng(5)
    for b in range(25):
        rows = np.sort(rng.integers(60, size=60))
        drawn = logit[rows], target[rows], mask[rows]
        np.testing.assert_allclose(found.ap[kind][b], average_precision(*drawn, kind=kind), atol=1e-12)  # type: ignore[arg-type,index]
        again = tail_curve(list(rankings(*drawn)), curve.position, curve.threshold)
        np.testing.assert_allclose(found.tail["relative"][b], again.value, atol=1e-12)
    if kind == "voc2010":
        assert np.isnan(found.ap[kind][:, 2]).any()  # type: ignore[index]
        assert np.isfinite(found.mean_ap("voc2010")).all()


def test_bootstrap__chunks_and_order_of_rows_have_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    logit, target, mask = example()
    ids = [f"{i:02d}" for i in range(60)]
    whole = bootstrap(list(rankings(logit, target, mask, ids)), 60, replicates=20)
    monkeypatch.setattr("eval.intervals._BYTES_AT_ONCE", 60 * 3)
    rows = np.random.default_rng(1).permutation(60)
    part = bootstrap(
        list(rankings(logit[rows], target[rows], mask[rows], [ids[i] for i in rows])), 60, replicates=20
    )
    np.testing.assert_array_equal(whole.ap["voc2010"], part.ap["voc2010"])


def test_bootstrap__seeds_differ() -> None:
    ranked = list(rankings(*example()))
    one, two = (bootstrap(ranked, 60, replicates=5, seed=seed).mean_ap("voc2010") for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_bootstrap__class_without_images() -> None:
    logit, target, mask = example()
    mask[:, 1] = 0
    found = bootstrap(list(rankings(logit, target, mask)), 60, replicates=3)
    for kind in KINDS:
        assert np.isnan(found.ap[kind][:, 1]).all()
    np.testing.assert_array_equal(found.mean_ap("voc2010", [0]), found.ap["voc2010"][:, 0])


def test_bootstrap__interval_covers_the_truth_as_often_as_it_says() -> None:
    """Scores that rank by a known law: the AP of a large sample lies in about 95 % of the intervals."""

    def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        target = (rng.uniform(size=(count, 1)) < 0.3).astype(np.uint8)
        logit = (rng.normal(size=(count, 1)) + 1.5 * target).astype(np.float32)
        return logit, target, np.ones_like(target)

    truth = average_precision(*draw(400_000, 0), kind="sklearn")[0]
    inside = 0
    for seed in range(1, 101):
        found = bootstrap(
            list(rankings(*draw(400, seed))), 400, replicates=200, seed=seed, kinds=("sklearn",)
        )
        low, high = interval(found.mean_ap("sklearn"))
        inside += low <= truth <= high
    assert 86 <= inside <= 100


def test_interval__quantiles_and_missing() -> None:
    samples = np.stack([np.arange(1001.0), np.full(1001, np.nan)], axis=1)
    low, high = interval(samples)
    np.testing.assert_allclose(low, [25, np.nan])
    np.testing.assert_allclose(high, [975, np.nan])
