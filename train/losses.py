"""Losses for C independent yes/no outputs.

Shapes: logit float[N, C]; target float[N, C] in [0, 1] (soft where images were mixed); mask float[N, C],
0 = ignored. A loss gives one value for each pair, float32[N, C]; `masked_mean` is the one reduction:
the mean over the pairs whose mask is 1. A masked pair's gradient is exactly 0.

All are computed in float32 whatever the autocast type, and through log-sigmoid, so that they are finite
for logits of +-50.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from train.config import LossConfig

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""(logit[N, C], target[N, C]) -> loss[N, C], in nats, of each pair."""


def bce(config: LossConfig, positive_share: Tensor) -> PairLoss:
    """Binary cross-entropy, -y log p - (1 - y) log(1 - p). Strictly proper: the scores are probabilities."""
    return lambda logit, target: binary_cross_entropy_with_logits(logit, target, reduction="none")


def pos_weighted(config: LossConfig, positive_share: Tensor) -> PairLoss:
    """BCE whose positives weigh w_c = negatives / positives of class c, at most `max_pos_weight`.

    The weight shifts the scores upwards by log w_c: calibrate before reading them as probabilities.
    """
    share = positive_share.clamp(min=1e-6)
    weight = ((1 - share) / share).clamp(min=1.0, max=config.max_pos_weight)
    return lambda logit, target: binary_cross_entropy_with_logits(
        logit, target, reduction="none", pos_weight=weight.to(logit.device)
    )


def focal(config: LossConfig, positive_share: Tensor) -> PairLoss:
    """Focal loss, -(1 - p_t)^gamma log p_t (Lin et al. 2017, arXiv:1708.02002), without class weights.

    Recommended: gamma 2 (their best), 0 is BCE.
    """

    def loss(logit: Tensor, target: Tensor) -> Tensor:
        log_p, log_not_p = logsigmoid(logit), logsigmoid(-logit)
        # Powers as exp(gamma log p): the gradient of x^gamma itself is infinite at 0 where gamma < 1.
        positive = -torch.exp(config.gamma * log_not_p) * log_p
        negative = -torch.exp(config.gamma * log_p) * log_not_p
        return target * positive + (1 - target) * negative

    return loss


def asl(config: LossConfig, positive_share: Tensor) -> PairLoss:
    """Asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119).

    -(1 - p)^gamma_pos log p for positives, -q^gamma_neg log(1 - q) for negatives with the shifted
    probability q = max(p - margin, 0): easy negatives (p < margin) give no gradient at all.
    Recommended: gamma_pos 0 to 1, gamma_neg 4, margin 0.05.
    """

    def loss(logit: Tensor, target: Tensor) -> Tensor:
        log_p, log_not_p = logsigmoid(logit), logsigmoid(-logit)
        positive = -torch.exp(config.gamma_pos * log_not_p) * log_p
        if config.margin > 0:
            # 1e-8 instead of 0: the gradient of x^gamma is infinite at 0 where gamma < 1.
            # 1 - shifted is at least the margin: its logarithm needs no guard.
            shifted = (torch.sigmoid(logit) - config.margin).clamp(min=1e-8)
            negative = -(shifted**config.gamma_neg) * torch.log1p(-shifted)
        else:
            negative = -torch.exp(config.gamma_neg * log_p) * log_not_p
        return target * positive + (1 - target) * negative

    return loss


LOSSES: dict[str, Callable[[LossConfig, Tensor], PairLoss]] = {
    "bce": bce,
    "pos_weighted": pos_weighted,
    "focal": focal,
    "asl": asl,
}


def make_loss(config: LossConfig, positive_share: Tensor) -> PairLoss:
    """The loss of that configuration.

    Args:
        config: names one of `LOSSES`.
        positive_share: float[C], the share of positives among the valid training pairs of each class.
    """
    pair_loss = LOSSES[config.name](config, positive_share)
    return lambda logit, target: pair_loss(logit.float(), target.float())


def masked_mean(loss: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sum of loss * mask over `valid`, by default the number of valid pairs here.

    Args:
        loss: float[N, C].
        mask: float[N, C] of 0 and 1.
        valid: number of valid pairs to divide by. With several processes: the mean of it over them, so
            that averaging the gradients gives the mean over all valid pairs of the global batch.
    """
    if valid is None:
        valid = mask.sum()
    return (loss * mask).sum() / valid.clamp(min=1)
