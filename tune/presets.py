"""Named starting points for a search. Each is a function, so that none shares state."""

import dataclasses
from collections.abc import Callable

from train import presets
from train.config import ScheduleConfig, TrainConfig
from tune.space import SearchConfig, SearchOptions, Space


def quick() -> SearchConfig:
    """Two tiny networks with two losses at 64 px, from scratch: minutes on two cores."""
    return from_train(presets.demo(), Space(), SearchOptions(trials=4))


def voc() -> SearchConfig:
    """Fine-tunes of four ImageNet backbones with four losses, sixteen trials under ASHA: for GPUs."""
    base = dataclasses.replace(presets.baseline(), schedule=ScheduleConfig(epochs=12))
    space = Space(
        backbone=("resnet50", "mobilenet_v3_large", "efficientnet_v2_s", "convnext_tiny"),
        loss=("bce", "pos_weighted", "focal", "asl"),
        lr=(3e-4, 3e-3),
        backbone_lr_ratio=(0.03, 0.5),
    )
    return from_train(base, space, SearchOptions(trials=16, sampler="tpe", finalists=3))


def full() -> SearchConfig:
    """Everything that can vary, a hundred trials, mAP against serving cost: a night on several GPUs."""
    base = dataclasses.replace(presets.baseline(), schedule=ScheduleConfig(epochs=20))
    space = Space(
        backbone=("resnet50", "mobilenet_v3_large", "efficientnet_v2_s", "convnext_tiny"),
        head=("linear", "csra", "ml_decoder"),
        loss=("bce", "pos_weighted", "focal", "asl", "hill", "two_way", "proper", "tail"),
        loss_settings=True,
        lr=(2e-4, 5e-3),
        backbone_lr_ratio=(0.02, 0.7),
        weight_decay=(1e-3, 0.1),
        augment=("weak", "standard", "strong", "mixup"),
        size=(224, 320),
        ema=(0.98, 0.99, 0.998),
    )
    options = SearchOptions(trials=100, sampler="tpe", objective="map-and-cost", finalists=5, keep=5)
    return from_train(base, space, options)


PRESETS: dict[str, Callable[[], SearchConfig]] = {"quick": quick, "voc": voc, "full": full}
DEFAULT_PRESET = "quick"


def from_train(base: TrainConfig, space: Space, search: SearchOptions) -> SearchConfig:
    """A search around a training configuration."""
    shared = {item.name: getattr(base, item.name) for item in dataclasses.fields(base)}
    return SearchConfig(**shared, space=space, search=search)
