"""Dropout and drop path whose random numbers depend on (seed, step, row of the global batch) alone.

torch's own dropout draws from one global stream: its numbers change with the number of processes, must be
saved to resume in the middle of an epoch, and must be replayed where gradient checkpointing computes a block
twice. Here every number is a hash of its coordinates, as in counter-based generators (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"), so there is no state to lose. The hash is computed on the
device of the activations; nothing but one number an image travels to it.

    noise = noise_of(model)
    noise.start(seed, step, first, last, batch)   # before each forward pass of training
    model(pixels)
"""

import torch
from torch import Tensor, nn

# The mixing function "lowbias32" of C. Wellons' hash prospector: an input bit flips each output bit with
# probability 0.5 (bias 1.7e-4). The second multiplier is written as a signed number; int32 wraps around.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - 2**32
# 2^32 / golden ratio, odd: spreads consecutive counters over all bits before the mixing.
_GOLDEN = 0x9E3779B1 - 2**32


def _signed(value: int) -> int:
    """The 32 low bits of `value` as a signed number, which is what an int32 tensor can be given."""
    return (value + 2**31) % 2**32 - 2**31


def _mix(x: Tensor) -> Tensor:
    """Hash each element of an int32 tensor. Shifts are masked because >> copies the sign bit."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _FIRST
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _SECOND
    return x ^ ((x >> 16) & 0xFFFF)


class StepNoise:
    """Where the training is: what every noisy module of one model draws its numbers from.

    Attributes:
        rows: int32[n], one hash of (seed, step, row) for each image of this process; None before `start`.
        device: where `rows` is put, the model's as `noise_of` saw it.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.device = torch.device("cpu")

    def start(self, seed: int, step: int, first: int, last: int, batch: int) -> None:
        """Set the coordinates of the next forward pass.

        Args:
            seed: of the run.
            step: of the run, counted on over epochs.
            first, last: the rows of the global batch that the forward pass gets.
            batch: rows of the global batch.
        """
        if not 0 <= first < last <= batch:
            raise ValueError(f"rows {first} to {last} do not lie in a batch of {batch}")
        key = torch.tensor([_signed(seed)], dtype=torch.int32)
        for counter in (step, torch.arange(first, last, dtype=torch.int32)):
            offset = counter if isinstance(counter, Tensor) else _signed(counter)
            key = _mix(_mix(key) + offset * _GOLDEN)
        self.rows = key.to(self.device, non_blocking=True)


class _Noisy(nn.Module):
    """A module that zeroes at random in training.

    Attributes:
        p: probability of zero, in [0, 1).
        noise: shared by all noisy modules of a model; plain attributes, so they are in no state dict.
        number: of this module among them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), but got {p}")
        self.p = p
        self.noise = StepNoise()
        self.number = 0

    def rows(self, x: Tensor) -> Tensor:
        """int32[n]: one hash for each row of `x`, another in every module."""
        rows = self.noise.rows
        if rows is None:
            raise RuntimeError(
                "training with dropout or drop path needs noise_of(model).start(...) before the forward pass"
            )
        if len(rows) != len(x):
            raise RuntimeError(f"the noise was started for {len(rows)} rows, but the batch has {len(x)}")
        return _mix(rows.to(x.device) ^ _signed(self.number * _GOLDEN))

    def scale(self, random: Tensor, x: Tensor) -> Tensor:
        """0 with probability p and 1 / (1 - p) otherwise, in the type of `x`."""
        keep = random >= _signed(int(self.p * 2**32) - 2**31)
        return keep.to(x.dtype) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(_Noisy):
    """Zero each element with probability p and scale the others by 1 / (1 - p); [n, ...] -> the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        columns = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device) * _GOLDEN
        random = _mix(self.rows(x)[:, None] + columns)
        return x * self.scale(random, x).view_as(x)


class DropPath(_Noisy):
    """Zero a whole image's branch with probability p and scale the others by 1 / (1 - p).

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382), to stand before the addition of a residual block.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * self.scale(self.rows(x), x).view(-1, *[1] * (x.ndim - 1))


def noise_of(model: nn.Module) -> StepNoise:
    """The one `StepNoise` of a model. Ask for it again after the model moved to another device.

    The noisy modules of the model are numbered in their order and share it.
    """
    noisy = [module for module in model.modules() if isinstance(module, _Noisy)]
    noise = noisy[0].noise if noisy else StepNoise()
    for number, module in enumerate(noisy):
        module.noise, module.number = noise, number
    noise.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return noise
