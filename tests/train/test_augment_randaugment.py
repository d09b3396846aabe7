import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from train import augment
from train import augment_randaugment as randaugment
from train.config import AugmentConfig

SIDE = 32


def photographs(count: int) -> torch.Tensor:
    """uint8[n, S, S, 3]: smooth waves of different ranges; the last has a channel of one level alone."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = [
        120 + 10 * i + (40 + 20 * i) * np.sin(4 * x + i) * np.cos(3 * y + c)
        for i in range(count)
        for c in range(3)
    ]
    images = np.stack(waves).reshape(count, 3, SIDE, SIDE).transpose(0, 2, 3, 1).clip(0, 255).round()
    images[-1, :, :, 1] = 77
    return torch.from_numpy(np.ascontiguousarray(images.astype(np.uint8)))


def changed(name: str, batch: torch.Tensor, level: float) -> np.ndarray:
    x = augment.to_float(batch).clone(memory_format=torch.preserve_format)
    changes = torch.full((len(batch), 1), randaugment.OPS.index(name))
    out = randaugment.change_colours(x, changes, torch.full((len(batch), 1), level))
    assert out.is_contiguous(memory_format=torch.channels_last)
    return out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("level", [-0.8, -0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "enhancer", "tolerance"),
    [
        ("colour", ImageEnhance.Color, 2.0),
        ("contrast", ImageEnhance.Contrast, 2.0),
        ("brightness", ImageEnhance.Brightness, 1.0),
        ("sharpness", ImageEnhance.Sharpness, 2.0),
    ],
)
def test_change_colours__enhancements_agree_with_pillow(
    name: str, enhancer: type[ImageEnhance.Color], tolerance: float, level: float
) -> None:
    """Pillow works in whole levels, which the factor up to 1.9 stretches."""
    batch = photographs(4)
    got = changed(name, batch, level)
    want = np.stack([enhancer(Image.fromarray(p)).enhance(1 + 0.9 * level) for p in batch.numpy()])
    np.testing.assert_allclose(got, want, atol=tolerance)
    assert np.abs(got - batch.numpy()).max() > 10 or name == "sharpness"


@pytest.mark.parametrize("level", [0.25, -0.75, 1.0])
@pytest.mark.parametrize("name", ["solarize", "posterize", "autocontrast", "equalize"])
def test_change_colours__tables_agree_with_pillow(name: str, level: float) -> None:
    batch = photographs(4)
    reference = {
        "solarize": lambda image: ImageOps.solarize(image, int(256 * (1 - abs(level)))),
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * abs(level))),
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }[name]
    want = np.stack([reference(Image.fromarray(p)) for p in batch.numpy()])
    got = changed(name, batch, level)
    # Pillow's autocontrast cuts fractions off; the others are exact.
    np.testing.assert_allclose(got, want, atol=1.01 if name == "autocontrast" else 0)
    assert not np.array_equal(got, batch.numpy())


def test_change_colours__only_the_images_that_drew_it() -> None:
    batch = photographs(6)
    x = augment.to_float(batch)
    changes = torch.tensor([[randaugment.OPS.index(name)] for name in ("identity", "rotate", "solarize") * 2])
    out = randaugment.change_colours(x.clone(), changes, torch.full((6, 1), 1.0))
    assert torch.equal(out[[0, 1, 3, 4]], x[[0, 1, 3, 4]])
    assert torch.equal(out[[2, 5]], 255 - x[[2, 5]])


def test_change_colours__in_the_drawn_order() -> None:
    """Solarizing everything and then keeping 4 bits is not the same as the other way round."""
    x = augment.to_float(photographs(2))
    both = [randaugment.OPS.index("solarize"), randaugment.OPS.index("posterize")]
    got = randaugment.change_colours(x.clone(), torch.tensor([both, both[::-1]]), torch.ones(2, 2))
    torch.testing.assert_close(got[0], ((255 - x[0]) / 16).floor() * 16)
    torch.testing.assert_close(got[1], 255 - (x[1] / 16).floor() * 16)


# Pillow's affine map of pixel positions (a b c; d e f), from output to input, about the image's corner.
SHEAR, TURN = 0.3 * 0.8, np.radians(30 * 0.8)
MAPS = {
    "shear_x": [[1, SHEAR], [0, 1]],
    "shear_y": [[1, 0], [SHEAR, 1]],
    "rotate": [[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]],
    "translate_x": [[1, 0], [0, 1]],
    "translate_y": [[1, 0], [0, 1]],
}


@pytest.mark.parametrize("name", MAPS)
def test_apply__geometry_agrees_with_pillow(name: str) -> None:
    batch = photographs(2)
    found = only(name, 2)
    got = augment.apply(batch, found).permute(0, 2, 3, 1).numpy()
    matrix = np.array(MAPS[name])
    middle = np.full(2, SIDE / 2)
    move = np.array([name == "translate_x", name == "translate_y"]) * 0.45 * 0.8 * SIDE
    shift = middle - matrix @ middle + move
    coefficients = [*matrix[0], shift[0], *matrix[1], shift[1]]
    inner = slice(6, 20)  # what no map here fetches from beyond the edge
    for image, mine in zip(batch.numpy(), got, strict=True):
        want = Image.fromarray(image).transform(
            (SIDE, SIDE), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
        )
        np.testing.assert_allclose(mine[inner, inner], np.asarray(want)[inner, inner], atol=1.0)
    assert np.abs(got - batch.numpy())[:, inner, inner].max() > 4


def test_apply__rotation_turns_the_way_pillow_does() -> None:
    batch = photographs(1)
    got = augment.apply(batch, only("rotate", 1))[0].permute(1, 2, 0).numpy()
    want = np.asarray(Image.fromarray(batch[0].numpy()).rotate(24, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(got[8:24, 8:24], want[8:24, 8:24], atol=1.0)


def test_apply__geometry_comes_after_crop_and_flip() -> None:
    """Moving right by part of the *cropped* image, in the direction that is right after the flip."""
    batch = photographs(1)
    config = AugmentConfig(crop="multiscale", scales=(0.5,), flip=1.0, brightness=0, contrast=0)
    base = augment.draw(config, 1, torch.Generator().manual_seed(3))
    maps = torch.eye(3).unsqueeze(0)
    maps[:, 0, 2] = 0.5
    moved = augment.Draws(base.affine @ maps, base.gain, base.offset)
    still, got = augment.apply(batch, base), augment.apply(batch, moved)
    torch.testing.assert_close(got[..., : SIDE * 3 // 4], still[..., SIDE // 4 :])


def only(name: str, count: int) -> augment.Draws:
    """Draws of that one change with a level of +0.8."""
    index = randaugment.OPS.index(name)
    u = torch.full((2, 1, count), (index + 0.5) / len(randaugment.OPS))
    u[1] = 0.9
    maps, changes, levels = randaugment.draw_randaugment(1, 8.0, u)
    assert torch.equal(changes, torch.full((count, 1), index))
    neutral = torch.ones(count, 1, 1, 1)
    return augment.Draws(maps[:, :2], neutral, neutral - 1, None, changes, levels)


def test_draw_randaugment__every_change_and_both_signs_are_drawn_alike() -> None:
    u = torch.rand(2, 2, 7000, generator=torch.Generator().manual_seed(0))
    _, changes, levels = randaugment.draw_randaugment(2, 5.0, u)
    share = torch.bincount(changes.flatten(), minlength=14) / changes.numel()
    np.testing.assert_allclose(share, 1 / 14, atol=0.01)
    assert set(levels.unique().tolist()) == {-0.5, 0.5}
    assert abs(float(levels.mean())) < 0.02


def test_draw_randaugment__magnitude_zero_changes_no_geometry_and_no_strength() -> None:
    u = torch.rand(2, 4, 200, generator=torch.Generator().manual_seed(0))
    maps, changes, levels = randaugment.draw_randaugment(4, 0.0, u)
    assert torch.equal(maps, torch.eye(3).expand(200, 3, 3))
    x = augment.to_float(photographs(200))
    keeps = ~torch.isin(
        changes, torch.tensor([randaugment.OPS.index(n) for n in ("autocontrast", "equalize")])
    )
    rows = keeps.all(dim=1)
    got = randaugment.change_colours(x.clone(), changes, levels)
    torch.testing.assert_close(got[rows], x[rows])
