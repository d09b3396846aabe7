"""Losses that are a sum over pairs of image and class. x is the logit, p = sigmoid(x), y the target of a pair.

All are written in log-sigmoids, so that value and gradient are finite for logits of +-50.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from train.config import LossConfig
from train.losses.base import PairLoss


class Bce(PairLoss):
    """Binary cross-entropy: -y log p - (1 - y) log(1 - p). Strictly proper: the scores are probabilities."""

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()

    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logit, target, reduction="none")


class PosWeighted(PairLoss):
    """BCE whose positives weigh w_c = negatives / positives of class c, between 1 and `max_pos_weight`.

    The minimiser is x = logit of the probability + log w_c: calibrate before reading the scores as probabilities.
    Recommended: max_pos_weight 5 to 50.
    """

    weight: Tensor

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        share = positive_share.clamp(min=1e-6)
        weight = ((1 - share) / share).clamp(min=1.0, max=config.max_pos_weight)
        self.register_buffer("weight", weight, persistent=False)

    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        weight = self.weight.to(logit.dtype)
        return binary_cross_entropy_with_logits(logit, target, reduction="none", pos_weight=weight)


class ClassBalanced(PairLoss):
    """BCE whose classes weigh by the inverse of their effective number of positives (Cui et al. 2019,
    arXiv:1901.05555): w_c = (1 - b) / (1 - b^n_c), scaled to a mean of 1 over the classes that have a positive.

    Written in shares: with n_c = s_c N positives among N images and b = 1 - 1 / (v N), b^n_c is exp(-s_c / v).
    v = `effective_share` is the share of the images at which more positives of a class stop to count: near 0 all
    classes weigh the same, from 1 on they weigh 1 / s_c. Both answers of a class get its weight, so that the scores
    stay probabilities (the paper weighs images of one label each). The paper's b of .99, .999, .9999 at N = 5,717
    are v of .017, .17, 1.7. Recommended: 0.02 to 1.
    """

    weight: Tensor

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        some = positive_share > 0
        number = -torch.expm1(-positive_share / config.effective_share)
        weight = torch.where(some, 1 / torch.where(some, number, 1.0), torch.ones_like(number))
        if some.any():
            weight = torch.where(some, weight / weight[some].mean(), torch.ones_like(weight))
        self.register_buffer("weight", weight, persistent=False)

    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        return self.weight.to(logit.dtype) * binary_cross_entropy_with_logits(logit, target, reduction="none")


class Focal(PairLoss):
    """Focal loss, -(1 - p_t)^gamma log p_t (Lin et al. 2017, arXiv:1708.02002), without class weights.

    Not proper: it pulls scores towards 0.5. Recommended: gamma 2 (their best), 0.5 to 3; 0 is BCE.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        self.gamma = config.gamma

    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        log_p, log_not_p = logsigmoid(logit), logsigmoid(-logit)
        # Powers as exp(gamma log p): the gradient of x^gamma itself is infinite at 0 where gamma < 1.
        positive = -torch.exp(self.gamma * log_not_p) * log_p
        negative = -torch.exp(self.gamma * log_p) * log_not_p
        return target * positive + (1 - target) * negative


class Asl(PairLoss):
    """Asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119).

    -(1 - p)^gamma_pos log p for positives, -q^gamma_neg log(1 - q) for negatives with the shifted
    probability q = max(p - margin, 0): easy negatives (p < margin) give no gradient at all.
    Not proper: scores come out far too high. Recommended: gamma_pos 0 to 1, gamma_neg 4 (2 to 5), margin 0.05.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        self.gamma_pos, self.gamma_neg, self.margin = config.gamma_pos, config.gamma_neg, config.margin

    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        log_p, log_not_p = logsigmoid(logit), logsigmoid(-logit)
        positive = torch.exp(self.gamma_pos * log_not_p) * self.positive(log_p, log_not_p)
        if self.margin > 0:
            # 1e-8 instead of 0: the gradient of x^gamma is infinite at 0 where gamma < 1.
            # 1 - shifted is at least the margin: its logarithm needs no guard.
            shifted = (torch.sigmoid(logit) - self.margin).clamp(min=1e-8)
            negative = -(shifted**self.gamma_neg) * torch.log1p(-shifted)
        else:
            negative = -torch.exp(self.gamma_neg * log_p) * log_not_p
        return target * positive + (1 - target) * negative

    def positive(self, log_p: Tensor, log_not_p: Tensor) -> Tensor:
        """The loss of a positive before it is focused."""
        return -log_p


class Apl(Asl):
    """Asymmetric polynomial loss (Huang et al. 2023, arXiv:2304.05361): ASL whose positives start from
    -log p + a (1 - p) + b (1 - p)^2 / 2, that is, with other first coefficients in the Taylor series
    -log p = (1 - p) + (1 - p)^2 / 2 + ...; a = `apl_first`, b = `apl_second`.

    The authors' code has a = -1 (the linear term is gone), b = 2.5, gamma_pos 0, gamma_neg 4, margin 0.05; their
    coefficient of negatives is 0 there and left out here. Unlike there, the focusing weights carry gradient.
    Not proper.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__(config, positive_share)
        self.first, self.second = config.apl_first, config.apl_second

    def positive(self, log_p: Tensor, log_not_p: Tensor) -> Tensor:
        not_p = torch.exp(log_not_p)
        return -log_p + self.first * not_p + self.second / 2 * not_p**2


class Hill(PairLoss):
    """Hill loss (Zhang et al. 2021, arXiv:2112.07368): for training sets where labels are missing.

    Negatives: (hill_lambda - p) p^2, whose gradient falls again above p = 2/3 or so, since a negative with a very
    high score is likely a label that nobody gave. Positives: focal loss of x - hill_margin with power gamma.
    Not proper. Recommended: hill_lambda 1.5, hill_margin 0.5 to 1, gamma 2.
    """

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        self.gamma, self.highest, self.margin = config.gamma, config.hill_lambda, config.hill_margin

    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        p = torch.sigmoid(logit)
        moved = logit - self.margin
        positive = -torch.exp(self.gamma * logsigmoid(-moved)) * logsigmoid(moved)
        return target * positive + (1 - target) * (self.highest - p) * p**2


class Proper(PairLoss):
    """A strictly proper asymmetric loss: the beta family of Buja, Stuetzle & Shen (2005, "Loss functions for
    binary class probability estimation and classification", section 11) with weight w(c) = c^(a-1) (1 - c)^-1.

    Every proper loss mixes the costs of the decisions "yes where p > c" over thresholds c (Savage 1971;
    docs/losses.md): positives L1 = integral from p to 1 of (1 - c) w(c) dc, negatives L0 = integral from 0 to p of
    c w(c) dc. Here L1 = (1 - p^a) / a, and L0 = -log(1 - p) - integral from 0 to p of (1 - c^a) / (1 - c) dc; for
    a = 1: 1 - p, and -log(1 - p) - p. By the logit, dL/dx = p^a (p - y): BCE's gradient times p^a, so that easy
    negatives hardly count, as in ASL, and yet the minimiser is the probability itself.

    a = `asymmetry`; 0 is BCE. Recommended: 0.25 to 1; from 1 on a positive that scores low learns slowly.
    """

    nodes: Tensor

    def __init__(self, config: LossConfig, positive_share: Tensor) -> None:
        super().__init__()
        self.asymmetry = config.asymmetry
        # Gauss-Legendre in x with c = p x^4: the fourth power makes c^a smooth at 0 (error below 1e-9 for a >= 0.1).
        x, weight = np.polynomial.legendre.leggauss(16)
        x, weight = (x + 1) / 2, weight / 2
        nodes = torch.from_numpy(np.stack([4 * np.log(x), 4 * x**3 * weight]))
        self.register_buffer("nodes", nodes, persistent=False)

    def pair(self, logit: Tensor, target: Tensor) -> Tensor:
        a = self.asymmetry
        if a == 0:
            return binary_cross_entropy_with_logits(logit, target, reduction="none")
        log_p = logsigmoid(logit)
        log_u, weight = self.nodes.to(logit.dtype)[:, :, None, None]
        log_c = log_p + log_u
        missing: Tensor = log_p.exp() * (weight * torch.expm1(a * log_c) / torch.expm1(log_c)).sum(dim=0)
        positive, negative = -torch.expm1(a * log_p) / a, softplus(logit) - missing
        return target * positive + (1 - target) * negative
