"""What is searched, with which budget: the space, the options of a search, and both beside a training configuration.

A *point* is one choice of everything that varies: a flat dict of plain values, such as
`{"backbone": "resnet50", "loss": "asl", "loss.gamma_neg": 3.1, "lr": 1.2e-3, "backbone_lr_ratio": 0.1}`.
`tune.points` puts it into the configuration of a trial, `tune.sampling` chooses it.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from train.config import AugmentConfig, TrainConfig, require

Sampler = Literal["grid", "random", "tpe"]
Scheduler = Literal["asha", "hyperband", "none"]
Objective = Literal["map", "map-and-cost"]
Policy = Literal["always", "if-better", "never"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two, both included; with `log` drawn evenly over its logarithm."""

    low: float
    high: float
    log: bool = False


Axis = Choice | Range

# The settings of a loss that are searched with it (space.loss_settings): around the values of the papers that
# `train.losses` names. Losses without an entry have nothing to set.
LOSS_SPACE: Mapping[str, Mapping[str, Range]] = {
    "focal": {"gamma": Range(0.5, 3.0)},
    "asl": {"gamma_neg": Range(1.0, 6.0), "margin": Range(0.0, 0.2)},
    "pos_weighted": {"max_pos_weight": Range(2.0, 50.0, log=True)},
    "class_balanced": {"effective_share": Range(0.05, 0.8, log=True)},
    "apl": {"gamma_neg": Range(1.0, 6.0), "apl_second": Range(1.0, 3.0)},
    "hill": {"hill_lambda": Range(1.0, 2.0), "hill_margin": Range(0.0, 1.5)},
    "proper": {"asymmetry": Range(0.0, 1.0)},
    "two_way": {"positive_temperature": Range(1.0, 8.0, log=True)},
    "tail": {"tail_power": Range(0.2, 1.5)},
    "smooth_ap": {"temperature": Range(0.1, 2.0, log=True), "anchor": Range(0.1, 1.0)},
    "top_precision": {"temperature": Range(0.1, 2.0, log=True), "anchor": Range(0.1, 1.0)},
}

# Named augmentations for space.augment, from nothing to what long trainings want.
AUGMENTS: Mapping[str, AugmentConfig] = {
    "none": AugmentConfig(crop="none", flip=0.0, brightness=0.0, contrast=0.0),
    "weak": AugmentConfig(min_area=0.85, aspect=1.1),
    "standard": AugmentConfig(),
    "strong": AugmentConfig(randaugment_ops=2, cutout=0.3, cutout_probability=0.5),
    "mixup": AugmentConfig(mixup=0.2, mix_probability=0.5),
}

_CHOICES = ("backbone", "head", "loss", "augment", "size", "ema")
_RANGES = ("lr", "backbone_lr_ratio", "weight_decay")


@dataclass(frozen=True, slots=True)
class Space:
    """What varies. Choices may be given as `a b` or `a,b`; what is left empty is as the training settings say.

    Attributes:
        backbone: names to choose from, each with its starting weights where these are not the default:
            NAME or NAME=WEIGHTS, with WEIGHTS as for --model.weights. Default weights: imagenet, and none
            for the tiny ones.
        head: names to choose from.
        loss: names to choose from.
        loss_settings: search the settings of each loss too, within `LOSS_SPACE`.
        lr: lowest and highest learning rate of the head, drawn log-uniformly.
        backbone_lr_ratio: lowest and highest learning rate of the backbone as a share of the head's,
            drawn log-uniformly.
        weight_decay: lowest and highest, drawn log-uniformly.
        augment: named augmentations to choose from: none, weak, standard, strong, mixup.
        size: sides of the input in pixels to choose from.
        ema: decays of the moving average of the weights to choose from.
    """

    backbone: tuple[str, ...] = ("tiny_cnn", "tiny_resnet")
    head: tuple[str, ...] = ()
    loss: tuple[str, ...] = ("bce", "asl")
    loss_settings: bool = False
    lr: tuple[float, float] = (4e-3, 1.2e-2)
    backbone_lr_ratio: tuple[float, float] = (1.0, 1.0)
    weight_decay: tuple[float, ...] = ()
    augment: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    ema: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("backbone", "head", "loss", "augment"):
            parts = [part for value in getattr(self, name) for part in value.split(",") if part]
            object.__setattr__(self, name, tuple(parts))
        for name in ("backbone", "loss"):
            values = getattr(self, name)
            require(len(values) > 0, f"space.{name} must name at least one choice", values)
        for name in _CHOICES:
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"space.{name} must not repeat a choice", values)
        for name in _RANGES:
            limits = getattr(self, name)
            rule = f"space.{name} must be LOW HIGH with 0 < LOW <= HIGH"
            require(not limits or (len(limits) == 2 and 0 < limits[0] <= limits[1]), rule, limits)
        require(all(0 <= ema < 1 for ema in self.ema), "space.ema must be in [0, 1)", self.ema)

    def axes(self) -> dict[str, Axis]:
        """What varies whatever the loss is, in a fixed order."""
        found: dict[str, Axis] = {}
        for name in _CHOICES:
            if values := getattr(self, name):
                found[name] = Choice(values)
        for name in _RANGES:
            if limits := getattr(self, name):
                found[name] = Range(limits[0], limits[1], log=True)
        return found

    def loss_axes(self, loss: str) -> dict[str, Axis]:
        """What varies with that loss, as "loss.<setting>"."""
        if not self.loss_settings:
            return {}
        return {f"loss.{name}": axis for name, axis in LOSS_SPACE.get(loss, {}).items()}

    def cells(self) -> list[dict[str, Any]]:
        """Every combination of the choices: what a grid tries."""
        choices = {name: axis.values for name, axis in self.axes().items() if isinstance(axis, Choice)}
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How it is searched.

    Attributes:
        trials: how many points are tried; a grid is tried in whole rounds.
        hours: of wall time after which no trial goes on; 0 = no limit.
        sampler: "grid": every combination of the choices, the ranges drawn at random; "random"; "tpe": Optuna's
            tree-structured Parzen estimator, after random points: a quarter of the trials, and no fewer than the
            longest list of choices, each of which they take in turn.
        scheduler: "asha" stops trials that lag behind (Li et al. 2020, arXiv:1810.05934); "hyperband" (Li et al.
            2018, arXiv:1603.06560) pauses them first; "none".
        objective: "map": the selection mAP; "map-and-cost": that and the serving cost of the architecture, for
            TPE and for the picture.
        warm_start: MLflow run ids of earlier searches, whose trials TPE starts from.
        finalists: the best trials that are trained again with fresh seeds, so that noise does not choose the
            winner; 1 = the best trial wins as it is.
        race_seeds: how many fresh seeds for each.
        retries: how often a trial goes on after a fault (an error, a killed worker, a lost machine), from its last
            checkpoint.
        keep: how many of the best trials keep their weights; the others keep their record only.
        concurrency: trials at the same time; 0 = as many as the resources allow.
        workers: processes of each trial. One trains in the process of Ray Tune; more are a Ray Train group.
        cpus, gpus: of each worker; gpus may be a fraction; -1 = one where there is one, else none.
        ray_address: of a running cluster ("auto" = this machine's); "" = start Ray in this process.
        register: name under which the winner is registered in MLflow; "" = not at all.
        promote: whether the winner becomes @champion: "if-better": only where it beats the present one on the
            same selection images outside the noise.
    """

    trials: int = 4
    hours: float = 0.0
    sampler: Sampler = "grid"
    scheduler: Scheduler = "asha"
    objective: Objective = "map"
    warm_start: tuple[str, ...] = ()
    finalists: int = 1
    race_seeds: int = 2
    retries: int = 2
    keep: int = 3
    concurrency: int = 0
    workers: int = 1
    cpus: int = 1
    gpus: float = -1.0
    ray_address: str = ""
    register: str = "tailacc"
    promote: Policy = "if-better"

    def __post_init__(self) -> None:
        for name in ("trials", "finalists", "race_seeds", "keep", "workers", "cpus"):
            value = getattr(self, name)
            require(value >= 1, f"search.{name} must be at least 1", value)
        for name in ("hours", "retries", "concurrency"):
            value = getattr(self, name)
            require(value >= 0, f"search.{name} must not be negative", value)
        require(self.gpus >= 0 or self.gpus == -1, "search.gpus must be 0 or more, or -1", self.gpus)
        rule = "search.gpus must be a whole number above 1, or a fraction of one GPU"
        require(self.gpus <= 1 or self.gpus == int(self.gpus), rule, self.gpus)
        rule = "search.keep must be at least search.finalists, whose weights the race starts beside"
        require(self.keep >= self.finalists, rule, f"{self.keep} and {self.finalists}")
        rule = "search.warm_start is for search.sampler tpe, which alone learns from earlier trials"
        require(not self.warm_start or self.sampler == "tpe", rule, self.sampler)


@dataclass(frozen=True, slots=True)
class SearchConfig(TrainConfig):
    """A search: the settings that all trials share, the space, and the budget.

    Attributes:
        space: what varies between trials; it takes the place of the settings of the same name.
        search: sampler, budget and resources.
    """

    space: Space = field(default_factory=Space)
    search: SearchOptions = field(default_factory=SearchOptions)
