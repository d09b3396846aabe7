"""Exponential moving average of the weights: what is evaluated and saved."""

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Averages a model's parameters; its buffers (batch-norm statistics) are copied as they are.

    The decay warms up as min(decay, (1 + step) / (10 + step)) (as in TensorFlow's moving averages), so that
    short schedules are not held back by the initial weights.

    Args:
        model: the model that is trained.
        decay: weight of the past at each step, in [0, 1); 0 follows the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights after `step` steps (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own: list[Tensor] = list(self.model.parameters())
        new: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(own, new, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
