"""Backbones: images in, features out, through one registry.

A backbone maps float[N, 3, S, S] (normalised) to `Features`: the last feature map and one pooled vector an
image, as torchvision's own classifier of that architecture sees it.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from data.errors import InputError
from train.config import DataConfig
from train.gradient_checkpointing import run


class Features(NamedTuple):
    """map: float[N, D_map, H, W]; pooled: float[N, D]."""

    map: Tensor
    pooled: Tensor


class Backbone(nn.Module):
    """A trunk that gives a feature map, and the pooling that its classifier expects.

    Attributes:
        dim: D, the length of the pooled vector.
        map_dim: D_map, the channels of the map.
        blocks: the layers of the trunk that repeat, in order: what drop path, layer-wise decay and gradient
            checkpointing count. What comes before the first of them is the stem.
        checkpointing: compute the blocks again in the backward pass instead of keeping their inside.
    """

    def __init__(
        self, trunk: nn.Module, pool: nn.Module, dim: int, map_dim: int, blocks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.trunk, self.pool, self.dim, self.map_dim = trunk, pool, dim, map_dim
        self.blocks = list(blocks)  # a plain list: the modules are registered in the trunk
        self.checkpointing = False

    def forward(self, x: Tensor) -> Features:
        feature_map = run(self.trunk, x, self.blocks if self.checkpointing and self.training else [])
        return Features(feature_map, self.pool(feature_map))

    def pool_map(self) -> None:
        """Leave out the layers between the map and the classifier, for a head that takes the map alone.

        The pooled vector is then the map's mean; ConvNeXt's norm is applied at each place of the map instead
        of to the mean. Parameters that no loss reaches would make distributed training wait for their gradient.
        """
        norms = [layer for layer in self.pool.children() if isinstance(layer, nn.LayerNorm)]
        if norms:
            self.trunk = nn.Sequential(self.trunk, *norms)
        self.pool, self.dim = _global_average(), self.map_dim


class VisionTransformerBackbone(Backbone):
    """torchvision's ViT: the patch tokens as the map, the class token as the pooled vector, both normalised."""

    def __init__(self, vit: Any) -> None:
        dim = int(vit.hidden_dim)
        super().__init__(vit, nn.Identity(), dim, dim, list(vit.encoder.layers))

    def forward(self, x: Tensor) -> Features:
        vit: Any = self.trunk
        encoder, side = vit.encoder, x.shape[-1] // vit.patch_size
        tokens = vit._process_input(x)
        tokens = torch.cat([vit.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = encoder.dropout(tokens + encoder.pos_embedding)
        tokens = run(encoder.layers, tokens, self.blocks if self.checkpointing and self.training else [])
        tokens = encoder.ln(tokens)
        feature_map = tokens[:, 1:].transpose(1, 2).reshape(-1, self.dim, side, side)
        return Features(feature_map, tokens[:, 0])

    def pool_map(self) -> None:
        """The class token has no parameters of its own after the map: nothing to leave out."""


def _global_average() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _resnet(model: Any) -> Backbone:
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    trunk = nn.Sequential(*(getattr(model, name) for name in names))
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    blocks = [block for layer in layers for block in layer]
    dim = model.fc.in_features
    return Backbone(trunk, _global_average(), dim, dim, blocks)


def _mobilenet_v2(model: Any) -> Backbone:
    dim, blocks = model.last_channel, list(model.features[1:-1])
    return Backbone(model.features, _global_average(), dim, dim, blocks)


def _mobilenet_v3(model: Any) -> Backbone:
    # The first layer of its classifier is pre-trained too (960 -> 1280, hardswish): keep it.
    first = model.classifier[0]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *model.classifier[:2])
    blocks = list(model.features[1:-1])
    return Backbone(model.features, pool, first.out_features, first.in_features, blocks)


def _efficientnet(model: Any) -> Backbone:
    dim, blocks = model.classifier[-1].in_features, [b for stage in model.features[1:-1] for b in stage]
    return Backbone(model.features, _global_average(), dim, dim, blocks)


def _convnext(model: Any) -> Backbone:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), model.classifier[0], nn.Flatten())
    dim, blocks = model.classifier[-1].in_features, [b for stage in model.features[1::2] for b in stage]
    return Backbone(model.features, pool, dim, dim, blocks)


def _swin(model: Any) -> Backbone:
    trunk = nn.Sequential(model.features, model.norm, model.permute)
    dim, blocks = model.head.in_features, [b for stage in model.features[1::2] for b in stage]
    return Backbone(trunk, _global_average(), dim, dim, blocks)


class _Conv(nn.Sequential):
    """A convolution with its norm and rectifier."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """The residual block of `tiny_resnet`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_Conv(width, width), nn.Conv2d(width, width, 3, 1, 1, bias=False))
        self.norm = nn.BatchNorm2d(width)
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.drop_path(self.norm(self.body(x))))


def _tiny(trunk: nn.Sequential) -> Backbone:
    # The maximum, for small objects anywhere in the picture: with the mean in its place a trained tiny_cnn
    # sees less.
    pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    blocks = [layer for layer in trunk[1:] if isinstance(layer, (_Conv, Residual))]
    return Backbone(trunk, pool, 128, 128, blocks)


def _tiny_cnn() -> Backbone:
    """Four plain convolutions, 0.19 M parameters, for 32 to 96 px on a CPU."""
    return _tiny(
        nn.Sequential(
            _Conv(3, 32, 2), _Conv(32, 64), nn.MaxPool2d(2), _Conv(64, 96), nn.MaxPool2d(2), _Conv(96, 128)
        )
    )


def _tiny_resnet() -> Backbone:
    """Four convolutions and two residual blocks, 0.6 M parameters, for 32 to 96 px on a CPU."""
    return _tiny(
        nn.Sequential(
            _Conv(3, 32, 2),
            _Conv(32, 64),
            nn.MaxPool2d(2),
            _Conv(64, 96),
            Residual(96),
            nn.MaxPool2d(2),
            _Conv(96, 128),
            Residual(128),
        )
    )


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """How one backbone is built.

    Attributes:
        build: makes it without weights. For torchvision's: takes the full classifier and keeps its trunk.
        torchvision: name of torchvision's builder; "" for our own small networks, which have no weights.
        sizes: the input sizes it takes in pixels; empty: any.
    """

    build: Callable[..., Backbone]
    torchvision: str = ""
    sizes: tuple[int, ...] = ()


BACKBONES: dict[str, BackboneSpec] = {
    "tiny_cnn": BackboneSpec(_tiny_cnn),
    "tiny_resnet": BackboneSpec(_tiny_resnet),
    "resnet18": BackboneSpec(_resnet, "resnet18"),
    "resnet34": BackboneSpec(_resnet, "resnet34"),
    "resnet50": BackboneSpec(_resnet, "resnet50"),
    "resnet101": BackboneSpec(_resnet, "resnet101"),
    "mobilenet_v2": BackboneSpec(_mobilenet_v2, "mobilenet_v2"),
    "mobilenet_v3_large": BackboneSpec(_mobilenet_v3, "mobilenet_v3_large"),
    "efficientnet_v2_s": BackboneSpec(_efficientnet, "efficientnet_v2_s"),
    "convnext_tiny": BackboneSpec(_convnext, "convnext_tiny"),
    "swin_v2_t": BackboneSpec(_swin, "swin_v2_t"),
    "vit_b_16": BackboneSpec(VisionTransformerBackbone, "vit_b_16", sizes=(224,)),
}


def check_sizes(name: str, data: DataConfig) -> None:
    """Raise `InputError` where the backbone `name` cannot take the images that are trained on or judged."""
    check_size(name, data.size, "data.size")
    if data.train_size:
        check_size(name, data.train_size, "data.train_size")


def check_size(name: str, size: int, setting: str) -> None:
    """Raise `InputError` where the backbone `name` cannot take images of `size` px; `setting` asked for it."""
    sizes = BACKBONES[name].sizes
    if sizes and size not in sizes:
        raise InputError(f"backbone {name} takes images of {sizes[0]} px, but {setting} is {size}")


def make_backbone(name: str, weights: str, size: int) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: one of `BACKBONES`.
        weights: "none", "imagenet" (torchvision's default weights, downloaded once), or a path to a state
            dict of torchvision's full classifier of that architecture.
        size: side of the input in pixels.

    Returns:
        A module that maps float[N, 3, size, size] to `Features`.
    """
    spec = BACKBONES[name]
    check_size(name, size, "data.size")
    if not spec.torchvision:
        if weights != "none":
            raise InputError(
                f"backbone {name} has no pre-trained weights; use --model.weights none, not {weights}"
            )
        return spec.build()
    import torchvision

    model = torchvision.models.get_model(spec.torchvision, weights=None)
    if weights == "imagenet":
        instead = "give a file with --model.weights PATH, or train from scratch with --model.weights none"
        model.load_state_dict(_imagenet_weights(spec.torchvision, instead))
    elif weights != "none":
        _load_file(model, Path(weights), name)
    return spec.build(model)


def fetch_weights(name: str, instead: str) -> None:
    """Download torchvision's ImageNet weights of a backbone, unless they are here.

    Raises:
        InputError: they cannot be had; it ends with `instead`, what else the user may do.
    """
    if not _weights_file(name).is_file():
        _imagenet_weights(name, instead)


def _weights_file(name: str) -> Path:
    import torchvision

    url: str = torchvision.models.get_model_weights(name).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _imagenet_weights(name: str, instead: str) -> dict[str, Tensor]:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"the ImageNet weights of {name} could not be downloaded ({error}). Download {weights.url} "
            f"elsewhere and put it at {_weights_file(name)}, or {instead}"
        ) from error
    return state


def _load_file(model: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise InputError(f"no weights file at {path}; --model.weights takes imagenet, none, or a path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        # Not torch's own words: they advise to load the file in a way that would run code from it.
        raise InputError(
            f"{path} is not a PyTorch weights file (a state dict written by torch.save)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} must hold a state dict (name -> tensor) of torchvision's {name}")
    own = model.state_dict()
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    for what, keys in (
        ("lacks", sorted(own.keys() - state.keys())),
        ("has in excess", sorted(state.keys() - own.keys())),
        ("has in another shape", sorted(shapes)),
    ):
        if keys:
            raise InputError(
                f"{path} does not fit torchvision's {name}: it {what} {len(keys)} tensors, first '{keys[0]}'"
            )
    model.load_state_dict(state)
