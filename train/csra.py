"""The CSRA head: class-specific residual attention (Zhu & Wu, ICCV 2021, arXiv:2108.02456)."""

import math

import torch
from torch import Tensor, nn

from train.backbones import Features
from train.noise import Dropout


class CsraHead(nn.Module):
    """A score for each class at each place, averaged, plus lambda times where the class scores high.

    With the scores y[k] = w_c . x[k] + b_c at the places k of the map (a 1x1 convolution) a head's logit is

        mean_k y[k] + lambda * sum_k softmax_k(T y)[k] * y[k]

    which equals the paper's classifier on f = g + lambda a, with the average-pooled g and the attention a.
    T = inf takes the maximum instead of the softmax. Several temperatures are several heads with their own
    weights whose logits are added (section 3.3). The weights are not normalised, as in the paper's text and
    unlike its code. It sees the map alone: the mean is that of the map's places, whatever vector the backbone
    pools for the linear head (maximum in the tiny networks, class token in ViT).

    Recommended: lambda 0.1 to 0.4, T 1; the paper's larger models take heads with T = 1, 2, 4, inf.

    Args:
        channels: D of the map.
        classes: C.
        lam: lambda, weight of the attention.
        temperatures: T of each head.
        dropout: on the map's elements.
    """

    def __init__(
        self, channels: int, classes: int, lam: float, temperatures: tuple[float, ...], dropout: float
    ) -> None:
        super().__init__()
        self.lam, self.temperatures = lam, temperatures
        self.dropout = Dropout(dropout)
        self.score = nn.Conv2d(channels, classes * len(temperatures), 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> Tensor:
        """[N, D, H, W] of the map -> logit [N, C]."""
        score = self.score(self.dropout(features.map)).flatten(2)
        score = score.unflatten(1, (len(self.temperatures), -1))  # [N, heads, C, H * W]
        logit: Tensor = score.mean(-1).sum(1)
        for i, temperature in enumerate(self.temperatures):
            logit = logit + self.lam * _attended(score[:, i], temperature)
        return logit


def _attended(score: Tensor, temperature: float) -> Tensor:
    """[N, C, places] -> [N, C]: the mean of the scores weighted by their own softmax."""
    if math.isinf(temperature):
        return score.amax(-1)
    return (torch.softmax(temperature * score, -1) * score).sum(-1)
