"""RandAugment in batches: Cubuk et al. 2020, arXiv:1909.13719, with the 14 changes of its table.

The geometric changes become part of the image's one affine map, so they cost nothing; pixels from beyond the
image are its mirror image (the paper's code fills with grey). The changes of colours follow in their drawn
order, each on the images that drew it alone. So geometry comes before colours, also where it was drawn later.

Strengths at magnitude 10 (in proportion below): shear 0.3, translation 0.45 of the side, rotation 30 degrees,
solarize from level 0, posterize to 4 bits, and colour, contrast, brightness and sharpness times 1 +- 0.9.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from train.augment_crops import pick

GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
# Weights of red, green and blue in the grey of an image (ITU-R BT.601, as Pillow's mode L).
GREY = (0.299, 0.587, 0.114)


def draw_randaugment(ops: int, magnitude: float, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From uniform numbers u[2, ops, B] the changes of B images.

    Returns:
        maps float[B, 3, 3] from output to input coordinates in [-1, 1]; changes int64[B, ops], the index in
        `OPS`; levels float[B, ops], magnitude / 10 with a random sign.
    """
    changes = pick(u[0], len(OPS)).T
    levels = torch.where(u[1] < 0.5, -magnitude / 10, magnitude / 10).T
    maps = torch.eye(3).repeat(len(changes), 1, 1)
    for slot in range(ops):
        maps = maps @ _maps(changes[:, slot], levels[:, slot])
    return maps, changes, levels


def _maps(change: Tensor, level: Tensor) -> Tensor:
    """The affine maps float[B, 3, 3] of one change each; the identity where it is not a geometric one."""
    level_of = {name: level * (change == i) for i, name in enumerate(GEOMETRY)}
    angle = level_of["rotate"] * math.radians(30)
    maps = torch.zeros(len(change), 3, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = torch.cos(angle)
    maps[:, 0, 1] = 0.3 * level_of["shear_x"] - torch.sin(angle)
    maps[:, 1, 0] = 0.3 * level_of["shear_y"] + torch.sin(angle)
    # Coordinates run over 2, so a share of the side counts twice.
    maps[:, 0, 2] = 0.9 * level_of["translate_x"]
    maps[:, 1, 2] = 0.9 * level_of["translate_y"]
    maps[:, 2, 2] = 1
    return maps


def grey(x: Tensor) -> Tensor:
    """float[n, 1, S, S]: the grey image."""
    red, green, blue = GREY
    return red * x[:, 0:1] + green * x[:, 1:2] + blue * x[:, 2:3]


def _blend(plain: Tensor, x: Tensor, level: Tensor) -> Tensor:
    """1 + 0.9 level parts of the image, the rest of a plainer one; beyond 1 it exaggerates."""
    return plain.lerp(x, 1 + 0.9 * level).clamp_(0, 255)


def brightness(x: Tensor, level: Tensor) -> Tensor:
    """Blend with black."""
    return (x * (1 + 0.9 * level)).clamp_(0, 255)


def contrast(x: Tensor, level: Tensor) -> Tensor:
    """Blend with the image's mean grey."""
    return _blend(grey(x).mean((2, 3), keepdim=True), x, level)


def colour(x: Tensor, level: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(grey(x), x, level)


def sharpness(x: Tensor, level: Tensor) -> Tensor:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, the border left as it is."""
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = box.add_(x[:, :, 1:-1, 1:-1], alpha=4).div_(13)
    return _blend(smooth, x, level)


def posterize(x: Tensor, level: Tensor) -> Tensor:
    """Keep the highest 8 to 4 bits of each level."""
    step = 2 ** (4 * level.abs()).round()
    return (x.round() / step).floor() * step


def solarize(x: Tensor, level: Tensor) -> Tensor:
    """Invert what lies at or above a level."""
    return torch.where(x >= 256 * (1 - level.abs()), 255 - x, x)


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the whole range; a channel of one level stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high <= low
    gain = torch.where(flat, 1, 255 / (high - low))
    return ((x - torch.where(flat, 0, low)) * gain).clamp_(0, 255)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Spread each channel's levels evenly, by Pillow's rule, which ignores the highest level when it counts."""
    count, channels, height, width = x.shape
    level = x.round().long().flatten(2)
    histogram = torch.zeros(count, channels, 256, dtype=torch.int64, device=x.device)
    histogram.scatter_add_(2, level, torch.ones_like(level))
    highest = level.amax(2, keepdim=True)
    step = (height * width - histogram.gather(2, highest)) // 255
    before = histogram.cumsum(2) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    spread = table.gather(2, level).to(x.dtype).view_as(x)
    return torch.where((step > 0).unsqueeze(3), spread, x)


_COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "solarize": solarize,
    "colour": colour,
    "posterize": posterize,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}
OPS = (*GEOMETRY, "identity", *_COLOURS)


def change_colours(x: Tensor, changes: Tensor, levels: Tensor) -> Tensor:
    """Apply the drawn changes of colours in place; x float[n, 3, S, S] in [0, 255], the others int64, float[n, ops]."""
    for change, level in zip(changes.T, levels.T, strict=True):
        for name, function in _COLOURS.items():
            rows = (change == OPS.index(name)).nonzero()[:, 0]
            if len(rows):
                at = rows.to(x.device)
                # Planes of one channel: a third of the time of channels-last for what looks at whole channels.
                x[at] = function(x[at].contiguous(), level[rows].to(x.device).view(-1, 1, 1, 1))
    return x
