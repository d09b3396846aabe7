"""What every loss has in common: its shapes, its precision, its masks, and the one reduction.

Shapes: N images of this process, C classes.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Terms(NamedTuple):
    """The parts of a loss before the reduction.

    Attributes:
        value: float32, the loss of each part: [N, C] of pairs, [N] of images, [C] of classes, [1] of the batch.
        weight: of the same shape, how much each part counts; 0 where it is masked or undefined.
    """

    value: Tensor
    weight: Tensor


def reduce_terms(terms: Terms, total: Tensor | None = None) -> Tensor:
    """The loss: sum of value * weight over the sum of the weights; 0 where nothing counts.

    Args:
        terms: of this process.
        total: what to divide by, by default the sum of the weights here. With several processes: the mean over
            them of that sum, so that the gradients, averaged over the processes, are those of the whole batch.
    """
    if total is None:
        total = terms.weight.sum()
    return (terms.value * terms.weight).sum() / divisor(total)


def divisor(weight: Tensor) -> Tensor:
    """The weight to divide by: 1 where nothing counts, so that the loss is 0 there."""
    return torch.where(weight > 0, weight, torch.ones_like(weight))


class Loss(nn.Module, ABC):
    """A loss of C independent yes/no outputs, called as `loss(logit, target, mask) -> Terms`.

    logit float[N, C]; target float[N, C] in [0, 1] (soft where images were mixed); mask float[N, C], 0 = ignored.

    Computed in float32 whatever the autocast and the logits' type (float64 stays). A masked pair is replaced by
    constants before the formula sees it: its gradient is exactly 0 and what stands in it (even NaN) has no influence.

    Label smoothing (Szegedy et al. 2016, arXiv:1512.00567, for a yes/no question): the target t becomes
    t (1 - s) + s / 2.
    """

    smoothing: float = 0.0

    def forward(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        with torch.autocast(logit.device.type, enabled=False):
            dtype = torch.promote_types(logit.dtype, torch.float32)
            valid, nothing = mask > 0, torch.zeros((), dtype=dtype, device=logit.device)
            soft = target.to(dtype) * (1 - self.smoothing) + self.smoothing / 2
            return self.terms(
                torch.where(valid, logit.to(dtype), nothing),
                torch.where(valid, soft, nothing),
                valid.to(dtype),
            )

    @abstractmethod
    def terms(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        """The terms of prepared float[N, C] tensors; masked pairs hold logit 0, target 0, mask 0."""


class PairLoss(Loss):
    """A loss that is a sum over pairs of image and class."""

    def terms(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        return Terms(self.pair(logit, target), mask)

    @abstractmethod
    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        """float[N, C]: the loss of each pair."""
