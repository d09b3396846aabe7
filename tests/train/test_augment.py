import numpy as np
import pytest
import torch

from train import augment
from train.config import AugmentConfig

STILL = AugmentConfig(min_area=1.0, aspect=1.0, flip=0.0, brightness=0.0, contrast=0.0)


def pixels(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    )


def draws(config: AugmentConfig, count: int) -> augment.Draws:
    return augment.draw(config, count, torch.Generator().manual_seed(7))


def test_apply__without_any_change_returns_the_pixels() -> None:
    batch = pixels()
    got = augment.apply(batch, draws(STILL, 3))
    torch.testing.assert_close(got, augment.to_float(batch), atol=2e-3, rtol=0)


def test_apply__flip_mirrors_left_and_right() -> None:
    batch = pixels()
    config = AugmentConfig(min_area=1.0, aspect=1.0, flip=1.0, brightness=0.0, contrast=0.0)
    got = augment.apply(batch, draws(config, 3))
    torch.testing.assert_close(got, augment.to_float(batch).flip(3), atol=2e-3, rtol=0)


def test_apply__crop_stays_inside_the_image() -> None:
    """A grid that never leaves [-1, 1] needs no padding: a constant frame would show."""
    found = draws(AugmentConfig(min_area=0.2, aspect=2.0), 500).affine
    reach = found[:, [0, 1], [0, 1]].abs() + found[:, :, 2].abs()
    assert float(reach.max()) <= 1 + 1e-6
    area = (found[:, 0, 0] * found[:, 1, 1]).abs()
    assert float(area.min()) >= 0.1
    assert float(area.max()) > 0.9


def test_apply__colours_stay_in_range() -> None:
    got = augment.apply(pixels(8), draws(AugmentConfig(brightness=0.9, contrast=0.9), 8))
    assert float(got.min()) >= 0
    assert float(got.max()) <= 255


@pytest.mark.parametrize("world", [2, 4])
def test_rows__shares_of_processes_make_the_whole(world: int) -> None:
    batch, whole = pixels(8), draws(AugmentConfig(), 8)
    share = 8 // world
    parts = [
        augment.apply(batch[r * share : (r + 1) * share], whole.rows(r * share, (r + 1) * share))
        for r in range(world)
    ]
    assert torch.equal(torch.cat(parts), augment.apply(batch, whole))
