"""Where an image is cut out of the square it was squashed to: the crop policies."""

import math

import torch
from torch import Tensor

from train.config import AugmentConfig

# Centres of the fixed crops as shares of the way from the middle to the edge: the middle, the four corners,
# the middles of the four sides, and half-way to the corners (`fill_more_fix_crop` of Wang et al. 2015).
_POSITIONS = (
    *((0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)),
    *((-1, 0), (1, 0), (0, 1), (0, -1)),
    *((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
)


def draw_crops(config: AugmentConfig, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sides and centres of the crops, as affine maps need them.

    "area" is the crop of Inception (Szegedy et al. 2015, arXiv:1409.4842): area uniform in [min_area, 1], the
    logarithm of the aspect ratio uniform, position uniform inside the image. "multiscale" is the crop of
    Wang et al. 2015 (arXiv:1507.02159), usual in multi-label code such as ML-GCN (there with scale_distort 2):
    a pair of scales for width and height that lie at most `scale_distort` steps apart, at one of 13 positions.

    Args:
        u: uniform float[4, B]: for width and height the first two, for the position the last two.

    Returns:
        float[B, 2] each, x before y: sides as shares of the image's side, centres in [-1, 1].
    """
    if config.crop == "none":
        return torch.ones(u.shape[1], 2), torch.zeros(u.shape[1], 2)
    if config.crop == "multiscale":
        scales = config.scales
        pairs = [
            (width, height)
            for i, height in enumerate(scales)
            for j, width in enumerate(scales)
            if abs(i - j) <= config.scale_distort
        ]
        sides = torch.tensor(pairs)[pick(u[0], len(pairs))]
        return sides, torch.tensor(_POSITIONS)[pick(u[2], len(_POSITIONS))] * (1 - sides)
    area = config.min_area + (1 - config.min_area) * u[0]
    ratio = torch.exp((2 * u[1] - 1) * math.log(config.aspect))
    sides = torch.stack([torch.sqrt(area * ratio), torch.sqrt(area / ratio)], dim=1).clamp(max=1)
    return sides, (2 * u[2:].T - 1) * (1 - sides)


def pick(u: Tensor, count: int) -> Tensor:
    """int64, each of 0..count-1 alike often, from uniform numbers in [0, 1) of any shape."""
    # A number just below 1 times the count can round up to the count in float32.
    return (u * count).long().clamp(max=count - 1)


def draw_boxes(side: Tensor, u: Tensor) -> Tensor:
    """Boxes float[B, 4] (left, top, right, bottom; shares of the image) of `side` float[B] around centres u[2, B].

    Centres are uniform over the image and what hangs over is cut off, as in Cutout and CutMix. A side of 0
    gives an empty box.
    """
    low, high = (u - side / 2).clamp(min=0), (u + side / 2).clamp(max=1)
    return torch.cat([low, high]).T


def inside(boxes: Tensor, size: int) -> Tensor:
    """float[B, size, 3 * size]: 1 for the pixels of an image inside boxes float[B, 4], to the nearest pixel; else 0.

    Each pixel's three channels lie side by side, as channels-last images do: one number for the three would be
    read three times as slowly.
    """
    at = torch.arange(size, device=boxes.device)
    left, top, right, bottom = (boxes * size).round().T.unsqueeze(2)
    rows: Tensor = ((at >= top) & (at < bottom)).float()
    columns: Tensor = ((at >= left) & (at < right)).float().repeat_interleave(3, dim=1)
    return rows.unsqueeze(2) * columns.unsqueeze(1)


def lines(x: Tensor) -> Tensor:
    """float[B, 3, S, S] -> float[B, S, 3 * S], as `inside`; the same memory where it is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(2)
