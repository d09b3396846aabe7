"""Heads: features in, C logits out. A new head is a function in `HEADS`; every backbone takes every head.

"linear" sees the vector that the backbone pools; "csra" and "ml_decoder" see its map and leave out the layers
between the map and torchvision's classifier (`Backbone.pool_map`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from data.errors import unknown
from train.backbones import Backbone, Features, make_backbone
from train.config import ModelConfig
from train.csra import CsraHead
from train.drop_path import set_drop_path
from train.ml_decoder import MlDecoderHead
from train.noise import Dropout

# Mean and standard deviation of ImageNet's pixels in [0, 255], which every pre-trained backbone here expects.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class LinearHead(nn.Module):
    """A linear layer on the pooled features, [N, D] -> [N, C]."""

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        out: Tensor = self.linear(self.dropout(features.pooled))
        return out


def _linear(backbone: Backbone, classes: int, config: ModelConfig) -> nn.Module:
    return LinearHead(backbone.dim, classes, config.dropout)


def _csra(backbone: Backbone, classes: int, config: ModelConfig) -> nn.Module:
    backbone.pool_map()
    return CsraHead(backbone.map_dim, classes, config.csra_lambda, config.csra_temperature, config.dropout)


def _ml_decoder(backbone: Backbone, classes: int, config: ModelConfig) -> nn.Module:
    backbone.pool_map()
    return MlDecoderHead(
        backbone.map_dim,
        classes,
        config.ml_decoder_dim,
        config.ml_decoder_queries,
        config.ml_decoder_heads,
        config.ml_decoder_feed_forward,
        config.ml_decoder_learned,
        config.dropout,
    )


HEADS: dict[str, Callable[[Backbone, int, ModelConfig], nn.Module]] = {
    "linear": _linear,
    "csra": _csra,
    "ml_decoder": _ml_decoder,
}
"""(backbone, number of classes C, configuration) -> a module that maps `Features` to logit float[N, C]."""


class Classifier(nn.Module):
    """Normalisation, backbone and head: float[N, 3, S, S] pixels in [0, 255] -> logits float[N, C]."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone((pixels - self.mean) / self.std))
        return out


def make_model(config: ModelConfig, classes: int, size: int) -> Classifier:
    """Build the classifier of that configuration for C classes and images of `size` px."""
    if config.head not in HEADS:
        raise unknown("head", config.head, HEADS)
    backbone = make_backbone(config.backbone, config.weights, size)
    set_drop_path(backbone.blocks, config.drop_path)
    backbone.checkpointing = config.gradient_checkpointing
    return Classifier(backbone, HEADS[config.head](backbone, classes, config))
