"""Random changes of training images, in batches on the device.

The random numbers of a step are drawn on the CPU for the whole global batch from a generator seeded by
(seed, step); each process takes its rows. So the same image gets the same change on any number of
processes, and a resumed run goes on as if it had not stopped.

Order: crop, flip and RandAugment's geometry as one affine map, read by one bilinear `grid_sample`; hue and
saturation; contrast and brightness; RandAugment's colours; cutout; then `mix` with another image.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from train.augment_crops import draw_boxes, draw_crops, inside, lines
from train.augment_randaugment import GREY, change_colours, draw_randaugment
from train.config import AugmentConfig

# What cutout leaves: the mean of ImageNet, which normalisation makes 0, as in the paper.
BLANK = (123.675, 116.28, 103.53)
# To NTSC's luma and the two axes of colour.
_YIQ = torch.tensor([GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])


@dataclass(frozen=True, slots=True)
class Draws:
    """The changes of B images, on the CPU. A field is None where no image has such a change.

    Attributes:
        affine: float[B, 2, 3] from output to input coordinates in [-1, 1].
        gain, offset: float[B, 1, 1, 1] on pixels in [0, 255].
        colour: float[B, 3, 3], a matrix on (red, green, blue).
        changes, levels: int64[B, K], float[B, K], see `train.augment_randaugment`.
        cutout: float[B, 4], the blanked box (left, top, right, bottom) as shares of the image; may be empty.
        partner: int64[B], the row of the global batch that each image is mixed with: a permutation.
        lam: float[B], the share that is kept of the image itself; 1 = not mixed.
        box: float[B, 4], what CutMix takes from the partner; empty where MixUp blends (or nothing is mixed).
    """

    affine: Tensor
    gain: Tensor
    offset: Tensor
    colour: Tensor | None = None
    changes: Tensor | None = None
    levels: Tensor | None = None
    cutout: Tensor | None = None
    partner: Tensor | None = None
    lam: Tensor | None = None
    box: Tensor | None = None

    def rows(self, first: int, last: int) -> "Draws":
        """The changes of images first..last-1; `partner` still counts in the global batch."""
        return self.take(slice(first, last))

    def take(self, index: slice | Tensor) -> "Draws":
        """The changes of the images `index` (int64[n]), such as those of the partners."""
        present = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: v[index] for name, v in present.items() if v is not None})


def draw(config: AugmentConfig, count: int, generator: torch.Generator) -> Draws:
    """Draw the changes of `count` images, the global batch."""
    u = torch.rand(7, count, generator=generator)
    sides, centres = draw_crops(config, u[[0, 1, 3, 4]])
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = torch.where(u[2] < config.flip, -sides[:, 0], sides[:, 0])
    affine[:, 1, 1] = sides[:, 1]
    affine[:, :, 2] = centres
    brightness = (2 * u[5] - 1) * config.brightness * 255
    gain = 1 + (2 * u[6] - 1) * config.contrast
    # Contrast turns about mid-grey, 127.5.
    offset = brightness + 127.5 * (1 - gain)
    # What is off draws nothing, so that a setting changes no other's numbers before it.
    colour = changes = levels = cutout = partner = lam = box = None
    if config.saturation or config.hue:
        colour = _colour_matrix(config, torch.rand(2, count, generator=generator))
    if config.randaugment_ops:
        u = torch.rand(2, config.randaugment_ops, count, generator=generator)
        maps, changes, levels = draw_randaugment(config.randaugment_ops, config.randaugment_magnitude, u)
        affine = affine @ maps
    if config.cutout:
        u = torch.rand(3, count, generator=generator)
        cutout = draw_boxes(config.cutout * (u[2] < config.cutout_probability), u[:2])
    if config.mixup or config.cutmix:
        partner, lam, box = _draw_mixing(config, count, generator)
    return Draws(
        affine,
        gain.view(-1, 1, 1, 1),
        offset.view(-1, 1, 1, 1),
        colour,
        changes,
        levels,
        cutout,
        partner,
        lam,
        box,
    )


def _colour_matrix(config: AugmentConfig, u: Tensor) -> Tensor:
    """float[B, 3, 3]: a turn about the grey axis (hue) and a stretch away from it (saturation), in YIQ."""
    stretch = 1 + (2 * u[0] - 1) * config.saturation
    angle = (2 * u[1] - 1) * config.hue * 2 * math.pi
    turn = torch.zeros(u.shape[1], 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = stretch * torch.cos(angle)
    turn[:, 2, 1] = stretch * torch.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    out: Tensor = torch.linalg.inv(_YIQ) @ turn @ _YIQ
    return out


def _draw_mixing(
    config: AugmentConfig, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """`partner`, `lam` and `box` of `Draws`.

    MixUp: Zhang et al. 2018, arXiv:1710.09412. CutMix: Yun et al. 2019, arXiv:1905.04899.
    """
    partner = torch.randperm(count, generator=generator)
    u = torch.rand(4, count, generator=generator)
    # torch draws from a Beta distribution only without a generator of ours.
    beta = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    even = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
    cut = u[0] < even
    alpha = np.where(cut.numpy(), config.cutmix, config.mixup)
    lam = torch.from_numpy(beta.beta(alpha, alpha)).float()
    lam = torch.where(u[1] < config.mix_probability, lam, 1)
    box = draw_boxes(torch.where(cut, (1 - lam).sqrt(), 0), u[2:])
    # The share that is left once the box has lost what hangs over the edge.
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    return partner, torch.where(cut, 1 - area, lam), box


def to_float(pixels: Tensor) -> Tensor:
    """uint8[N, S, S, 3] -> float32[N, 3, S, S] in [0, 255], channels-last in memory (the layout is not copied)."""
    return pixels.permute(0, 3, 1, 2).float()


def apply(pixels: Tensor, draws: Draws, size: int | None = None) -> Tensor:
    """Change a batch: uint8[N, S, S, 3] -> float32[N, 3, size, size] in [0, 255], channels-last in memory.

    Args:
        size: side of the result, None: S. Pixels are read bilinearly without a low-pass filter, which is
            exact averaging down to S / 2 for a whole image; below that fine patterns alias.
    """
    side = size or pixels.shape[1]
    out = torch.empty((len(pixels), 3, side, side), device=pixels.device, memory_format=torch.channels_last)
    for part in _parts(pixels):
        _change(pixels[part], draws.take(part), out[part])
    return out


def _parts(x: Tensor) -> list[slice]:
    """On a CPU a few images at a time: buffers that stay in the cache, and in the process, take half the time."""
    step = 4 * torch.get_num_threads() if x.device.type == "cpu" else len(x)
    return [slice(first, first + step) for first in range(0, len(x), step)]


def _change(pixels: Tensor, draws: Draws, out: Tensor) -> None:
    """`apply` for one part of the batch, into `out`."""
    device = out.device
    grid = _grid(draws.affine.to(device), out.shape[2])
    x = grid_sample(to_float(pixels), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if draws.colour is not None:
        x = torch.bmm(draws.colour.to(device), x.flatten(2)).view_as(x)
    # grid_sample leaves the channels-last layout; this pass goes back to it.
    torch.mul(x, draws.gain.to(device), out=out).add_(draws.offset.to(device)).clamp_(0, 255)
    if draws.changes is not None and draws.levels is not None:
        change_colours(out, draws.changes, draws.levels)
    if draws.cutout is not None:
        _blank(out, draws.cutout)


def _grid(affine: Tensor, size: int) -> Tensor:
    """float[B, size, size, 2]: where each pixel of the result is read, in [-1, 1].

    What torch's `affine_grid` gives, by additions in place of its product of matrices: 0.01 and not 0.5 ms an image
    of 224 px, and in full float32 where TF32 is allowed. The coordinates lie in memory as two planes, which
    `grid_sample` reads as fast.
    """
    at = torch.linspace(-1, 1, size, device=affine.device) * (size - 1) / size
    x, y, shift = affine.unsqueeze(3).unbind(2)
    return ((x * at).unsqueeze(2) + (y * at + shift).unsqueeze(3)).permute(0, 2, 3, 1)


def _blank(x: Tensor, boxes: Tensor) -> None:
    """Cutout (DeVries and Taylor 2017, arXiv:1708.04552), in place; x channels-last in memory."""
    blank = torch.tensor(BLANK, device=x.device).repeat(x.shape[2])
    # lerp returns its ends exactly at the weights 0 and 1, here and in `mix`.
    lines(x).lerp_(blank, inside(boxes.to(x.device), x.shape[2]))


def mix(
    pixels: Tensor,
    target: Tensor,
    mask: Tensor,
    partner_pixels: Tensor,
    partner_target: Tensor,
    partner_mask: Tensor,
    draws: Draws,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix images with their partners, as `draws` says.

    A pair of image and class is valid where it is valid in both images: m = m1 * m2. Its target is
    lam * t1 + (1 - lam) * t2. For CutMix lam is 1 - the share of the pixels that come from the partner. Images with
    lam = 1 stay as they are, with their own mask.

    Args:
        pixels, partner_pixels: float[n, 3, S, S], both changed by `apply`: `partner_pixels` with the draws of the
            partners, `draws.take(draws.partner)` of the global batch. The result takes its memory.
        target, mask, partner_target, partner_mask: float[n, C].
        draws: of these n images.

    Returns:
        pixels float[n, 3, S, S], channels-last in memory, target float[n, C], mask float[n, C].
    """
    if draws.lam is None or draws.box is None:
        return pixels, target, mask
    mixed = partner_pixels.contiguous(memory_format=torch.channels_last)
    parts = _parts(pixels)
    lam = torch.cat([_blend(pixels[p], mixed[p], draws.lam[p], draws.box[p]) for p in parts])
    return (
        mixed,
        torch.lerp(partner_target, target, lam),
        torch.where(lam < 1, mask * partner_mask, mask),
    )


def _blend(pixels: Tensor, into: Tensor, lam: Tensor, box: Tensor) -> Tensor:
    """Mix `pixels` into their partners; returns float[n, 1], the share of each image that is its own."""
    share = own = lam.to(pixels.device).view(-1, 1, 1)
    cut = box[:, 2] > box[:, 0]
    if cut.any():
        whole = torch.where(cut.to(pixels.device).view(-1, 1, 1), 1, share)
        foreign = inside(box.to(pixels.device), pixels.shape[2])  # 0 all over where MixUp blends
        share = whole - foreign.mean((1, 2), keepdim=True)
        own = foreign.neg_().add_(whole)
    lines(into).lerp_(lines(pixels), own)
    return share[:, :, 0]
