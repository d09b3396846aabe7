"""Random changes of training images, in batches on the device.

The random numbers of a step are drawn on the CPU for the whole global batch from a generator seeded by
(seed, step); each process takes its rows. So the same image gets the same change on any number of
processes, and a resumed run goes on as if it had not stopped.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from train.config import AugmentConfig


@dataclass(frozen=True, slots=True)
class Draws:
    """The changes of B images: affine float[B, 2, 3]; gain, offset float[B, 1, 1, 1] on pixels in [0, 255]."""

    affine: Tensor
    gain: Tensor
    offset: Tensor

    def rows(self, first: int, last: int) -> "Draws":
        """The changes of images first..last-1."""
        return Draws(self.affine[first:last], self.gain[first:last], self.offset[first:last])


def draw(config: AugmentConfig, count: int, generator: torch.Generator) -> Draws:
    """Draw the changes of `count` images.

    The crop is that of Inception (Szegedy et al. 2015, arXiv:1409.4842): area uniform in [min_area, 1], the
    logarithm of the aspect ratio uniform, position uniform inside the image.
    """
    u = torch.rand(7, count, generator=generator)
    area = config.min_area + (1 - config.min_area) * u[0]
    ratio = torch.exp((2 * u[1] - 1) * math.log(config.aspect))
    width = torch.sqrt(area * ratio).clamp(max=1)
    height = torch.sqrt(area / ratio).clamp(max=1)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = torch.where(u[2] < config.flip, -width, width)
    affine[:, 1, 1] = height
    affine[:, 0, 2] = (2 * u[3] - 1) * (1 - width)
    affine[:, 1, 2] = (2 * u[4] - 1) * (1 - height)
    brightness = (2 * u[5] - 1) * config.brightness * 255
    gain = 1 + (2 * u[6] - 1) * config.contrast
    # Contrast turns about mid-grey, 127.5.
    offset = brightness + 127.5 * (1 - gain)
    return Draws(affine, gain.view(-1, 1, 1, 1), offset.view(-1, 1, 1, 1))


def to_float(pixels: Tensor) -> Tensor:
    """uint8[N, S, S, 3] -> float32[N, 3, S, S] in [0, 255], channels-last in memory (the layout is not copied)."""
    return pixels.permute(0, 3, 1, 2).float()


def apply(pixels: Tensor, draws: Draws) -> Tensor:
    """Change a batch: uint8[N, S, S, 3] -> float32[N, 3, S, S] in [0, 255]."""
    x = to_float(pixels)
    device = x.device
    grid = affine_grid(draws.affine.to(device), list(x.shape), align_corners=False)
    x = grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return (x * draws.gain.to(device) + draws.offset.to(device)).clamp(0, 255)
