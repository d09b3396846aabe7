"""Losses that rank classes within an image (and, in `two_way`, images within a class).

They ask that the classes of an image stand above those that are not in it. Average precision and Tailacc rank the
images within a class, which is another question: a loss of this file can be perfect where they are poor.

A soft target y of a mixed image counts as y of a positive and 1 - y of a negative. Shapes: N images, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from train.config import LossConfig
from train.losses.base import Loss, Terms
from train.losses.gather import gather_rows

# The logarithm of a weight of 0: exp of it is exactly 0 in float32 and float64, and unlike -inf it gives no NaN.
_LOG_ZERO = -1e4


def log_sum(value: Tensor, weight: Tensor, dim: int) -> Tensor:
    """log of the sum of weight * exp(value); about `_LOG_ZERO` with no gradient to speak of where no weight is."""
    log_weight = torch.where(weight > 0, weight.clamp(min=1e-30).log(), _LOG_ZERO)
    return torch.logsumexp(value + log_weight, dim)


class Lsep(Loss):
    """Log-sum-exp pairwise loss (Li, Song & Luo 2017, arXiv:1704.03135, "Improving Pairwise Ranking for
    Multi-label Image Classification"), of an image: log(1 + sum over its positives u and negatives v of
    exp(x_v - x_u)).

    Ranks within an image: adding a number to all logits of an image changes nothing, so the scores are no
    probabilities and do not compare between images. An image without a positive or without a negative is undefined
    and does not count. No settings.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()

    def terms(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        positive, negative = target * mask, (1 - target) * mask
        value = softplus(log_sum(logit, negative, 1) + log_sum(-logit, positive, 1))
        return Terms(value, ((positive.sum(1) > 0) & (negative.sum(1) > 0)).to(value.dtype))


class Zlpr(Loss):
    """Zero-bounded log-sum-exp and pairwise rank loss (Su et al. 2022, arXiv:2208.02955), of an image:
    log(1 + sum over its positives of exp(-x)) + log(1 + sum over its negatives of exp(x)).

    Ranks within an image, with 0 as a further class that all positives must beat and all negatives stay under: the
    sign of a logit means something, its size is no probability. No settings.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()

    def terms(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        positive, negative = target * mask, (1 - target) * mask
        value = softplus(log_sum(-logit, positive, 1)) + softplus(log_sum(logit, negative, 1))
        return Terms(value, (mask.sum(1) > 0).to(value.dtype))


class TwoWay(Loss):
    """Two-way multi-label loss (Kobayashi, CVPR 2023): softplus(log sum over negatives of exp(x) + T log sum over
    positives of exp(-x / T)), once over the classes of each image and once over the images of each class of the
    global batch; the mean of each, added.

    T = `positive_temperature` > 1 lets several positives share. Ranks both within images and within classes; the
    scores are no probabilities. An image or class without a positive or a negative does not count.
    Recommended: 4 (the paper's), 1 to 8. One term, computed alike on every process.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        self.temperature = config.positive_temperature

    def terms(self, logit: Tensor, target: Tensor, mask: Tensor) -> Terms:
        logit, target, mask = gather_rows(torch.stack([logit, target, mask], dim=1)).unbind(1)
        positive, negative = target * mask, (1 - target) * mask
        ways = []
        for dim in (1, 0):
            t = self.temperature
            value = softplus(log_sum(logit, negative, dim) + t * log_sum(-logit / t, positive, dim))
            defined = ((positive.sum(dim) > 0) & (negative.sum(dim) > 0)).to(value.dtype)
            ways.append((value * defined).sum() / defined.sum().clamp(min=1))
        return Terms((ways[0] + ways[1])[None], (mask.sum() > 0).to(logit.dtype)[None])
