import numpy as np
import numpy.typing as npt
import pytest

from data.errors import InputError
from data.split import stratified_split

Bits = npt.NDArray[np.uint8]


def long_tailed(images: int, seed: int) -> tuple[Bits, Bits]:
    """Twenty classes from about half of the images down to a handful, a few pairs ignored."""
    random = np.random.default_rng(seed)
    share = 0.5 * 0.75 ** np.arange(20)
    target = (random.random((images, 20)) < share).astype(np.uint8)
    mask = (random.random((images, 20)) > 0.03).astype(np.uint8)
    return target * mask, mask


def test_stratified_split__every_image_once_and_sorted() -> None:
    target, mask = long_tailed(500, 0)
    train, selection = stratified_split(target, mask, 0.15, 0)
    assert train.dtype == selection.dtype == np.int64
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(selection) > 0)
    assert sorted([*train, *selection]) == list(range(500))
    assert abs(len(selection) - 75) <= 5


@pytest.mark.parametrize("fraction", [0.15, 0.5, 0.8])
def test_stratified_split__each_class_keeps_its_share(fraction: float) -> None:
    target, mask = long_tailed(2000, 1)
    _, selection = stratified_split(target, mask, fraction, 0)
    total, held = target.sum(axis=0), target[selection].sum(axis=0)
    # For comparison: a random split has a standard deviation of 11 on the commonest class (at 0.15).
    assert np.max(np.abs(held - fraction * total)) <= 3


def test_stratified_split__same_seed_same_split() -> None:
    target, mask = long_tailed(300, 2)
    first, again, other = (stratified_split(target, mask, 0.2, seed)[1].tolist() for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(5))
def test_stratified_split__rare_classes_stand_on_both_sides(seed: int) -> None:
    random = np.random.default_rng(seed)
    target = np.zeros((60, 8), dtype=np.uint8)
    for column in range(8):
        target[random.choice(60, size=2 + column // 3, replace=False), column] = 1
    train, selection = stratified_split(target, np.ones_like(target), 0.15, seed)
    assert target[train].any(axis=0).all()
    assert target[selection].any(axis=0).all()


def test_stratified_split__a_move_robs_no_other_class() -> None:
    # Classes 0 and 1 share image 0: to move it for class 0 would take the only positive of class 1 along.
    target = np.zeros((40, 2), dtype=np.uint8)
    target[[0, 1], 0] = 1
    target[[0, 2], 1] = 1
    for seed in range(20):
        train, selection = stratified_split(target, np.ones_like(target), 0.1, seed)
        assert target[train].any(axis=0).all()
        assert target[selection].any(axis=0).all()


def test_stratified_split__single_positive_stays_in_train() -> None:
    target = np.zeros((40, 1), dtype=np.uint8)
    target[7] = 1
    train, _ = stratified_split(target, np.ones_like(target), 0.15, 0)
    assert 7 in train


def test_stratified_split__ignored_pairs_do_not_count() -> None:
    target, _ = long_tailed(200, 3)
    mask = np.ones_like(target)
    mask[:100, 0] = 0
    with_ones = target.copy()
    with_ones[:100, 0] = 1  # what stands under the mask must not matter
    without = target.copy()
    without[:100, 0] = 0
    first, second = (stratified_split(labels, mask, 0.2, 0)[1].tolist() for labels in (with_ones, without))
    assert first == second


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_stratified_split__neither_part_is_empty(fraction: float) -> None:
    empty = np.zeros((3, 2), dtype=np.uint8)
    train, selection = stratified_split(empty, np.ones_like(empty), fraction, 0)
    assert len(train) >= 1
    assert len(selection) >= 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 15, float("nan")])
def test_stratified_split__bad_fraction(fraction: float) -> None:
    labels = np.ones((4, 1), dtype=np.uint8)
    with pytest.raises(InputError, match="the selection fraction must be between 0 and 1, got"):
        stratified_split(labels, labels, fraction, 0)


def test_stratified_split__one_image() -> None:
    labels = np.ones((1, 1), dtype=np.uint8)
    with pytest.raises(InputError, match="at least two images, got 1"):
        stratified_split(labels, labels, 0.5, 0)
