"""Heads: features in, C logits out. A new head is a function in `HEADS`; every backbone takes every head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from train.backbones import Features, make_backbone
from train.config import ModelConfig

# Mean and standard deviation of ImageNet's pixels in [0, 255], which every pre-trained backbone here expects.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class LinearHead(nn.Module):
    """A linear layer on the pooled features, [N, D] -> [N, C]."""

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        out: Tensor = self.linear(self.dropout(features.pooled))
        return out


HEADS: dict[str, Callable[[int, int, float], nn.Module]] = {"linear": LinearHead}


class Classifier(nn.Module):
    """Normalisation, backbone and head: float[N, 3, S, S] pixels in [0, 255] -> logits float[N, C]."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone((pixels - self.mean) / self.std))
        return out


def make_model(config: ModelConfig, classes: int, size: int) -> Classifier:
    """Build the classifier of that configuration for C classes and images of `size` px."""
    backbone = make_backbone(config.backbone, config.weights, size)
    return Classifier(backbone, HEADS[config.head](backbone.dim, classes, config.dropout))  # type: ignore[arg-type]
