"""From a point to the configuration of its trial, and the check that every point can be trained."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import InputError, unknown
from train.config import DataConfig, TrainConfig
from tune.space import AUGMENTS, SearchConfig

# On a trial's MLflow run: its point, and what became of it.
POINT_TAG, STATE_TAG = "trial.point", "trial.state"


def apply_point(config: SearchConfig, point: Mapping[str, Any], out: Path) -> TrainConfig:
    """The training configuration of one point.

    Args:
        config: the search.
        point: a flat dict; see `tune.space`. "seed" is known too: the race varies it.
        out: the trial's folder.
    """
    name, weights = backbone_of(point["backbone"])
    model: dict[str, Any] = {"backbone": name, "weights": weights}
    loss: dict[str, Any] = {"name": point["loss"]}
    optimizer: dict[str, Any] = {"lr": point["lr"], "backbone_lr": point["lr"] * point["backbone_lr_ratio"]}
    changed: dict[str, Any] = {}
    for key, value in point.items():
        if key.startswith("loss."):
            loss[key.removeprefix("loss.")] = value
        elif key == "head":
            model["head"] = value
        elif key == "weight_decay":
            optimizer["weight_decay"] = value
        elif key == "size":
            changed["data"] = dataclasses.replace(config.data, size=value)
        elif key == "augment":
            changed["augment"] = AUGMENTS[value]
        elif key in ("ema", "seed"):
            changed[key] = value
    shared = {item.name: getattr(config, item.name) for item in dataclasses.fields(TrainConfig)}
    shared |= {
        "model": dataclasses.replace(config.model, **model),
        "loss": dataclasses.replace(config.loss, **loss),
        "optimizer": dataclasses.replace(config.optimizer, **optimizer),
        "threads": config.search.cpus,
        "out": out,
        "overwrite": False,
        "resume": False,
    }
    return TrainConfig(**(shared | changed))


def backbone_of(entry: str) -> tuple[str, str]:
    """Name and weights of an entry of `space.backbone`: without "=", ImageNet's where there are any."""
    from train.backbones import BACKBONES  # torch, for which --help should not wait

    name, _, weights = entry.partition("=")
    return name, weights or ("imagenet" if BACKBONES[name].torchvision else "none")


def fetch_all_weights(config: SearchConfig) -> None:
    """Download on this machine what the trials would, each of them at its start and again at each retry.

    Raises:
        InputError: weights that cannot be had.
    """
    from train.backbones import BACKBONES, fetch_weights

    for name, weights in map(backbone_of, config.space.backbone):
        if weights == "imagenet":
            instead = f"give a file with --space.backbone {name}=PATH, or train from scratch with {name}=none"
            fetch_weights(BACKBONES[name].torchvision, instead)


def architecture(point: Mapping[str, Any]) -> str:
    """What the serving cost of a point depends on: backbone, head and image size."""
    name = str(point["backbone"]).partition("=")[0]
    return " ".join(str(part) for part in (name, point.get("head", ""), point.get("size", "")) if part)


def point_tag(point: Mapping[str, Any]) -> str:
    """The point as the text of `POINT_TAG`: what a later search starts from."""
    return json.dumps(dict(point), sort_keys=True)


def absolute_weights(entries: Sequence[str]) -> tuple[str, ...]:
    """`space.backbone` with absolute paths of weights: workers have folders of their own."""

    def absolute(entry: str) -> str:
        name, _, weights = entry.partition("=")
        return entry if weights in ("", "imagenet", "none") else f"{name}={Path(weights).absolute()}"

    return tuple(absolute(entry) for entry in entries)


def shown(point: Mapping[str, Any]) -> dict[str, Any]:
    """The point as people read it: the backbone without the path of its weights."""
    return {key: value.partition("=")[0] if key == "backbone" else value for key, value in point.items()}


def data_configs(config: SearchConfig) -> list[DataConfig]:
    """The data settings of all trials: one for each image size."""
    sizes = config.space.size or (config.data.size,)
    return [dataclasses.replace(config.data, size=size) for size in sizes]


def check_space(config: SearchConfig) -> None:
    """Refuse unknown names and combinations that could not be trained, before any trial starts."""
    from train.backbones import BACKBONES, check_sizes
    from train.heads import HEADS
    from train.losses import LOSSES

    space = config.space
    names = [entry.partition("=")[0] for entry in space.backbone]
    registries: tuple[tuple[str, tuple[str, ...], Mapping[str, object]], ...] = (
        ("backbone", tuple(names), BACKBONES),
        ("head", space.head, HEADS),
        ("loss", space.loss, LOSSES),
        ("augment", space.augment, AUGMENTS),
    )
    for kind, chosen, registry in registries:
        for name in chosen:
            if name not in registry:
                raise unknown(f"{kind} in space.{kind}", name, registry)
    for entry in space.backbone:
        name, _, weights = entry.partition("=")
        for data in data_configs(config):
            check_sizes(name, data)
        if weights not in ("", "imagenet", "none") and not Path(weights).is_file():
            raise InputError(f"space.backbone: no weights file at {weights} (of {name})")
        if weights not in ("", "none") and not BACKBONES[name].torchvision:
            raise InputError(f"space.backbone: {name} has no pre-trained weights, but got {weights}")
