"""The scores of the selection part: the file, the interval, and the comparison that noise must not decide."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from train.selection_scores import (
    SelectionScores,
    best_figures,
    compare_map,
    read_selection_scores,
    write_selection_scores,
)


def scores(seed: int, skill: float, images: int = 200, classes: int = 4, labels: int = 0) -> SelectionScores:
    truth = np.random.default_rng(labels)
    target = (truth.random((images, classes)) < 0.3).astype(np.uint8)
    mask = (truth.random((images, classes)) < 0.95).astype(np.uint8)
    noise = np.random.default_rng(seed).normal(size=target.shape)
    logit = (skill * target + noise).astype(np.float32)
    ids = tuple(f"image{i:04d}" for i in range(images))
    return SelectionScores(tuple("abcd"[:classes]), ids, target, mask, logit)


def test_file__gives_back_what_was_written(tmp_path: Path) -> None:
    before = scores(1, 1.0)
    write_selection_scores(tmp_path / "selection.npz", before)
    after = read_selection_scores(tmp_path / "selection.npz")
    assert (after.classes, after.image_ids) == (before.classes, before.image_ids)
    assert after.same_images(before)
    assert np.array_equal(after.logit, before.logit)
    figures = best_figures(tmp_path / "selection.npz")
    assert figures["best/map_low"] < before.map() < figures["best/map_high"]
    assert figures["best/ap/a"] == before.ap()[0]


def test_file__missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no selection\.npz"):
        read_selection_scores(tmp_path / "selection.npz")
    (tmp_path / "selection.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(InputError, match="is damaged"):
        read_selection_scores(tmp_path / "selection.npz")
    assert best_figures(tmp_path / "none.npz") == {}


def test_compare_map__tells_skill_from_noise() -> None:
    good, bad = [scores(s, 2.0) for s in (1, 2)], [scores(s, 0.5) for s in (3, 4)]
    assert compare_map(good, bad).verdict == 1
    assert compare_map(bad, good).verdict == -1
    same = compare_map([scores(5, 1.0)], [scores(6, 1.0)])
    assert same.low < 0 < same.high
    assert same.verdict == 0


def test_compare_map__of_a_model_with_itself_is_exactly_zero() -> None:
    one = scores(1, 1.0)
    assert dataclasses.astuple(compare_map([one], [one])) == (0.0, 0.0, 0.0)


def test_compare_map__holds_the_noise_of_the_seeds() -> None:
    # The same images; one side with seeds that differ much: its interval is the wider one.
    steady = compare_map([scores(1, 1.0)] * 3, [scores(9, 1.0)])
    varied = compare_map([scores(1, 0.5), scores(1, 1.0), scores(1, 2.0)], [scores(9, 1.0)])
    assert varied.high - varied.low > steady.high - steady.low


def test_compare_map__other_images_are_refused() -> None:
    with pytest.raises(InputError, match="same images"):
        compare_map([scores(1, 1.0)], [scores(1, 1.0, labels=7)])
