import colorsys
from itertools import pairwise

import numpy as np
import pytest
import torch

from data.errors import InputError
from train import augment
from train.config import AugmentConfig, TrainConfig
from train.config_files import override

FIRST_RELEASE = [147.9457, 185.33, 129.3547]
STILL = AugmentConfig(min_area=1.0, aspect=1.0, flip=0.0, brightness=0.0, contrast=0.0)
EVERYTHING = AugmentConfig(
    saturation=0.3,
    hue=0.1,
    randaugment_ops=3,
    randaugment_magnitude=9,
    cutout=0.5,
    cutout_probability=0.7,
    mixup=0.4,
    cutmix=1.0,
    mix_probability=0.8,
)


def still(**changes: object) -> AugmentConfig:
    plain = {"crop": "none", "flip": 0.0, "brightness": 0.0, "contrast": 0.0}
    return AugmentConfig(**(plain | changes))  # type: ignore[arg-type]


def pixels(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    )


def smooth_pixels(count: int, size: int) -> torch.Tensor:
    """Images without edges, on which two bilinear readers agree although they round differently."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [128 + 100 * np.sin(3 * x + i) * np.cos(2 * y + c) for i in range(count) for c in range(3)]
    images = np.stack(waves).reshape(count, 3, size, size).transpose(0, 2, 3, 1)
    return torch.from_numpy(np.ascontiguousarray(images.round().astype(np.uint8)))


def draws(config: AugmentConfig, count: int, seed: int = 7) -> augment.Draws:
    return augment.draw(config, count, torch.Generator().manual_seed(seed))


def test_apply__without_any_change_returns_the_pixels() -> None:
    batch = pixels()
    got = augment.apply(batch, draws(STILL, 3))
    torch.testing.assert_close(got, augment.to_float(batch), atol=2e-3, rtol=0)


def test_apply__defaults_give_the_numbers_of_the_first_release() -> None:
    """Published figures were trained with these crops: the order of the random numbers must stay."""
    u = torch.rand(7, 5, generator=torch.Generator().manual_seed(7))
    found = draws(AugmentConfig(), 5)
    width = torch.sqrt((0.35 + 0.65 * u[0]) * torch.exp((2 * u[1] - 1) * np.log(1.33))).clamp(max=1)
    torch.testing.assert_close(found.affine[:, 0, 0], torch.where(u[2] < 0.5, -width, width))
    torch.testing.assert_close(found.affine[:, 0, 2], (2 * u[3] - 1) * (1 - width))
    torch.testing.assert_close(found.gain.flatten(), 1 + (2 * u[6] - 1) * 0.2)
    values = [round(float(v), 4) for v in augment.apply(pixels(5), found)[[0, 2, 4], [0, 1, 2], 3, 5]]
    assert values == FIRST_RELEASE


@pytest.mark.parametrize("crop", ["none", "area", "multiscale"])
def test_apply__flip_mirrors_left_and_right(crop: str) -> None:
    batch = pixels()
    config = still(crop=crop, flip=1.0, min_area=1.0, aspect=1.0, scales=(1.0,))
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


@pytest.mark.parametrize(("distort", "shapes"), [(0, 3), (1, 7), (2, 9)])
def test_apply__multiscale_crops_are_the_fixed_ones(distort: int, shapes: int) -> None:
    config = still(crop="multiscale", scales=(1.0, 0.75, 0.5), scale_distort=distort)
    affine = draws(config, 3000).affine
    sides, centres = affine[:, [0, 1], [0, 1]], affine[:, :, 2]
    assert len(torch.unique(sides, dim=0)) == shapes
    small = (sides == 0.5).all(dim=1)
    assert set(torch.unique(centres[small]).tolist()) == {-0.5, -0.25, 0.0, 0.25, 0.5}
    assert len(torch.unique(centres[small], dim=0)) == 13


def test_apply__multiscale_crop_is_a_piece_of_the_image() -> None:
    """Half the side in a corner at half the size is the pixels themselves."""
    batch = pixels(200)
    found = draws(still(crop="multiscale", scales=(0.5,)), 200)
    got = augment.apply(batch, found, size=8)
    corner = (found.affine[:, :, 2] == torch.tensor([0.5, -0.5])).all(dim=1)
    assert corner.any()
    want = augment.to_float(batch)[corner][:, :, :8, 8:]
    torch.testing.assert_close(got[corner], want, atol=2e-3, rtol=0)


def test_apply__half_the_size_averages_four_pixels() -> None:
    batch = pixels(2)
    got = augment.apply(batch, draws(still(), 2), size=8)
    want = torch.nn.functional.avg_pool2d(augment.to_float(batch), 2)
    torch.testing.assert_close(got, want, atol=2e-3, rtol=0)


def test_apply__colours_stay_in_range() -> None:
    for config in (AugmentConfig(brightness=0.9, contrast=0.9), EVERYTHING):
        got = augment.apply(pixels(64), draws(config, 64))
        assert float(got.min()) >= 0
        assert float(got.max()) <= 255


@pytest.mark.parametrize("size", [None, 12])
def test_apply__keeps_channels_last(size: int | None) -> None:
    got = augment.apply(pixels(8), draws(EVERYTHING, 8), size)
    assert got.shape == (8, 3, size or 16, size or 16)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_apply__hue_and_saturation_turn_and_stretch_in_yiq() -> None:
    batch = torch.from_numpy(np.random.default_rng(1).integers(100, 156, (4, 6, 6, 3)).astype(np.uint8))
    config = still(saturation=0.5, hue=0.25)
    u = torch.rand(2, 4, generator=after_base(4))
    got = augment.apply(batch, draws(config, 4))
    for i in range(4):
        stretch, angle = 1 + (2 * u[0, i] - 1) * 0.5, (2 * u[1, i] - 1) * 0.25 * 2 * np.pi
        y, a, b = colorsys.rgb_to_yiq(*(batch[i, 2, 3] / 255).tolist())
        turned = stretch * complex(a, b) * np.exp(1j * float(angle))
        want = colorsys.yiq_to_rgb(y, float(turned.real), float(turned.imag))
        # colorsys rounds the matrix to two digits.
        np.testing.assert_allclose(got[i, :, 2, 3] / 255, want, atol=0.01)


def after_base(count: int, seed: int = 7) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    torch.rand(7, count, generator=generator)
    return generator


def test_apply__cutout_blanks_a_square_of_the_asked_share() -> None:
    """Off the centre a square is cut at the edge; over many images the area is that of the clipped squares."""
    found = draws(still(cutout=0.5, cutout_probability=0.8), 400)
    batch = torch.zeros(400, 16, 16, 3, dtype=torch.uint8)
    got = augment.apply(batch, found)
    blank = (got - torch.tensor(augment.BLANK).view(1, 3, 1, 1)).abs().amax(dim=1) < 1e-3
    assert torch.equal(blank, got.amax(dim=1) > 1)
    rows, columns = blank.any(dim=2).sum(dim=1), blank.any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, blank.sum(dim=(1, 2)))
    assert int(rows.max()) == 8
    assert int(rows[rows > 0].min()) >= 4
    assert 0.72 < float((rows > 0).float().mean()) < 0.88


@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING], ids=["default", "everything"])
@pytest.mark.parametrize("cuts", [(0, 8), (0, 4, 8), (0, 2, 4, 6, 8), (0, 1, 7, 8)])
def test_rows__shares_of_processes_make_the_whole(config: AugmentConfig, cuts: tuple[int, ...]) -> None:
    batch, whole = pixels(8), draws(config, 8)
    target = torch.arange(24.0).view(8, 3) / 24
    mask = (torch.arange(24).view(8, 3) % 5 > 0).float()
    images = augment.apply(batch, whole)
    partner = whole.partner if whole.partner is not None else torch.arange(8)
    want = augment.mix(images, target, mask, images[partner], target[partner], mask[partner], whole)
    parts = []
    for first, last in pairwise(cuts):
        mine, other = whole.rows(first, last), partner[first:last]
        parts.append(
            augment.mix(
                augment.apply(batch[first:last], mine),
                target[first:last],
                mask[first:last],
                augment.apply(batch[other], whole.take(other)),
                target[other],
                mask[other],
                mine,
            )
        )
    for got, whole_batch in zip(zip(*parts, strict=True), want, strict=True):
        assert torch.equal(torch.cat(got), whole_batch)


def test_draw__same_seed_same_changes() -> None:
    batch = pixels(8)
    first, again = (augment.apply(batch, draws(EVERYTHING, 8)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment.apply(batch, draws(EVERYTHING, 8, seed=8)))


def test_draw__what_is_off_changes_no_other_number() -> None:
    plain = draws(AugmentConfig(), 8)
    for changes in ({"hue": 0.1}, {"cutout": 0.5}, {"mixup": 0.2}):
        found = draws(AugmentConfig(**changes), 8)
        assert torch.equal(found.affine, plain.affine)
        assert torch.equal(found.gain, plain.gain)


def mixed(
    config: AugmentConfig, count: int = 200
) -> tuple[augment.Draws, list[torch.Tensor], list[torch.Tensor]]:
    """Draws, what is mixed (pixels, target, mask), and what comes out. Image i is of one colour, i + 1."""
    found = draws(config, count)
    assert found.partner is not None
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 20, 20)
    target = (torch.rand(count, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    mask = (torch.rand(count, 5, generator=torch.Generator().manual_seed(2)) < 0.8).float()
    own = [images, target, mask]
    return found, own, list(augment.mix(*own, *(x[found.partner] for x in own), found))  # type: ignore[call-arg]


def test_mix__mixup_blends_pixels_and_targets_by_one_share() -> None:
    found, (images, target, mask), (got, soft, valid) = mixed(AugmentConfig(mixup=0.4))
    partner, lam = found.partner, found.lam
    assert partner is not None
    assert lam is not None
    share = lam.view(-1, 1)
    torch.testing.assert_close(soft, share * target + (1 - share) * target[partner])
    want = share * (torch.arange(200).view(-1, 1) + 1) + (1 - share) * (partner.view(-1, 1) + 1)
    torch.testing.assert_close(got, want.view(-1, 1, 1, 1).expand_as(images))
    assert torch.equal(valid, mask * mask[partner])
    assert 0.4 < float(lam.mean()) < 0.6
    # Var of Beta(0.4, 0.4) = 1 / (4 (2 * 0.4 + 1)) = 0.139.
    assert 0.11 < float(lam.var()) < 0.17


def test_mix__cutmix_share_is_that_of_the_pixels() -> None:
    found, (_, target, mask), (got, soft, valid) = mixed(AugmentConfig(cutmix=1.0))
    partner = found.partner
    assert partner is not None
    mine = got[:, 0] == (torch.arange(200.0) + 1).view(-1, 1, 1)
    theirs = got[:, 0] == (partner + 1.0).view(-1, 1, 1)
    assert torch.equal(mine, ~theirs | (partner == torch.arange(200)).view(-1, 1, 1))
    # The partner's part is one box.
    assert torch.equal(~mine, (~mine).any(1, keepdim=True) & (~mine).any(2, keepdim=True))
    share = mine.float().mean((1, 2)).view(-1, 1)
    torch.testing.assert_close(soft, share * target + (1 - share) * target[partner])
    assert torch.equal(valid, torch.where(share < 1, mask * mask[partner], mask))
    # lam uniform, side s = sqrt(1 - lam), on average s - s^2 / 4 of it inside: 1 - E[(s - s^2 / 4)^2] = 0.679.
    assert 0.64 < float(share.mean()) < 0.72


def test_mix__both_share_the_images_evenly_and_some_stay() -> None:
    config = AugmentConfig(mixup=0.4, cutmix=1.0, mix_probability=0.6)
    found, (images, target, mask), (got, soft, valid) = mixed(config, 1000)
    assert found.lam is not None
    assert found.box is not None
    unmixed = found.lam == 1
    assert 0.35 < float(unmixed.float().mean()) < 0.46
    cut = found.box[:, 2] > found.box[:, 0]
    assert 0.26 < float(cut.float().mean()) < 0.34
    assert torch.equal(got[unmixed], images[unmixed])
    assert torch.equal(soft[unmixed], target[unmixed])
    assert torch.equal(valid[unmixed], mask[unmixed])


def test_mix__takes_any_layout_and_leaves_the_images_themselves() -> None:
    found = draws(AugmentConfig(mixup=0.4, cutmix=1.0), 40)
    images, others = augment.to_float(pixels(40)), augment.to_float(pixels(41))[1:]
    label = torch.ones(40, 5)
    planes = augment.mix(images.contiguous(), label, label, others.contiguous(), label, label, found)[0]
    before = images.clone()
    got = augment.mix(images, label, label, others, label, label, found)[0]
    assert torch.equal(images, before)
    assert torch.equal(got, planes)
    assert not torch.equal(got, images)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_mix__partners_are_a_permutation() -> None:
    found = draws(AugmentConfig(mixup=0.4), 50)
    assert found.partner is not None
    assert torch.equal(found.partner.sort().values, torch.arange(50))
    assert not torch.equal(found.partner, torch.arange(50))


def test_mix__without_mixing_returns_the_same() -> None:
    images, target, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 5), torch.ones(2, 5)
    got = augment.mix(images, target, mask, images, target, mask, draws(AugmentConfig(), 2))
    assert all(a is b for a, b in zip(got, (images, target, mask), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": ()}, "augment.scales must name at least one scale"),
        ({"scales": (1.2,)}, "augment.scales must be in"),
        ({"hue": 0.6}, "augment.hue must be in"),
        ({"saturation": 1.0}, "augment.saturation must be in"),
        (
            {"randaugment_magnitude": 11.0},
            "augment.randaugment_magnitude must be between 0 and 10, but got 11",
        ),
        ({"cutout": 1.5}, "augment.cutout must be in"),
        ({"mixup": -1.0}, "augment.mixup must be in"),
        ({"mix_probability": 2.0}, "augment.mix_probability must be in"),
    ],
)
def test_config__wrong_values_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AugmentConfig(**changes)  # type: ignore[arg-type]


def test_config__crop_and_scales_come_from_a_file() -> None:
    got = override(TrainConfig(), {"augment": {"crop": "multiscale", "scales": [1, 0.5]}}, "file")
    assert got.augment.crop == "multiscale"
    assert got.augment.scales == (1.0, 0.5)
    with pytest.raises(InputError, match="multiscale"):
        override(TrainConfig(), {"augment": {"crop": "random"}}, "file")
