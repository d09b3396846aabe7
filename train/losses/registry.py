"""The losses by name, each with the range that a search of its settings should cover."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from train.config import LossConfig
from train.losses import classes, images, pairs
from train.losses.base import Loss

Range = tuple[float, float, Literal["uniform", "log"]]
"""(lowest, highest, how values between them are drawn)."""


@dataclass(frozen=True, slots=True)
class LossSpec:
    """One loss.

    Attributes:
        build: (config, positive share float[C]) -> the loss.
        summary: one line for lists and help texts.
        space: recommended range of each setting of `LossConfig` that it uses and that is worth a search.
    """

    build: Callable[[LossConfig, Tensor], Loss]
    summary: str
    space: dict[str, Range]


LOSSES: dict[str, LossSpec] = {
    "bce": LossSpec(pairs.Bce, "binary cross-entropy; strictly proper", {}),
    "pos_weighted": LossSpec(
        pairs.PosWeighted,
        "BCE, positives weigh by the rarity of their class",
        {"max_pos_weight": (5, 50, "log")},
    ),
    "class_balanced": LossSpec(
        pairs.ClassBalanced,
        "BCE, classes weigh by the inverse of their effective number; strictly proper",
        {"effective_share": (0.02, 1, "log")},
    ),
    "focal": LossSpec(pairs.Focal, "BCE, easy pairs weigh less", {"gamma": (0.5, 3, "uniform")}),
    "asl": LossSpec(
        pairs.Asl,
        "asymmetric loss: focal for negatives, with a margin",
        {"gamma_pos": (0, 1, "uniform"), "gamma_neg": (2, 5, "uniform"), "margin": (0, 0.1, "uniform")},
    ),
    "apl": LossSpec(
        pairs.Apl,
        "asymmetric polynomial loss: ASL with other first coefficients of the logarithm",
        {
            "apl_first": (-1, 1, "uniform"),
            "apl_second": (-2.5, 2.5, "uniform"),
            "gamma_neg": (2, 5, "uniform"),
            "margin": (0, 0.1, "uniform"),
        },
    ),
    "hill": LossSpec(
        pairs.Hill,
        "for missing labels: negatives with very high scores weigh less",
        {"hill_lambda": (1.2, 2, "uniform"), "hill_margin": (0.5, 1, "uniform"), "gamma": (0, 3, "uniform")},
    ),
    "proper": LossSpec(
        pairs.Proper,
        "strictly proper and asymmetric: easy negatives weigh less",
        {"asymmetry": (0.25, 1, "uniform")},
    ),
    "tail": LossSpec(
        classes.Tail,
        "ours: strictly proper, the top of each class's ranking weighs more",
        {"tail_power": (0.25, 1, "uniform"), "tail_floor": (0.01, 0.1, "log")},
    ),
    "two_way": LossSpec(
        images.TwoWay,
        "ranks classes within images and images within classes of the batch",
        {"positive_temperature": (1, 8, "log")},
    ),
    "lsep": LossSpec(images.Lsep, "ranks classes within an image", {}),
    "zlpr": LossSpec(images.Zlpr, "ranks classes within an image, with 0 between yes and no", {}),
    "smooth_ap": LossSpec(
        classes.SmoothAp,
        "average precision of each class over batch and memory, smoothed, with some BCE",
        {"temperature": (0.1, 2, "log"), "anchor": (0.1, 3, "log")},
    ),
    "top_precision": LossSpec(
        classes.TopPrecision,
        "precision above soft thresholds at the top of each class, with some BCE",
        {"temperature": (0.1, 2, "log"), "anchor": (0.3, 3, "log")},
    ),
}


def make_loss(config: LossConfig, positive_share: Tensor) -> Loss:
    """The loss of that configuration.

    Args:
        config: names one of `LOSSES`.
        positive_share: float[C], the share of positives among the valid training pairs of each class.
    """
    loss = LOSSES[config.name].build(config, positive_share)
    loss.smoothing = config.label_smoothing
    return loss
