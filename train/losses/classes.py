"""Losses that compare the images of a class, in the global batch and a memory of the batches before it.

They aim at what is measured: average precision, and precision among the highest scores (Tailacc). docs/losses.md
derives them. Shapes: N images of this process, G of the global batch, Q in the memory, K = G + Q, C classes, T
thresholds.
"""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from train.config import LossConfig
from train.losses.base import Loss, Terms
from train.losses.gather import Memory


class Tail(Loss):
    """Ours: cross-entropy balanced over coverage. The gradient of a pair is w (p - y), BCE's times

        w = max(S, tail_floor)^-tail_power / Z,   S = the share of the images of this class that score higher,

    so that the few images at the top of each class's ranking count for more, right where Tailacc(t) looks.

    It is a strictly proper loss: w depends on the score alone, never on the label, and a proper loss with weight
    w(t) on the logit thresholds t is, up to a constant, minus the integral over t of w(t) S(t) (Tailacc(t) -
    sigmoid(t)). BCE has w = 1, so that a threshold counts by how many images lie above it; tail_power = 1 undoes that
    and every threshold of the Tailacc curve counts alike, in frequent and in rare classes.

    S is measured on batch and memory, without gradient (an image counts itself by half). Z makes the mean weight 1.
    The value printed is the weighted BCE. Recommended: tail_power 0.5 (0.25 to 1; 0 is BCE), tail_floor 0.02 (0.01 to
    0.1), queue 512.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        self.power, self.floor = config.tail_power, config.tail_floor
        self.memory = Memory(config.queue, len(positive_share))
        grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        self.scale = float(1 / grid.clamp(min=self.floor).pow(-self.power).mean())

    def terms(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        batch, before = self.memory.join(logit.detach(), target, mask)
        score, _, valid = torch.cat([batch, before]).unbind(1)
        mine = logit.detach()[:, None]
        above = (score > mine).to(logit.dtype) + (score == mine).to(logit.dtype) / 2
        share = (above * valid).sum(dim=1) / valid.sum(dim=0).clamp(min=1)
        weight = self.scale * share.clamp(min=self.floor) ** -self.power
        return Terms(weight * binary_cross_entropy_with_logits(logit, target, reduction="none"), mask)


class RankingLoss(Loss):
    """One minus a ranking figure of each class, plus `anchor` times BCE, which keeps the scores readable.

    value[c] = 1 - figure[c] + anchor * mean BCE of class c in the batch, weight[c] = its valid pairs there; a class
    without a positive or a negative in batch and memory has BCE alone.

    Batch and memory together stand for the training set, of which only the batch carries gradient. So its gradient is
    multiplied by (batch + memory) / batch, in valid images of the class: what it is worth does not sink as the memory
    fills. (The value does not change; with an empty memory the factor is 1.)
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        self.anchor, self.temperature = config.anchor, config.temperature
        self.memory = Memory(config.queue, len(positive_share))

    def terms(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        batch, before = self.memory.join(logit, target, mask)
        logit, target, mask = batch.unbind(1)
        count = mask.sum(dim=0)
        bce = binary_cross_entropy_with_logits(logit, target, reduction="none")
        bce = (bce * mask).sum(dim=0) / count.clamp(min=1)
        growth = (count + before[:, 2].sum(dim=0)) / count.clamp(min=1)
        # The same number, with `growth` times the gradient.
        steep = logit.detach() + growth * (logit - logit.detach())
        score, truth, valid = (
            torch.cat(pair) for pair in zip((steep, target, mask), before.unbind(1), strict=True)
        )
        positives = (truth * valid).sum(dim=0)
        defined = (positives > 0) & (positives < valid.sum(dim=0))
        lost = torch.where(defined, 1 - self.figure(score, truth * valid, valid), torch.zeros_like(bce))
        return Terms(lost + self.anchor * bce, count)

    @abstractmethod
    def figure(self, score: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """float[C] in [0, 1] from float[K, C] tensors; truth is 0 where valid is. Finite for any class."""


class SmoothAp(RankingLoss):
    """Smooth-AP (Brown et al. 2020, arXiv:2007.12163) of each class over batch and memory, with `anchor` of BCE.

    AP = mean over the positives i of (1 + sum over other positives j of g_ij) / (1 + sum over all other j of g_ij)
    with g_ij = sigmoid((x_j - x_i) / temperature), the smooth form of "j stands above i". A soft target counts by its
    size. The paper's temperature of 0.01 is for cosines in [-1, 1]; logits spread ten to twenty times as wide.
    Ranks only: without the anchor the scores would be no probabilities.
    Recommended: temperature 0.5 (0.1 to 2), anchor 0.3 (0.1 to 3), queue 512 (256 to 2,048).
    """

    def figure(self, score: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        # Rows of positives only, classes side by side: P of K * C pairs, in one piece.
        row, column = torch.nonzero(truth, as_tuple=True)
        own = score[row, column]
        higher = torch.sigmoid((score.T[column] - own[:, None]) / self.temperature) * valid.T[column]
        others = torch.ones_like(higher).scatter(1, row[:, None], 0.0)
        higher = higher * others
        precision = (1 + (higher * truth.T[column]).sum(dim=1)) / (1 + higher.sum(dim=1))
        weight = truth[row, column]
        total = torch.zeros_like(score[0]).index_add(0, column, weight * precision)
        return total / truth.sum(dim=0).clamp(min=1e-6)


class TopPrecision(RankingLoss):
    """Precision above soft thresholds at the top of each class, over batch and memory, with `anchor` of BCE: the
    direct way to what `tail` aims at, kept for comparison (docs/losses.md).

    Precision(t) = sum of y sigmoid((x - t) / temperature) / sum of sigmoid((x - t) / temperature), averaged over T = 8
    thresholds t, the scores (without gradient) at equal steps of rank from the top down to as many images as there
    are positives. Not proper: without the anchor every image but the best would be pushed down.
    Recommended: temperature 0.5 (0.1 to 2), anchor 1 (0.3 to 3), queue 512.
    """

    THRESHOLDS = 8

    def figure(self, score: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        ordered = torch.where(valid > 0, score.detach(), -torch.inf).sort(dim=0, descending=True).values
        share = torch.arange(1, self.THRESHOLDS + 1, device=score.device, dtype=score.dtype) / self.THRESHOLDS
        place = (share[:, None] * truth.sum(dim=0)).round().long().clamp(1, len(score)) - 1
        threshold = ordered.gather(0, place)
        threshold = torch.where(threshold.isinf(), torch.zeros_like(threshold), threshold)
        above = torch.sigmoid((score - threshold[:, None]) / self.temperature) * valid
        return ((above * truth).sum(dim=1) / above.sum(dim=1).clamp(min=1e-6)).mean(dim=0)
