"""What the export fits on the selection part: a calibration of the scores, and thresholds for each class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data.errors import InputError
from eval.calibration import (
    FITS,
    Calibration,
    CalibrationKind,
    choose_calibration,
    cross_fitted_scores,
    fit_thresholds,
    reliability,
)
from train.evaluation import predict
from train.examples import Examples

CalibrationChoice = Literal["auto", "platt", "temperature", "none"]


@dataclass(frozen=True, slots=True)
class SelectionFit:
    """Fitted on the selection part, with what it is worth.

    Attributes:
        calibration: the line on the logit of each class.
        nll: cross-fitted negative log-likelihood of each kind of calibration, in nats a pair.
        thresholds: float64[C], scores of the highest F1.
        wished_precision: in (0, 1].
        precision_thresholds: float64[C], the lowest scores that reach it; 1.0 where none does.
        ece_before, ece_after: expected calibration error without and with the calibration, a mean over the
            classes; after: each image under a calibration that was fitted on the other half of the images.
    """

    calibration: Calibration
    nll: Mapping[CalibrationKind, float]
    thresholds: npt.NDArray[np.float64]
    wished_precision: float
    precision_thresholds: npt.NDArray[np.float64]
    ece_before: float
    ece_after: float


def selection_logits(model: nn.Module, examples: Examples, flip: bool = False) -> npt.NDArray[np.float32]:
    """float32[n, C]: the logits of the selection part, on the GPU where there is one.

    With `flip`, the mean over each image and its mirror image, as the model file will compute it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return predict(model.eval().to(device), examples.cache.pixels, examples.selection, device, flip=flip)


def fit_on_selection(
    logit: npt.NDArray[np.float32],
    target: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    choice: CalibrationChoice = "auto",
    wished_precision: float = 0.9,
) -> SelectionFit:
    """Fit on logits float32[n, C] of the selection part.

    "auto" takes the kind with the lowest cross-fitted negative log-likelihood.

    Raises:
        InputError: a wished precision outside (0, 1], or logits that are not finite.
    """
    if not np.isfinite(logit).all():
        raise InputError("the model's logits are not finite on the selection part; train it again")
    best, nll = choose_calibration(logit, target, mask)
    kind = best if choice == "auto" else choice
    calibration = FITS[kind](logit, target, mask)
    score = calibration.apply(logit)
    return SelectionFit(
        calibration,
        nll,
        fit_thresholds(score, target, mask, "f1"),
        wished_precision,
        fit_thresholds(score, target, mask, wished_precision),
        _mean_ece(cross_fitted_scores("none", logit, target, mask), target, mask),
        _mean_ece(cross_fitted_scores(kind, logit, target, mask), target, mask),
    )


def _mean_ece(
    score: npt.NDArray[np.float32], target: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]
) -> float:
    columns = range(score.shape[1])
    return float(np.nanmean([reliability(score[:, c], target[:, c], mask[:, c]).ece for c in columns]))
