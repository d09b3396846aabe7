"""What is searched: the space, the budget, and named starting points.

A search is a training configuration (`train.config.TrainConfig`) plus the settings that vary. A *point* is
one choice of them; `apply_point` puts it into the configuration of a trial.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.errors import InputError, unknown
from train import presets
from train.config import ScheduleConfig, TrainConfig, require

Sampler = Literal["grid", "random", "tpe"]


@dataclass(frozen=True, slots=True)
class Space:
    """What varies.

    Attributes:
        backbone: names to choose from, each with its starting weights where these are not the default:
            NAME or NAME=WEIGHTS, with WEIGHTS as for --model.weights. Default weights: imagenet, and none
            for the tiny ones.
        loss: names to choose from.
        lr: lowest and highest learning rate of the head, drawn log-uniformly.
        backbone_lr_ratio: lowest and highest learning rate of the backbone as a share of the head's,
            drawn log-uniformly.
    """

    backbone: tuple[str, ...] = ("tiny_cnn", "tiny_resnet")
    loss: tuple[str, ...] = ("bce", "asl")
    lr: tuple[float, float] = (4e-3, 1.2e-2)
    backbone_lr_ratio: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for field_name in ("backbone", "loss"):
            values = getattr(self, field_name)
            require(len(values) > 0, f"space.{field_name} must name at least one choice", values)
            require(len(set(values)) == len(values), f"space.{field_name} must not repeat a choice", values)
        for field_name in ("lr", "backbone_lr_ratio"):
            low, high = getattr(self, field_name)
            require(0 < low <= high, f"space.{field_name} must be LOW HIGH with 0 < LOW <= HIGH", (low, high))


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How it is searched.

    Attributes:
        trials: how many points are tried.
        sampler: "grid": every backbone with every loss, the rates drawn at random; "random"; "tpe": Optuna's
            tree-structured Parzen estimator, after as many random points as a quarter of the trials.
        asha: stop trials that lag behind (Li et al. 2020, arXiv:1810.05934).
        concurrency: trials at the same time; 0 = as many as the resources allow.
        cpus, gpus: of each trial; gpus may be a fraction; -1 = one where there is one, else none.
        ray_address: of a running cluster ("auto" = this machine's); "" = start Ray in this process.
        register: name under which the best model is registered in MLflow as @champion; "" = not at all.
    """

    trials: int = 4
    sampler: Sampler = "grid"
    asha: bool = True
    concurrency: int = 0
    cpus: int = 1
    gpus: float = -1.0
    ray_address: str = ""
    register: str = "tailacc"

    def __post_init__(self) -> None:
        require(self.trials >= 1, "search.trials must be at least 1", self.trials)
        require(self.concurrency >= 0, "search.concurrency must not be negative", self.concurrency)
        require(self.cpus >= 1, "search.cpus must be at least 1", self.cpus)
        require(self.gpus >= 0 or self.gpus == -1, "search.gpus must be 0 or more, or -1", self.gpus)


@dataclass(frozen=True, slots=True)
class SearchConfig(TrainConfig):
    """A search: the settings that all trials share, the space, and the budget.

    Attributes:
        space: what varies between trials; it takes the place of model.backbone, model.weights, loss.name,
            optimizer.lr and optimizer.backbone_lr.
        search: sampler, budget and resources.
    """

    space: Space = field(default_factory=Space)
    search: SearchOptions = field(default_factory=SearchOptions)


def quick() -> SearchConfig:
    """Two tiny networks with two losses at 64 px, from scratch: minutes on two cores."""
    return from_train(presets.demo(), Space(), SearchOptions(trials=4))


def voc() -> SearchConfig:
    """Fine-tunes of four ImageNet backbones with every loss, sixteen trials under ASHA: for GPUs."""
    base = dataclasses.replace(presets.baseline(), schedule=ScheduleConfig(epochs=12))
    space = Space(
        backbone=("resnet50", "mobilenet_v3_large", "efficientnet_v2_s", "convnext_tiny"),
        loss=("bce", "pos_weighted", "focal", "asl"),
        lr=(3e-4, 3e-3),
        backbone_lr_ratio=(0.03, 0.5),
    )
    return from_train(base, space, SearchOptions(trials=16, sampler="tpe"))


PRESETS: dict[str, Callable[[], SearchConfig]] = {"quick": quick, "voc": voc}
DEFAULT_PRESET = "quick"


def from_train(base: TrainConfig, space: Space, search: SearchOptions) -> SearchConfig:
    """A search around a training configuration."""
    shared = {item.name: getattr(base, item.name) for item in dataclasses.fields(base)}
    return SearchConfig(**shared, space=space, search=search)


def apply_point(config: SearchConfig, point: dict[str, Any], out: Path) -> TrainConfig:
    """The training configuration of one point.

    Args:
        config: the search.
        point: backbone (NAME or NAME=WEIGHTS), loss, lr, backbone_lr_ratio.
        out: the trial's folder. What is in it is gone on with.
    """
    from train.backbones import BACKBONES  # torch, for which --help should not wait

    name, _, weights = point["backbone"].partition("=")
    default = "imagenet" if BACKBONES[name].torchvision else "none"
    shared = {item.name: getattr(config, item.name) for item in dataclasses.fields(TrainConfig)}
    shared |= {
        "model": dataclasses.replace(config.model, backbone=name, weights=weights or default),
        "loss": dataclasses.replace(config.loss, name=point["loss"]),
        "optimizer": dataclasses.replace(
            config.optimizer, lr=point["lr"], backbone_lr=point["lr"] * point["backbone_lr_ratio"]
        ),
        "threads": config.search.cpus,
        "out": out,
        "overwrite": False,
        "resume": False,
    }
    return TrainConfig(**shared)


def check_space(config: SearchConfig) -> None:
    """Refuse unknown names and combinations that could not be trained, before any trial starts."""
    from train.backbones import BACKBONES, check_sizes
    from train.losses import LOSSES

    for entry in config.space.backbone:
        if entry.partition("=")[0] not in BACKBONES:
            raise unknown("backbone in space.backbone", entry.partition("=")[0], BACKBONES)
    for name in config.space.loss:
        if name not in LOSSES:
            raise unknown("loss in space.loss", name, LOSSES)
    for entry in config.space.backbone:
        name, _, weights = entry.partition("=")
        check_sizes(name, config.data)
        if weights not in ("", "imagenet", "none") and not Path(weights).is_file():
            raise InputError(f"space.backbone: no weights file at {weights} (of {name})")
        if weights not in ("", "none") and not BACKBONES[name].torchvision:
            raise InputError(f"space.backbone: {name} has no pre-trained weights, but got {weights}")
