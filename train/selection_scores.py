"""What a run's best weights say of each image of the selection part: the file that noise is judged from.

`selection.npz` in the run folder holds logits, targets and mask, so that another run, a race or a person can
compare two models on the same images without either model at hand.

Shapes: n images, C classes, B replicates.
"""

import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from eval.intervals import REPLICATES, bootstrap, interval, nan_mean
from eval.metrics import average_precision, mean_average_precision
from eval.ranking import rankings


@dataclass(frozen=True, slots=True)
class SelectionScores:
    """Logits of the selection part, with its labels.

    Attributes:
        classes: C names in order.
        image_ids: n ids.
        target, mask: uint8[n, C]; mask 0 = ignored.
        logit: float32[n, C].
    """

    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    target: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    logit: npt.NDArray[np.float32]

    def ap(self) -> npt.NDArray[np.float64]:
        """float64[C]: AP (VOC 2010), NaN for a class without a positive."""
        return average_precision(self.logit, self.target, self.mask, self.image_ids)

    def map(self) -> float:
        """MAP (VOC 2010) over the classes with a positive."""
        return mean_average_precision(self.ap())[0]

    def replicates(self, count: int = REPLICATES, seed: int = 0) -> npt.NDArray[np.float64]:
        """float64[B, C]: AP of each bootstrap replicate; the same images for the same ids and seed."""
        ranked = list(rankings(self.logit, self.target, self.mask, self.image_ids))
        return bootstrap(ranked, len(self.image_ids), None, count, seed, ["voc2010"]).ap["voc2010"]

    def map_interval(self, seed: int = 0) -> tuple[float, float]:
        """The 95 % bootstrap interval over images of `map`."""
        low, high = interval(nan_mean(self.replicates(seed=seed)))
        return float(low), float(high)

    def same_images(self, other: "SelectionScores") -> bool:
        """Whether both were scored on the same images with the same labels."""
        return (
            self.classes == other.classes
            and self.image_ids == other.image_ids
            and np.array_equal(self.mask, other.mask)
            and np.array_equal(self.target * self.mask, other.target * other.mask)
        )


@dataclass(frozen=True, slots=True)
class Paired:
    """A difference of mAP, A - B, with its 95 % interval by the paired bootstrap over images.

    Attributes:
        difference, low, high: in [-1, 1].
    """

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> int:
        """1: A is better outside the noise; -1: B is; 0: the images cannot tell."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def compare_map(
    a: Sequence[SelectionScores], b: Sequence[SelectionScores], replicates: int = REPLICATES, seed: int = 0
) -> Paired:
    """The mean mAP of the models `a` (one setting, several seeds) minus that of the models `b`.

    Images are drawn anew in each replicate, the same for all models, and so is one seed of each side with
    replacement: the interval holds the noise of the images and of the training.

    Raises:
        InputError: not the same images and labels.
    """
    if any(not a[0].same_images(other) for other in (*a, *b)):
        raise InputError("models can be compared on the same images with the same labels only")
    rng = np.random.default_rng(seed)

    def drawn(side: Sequence[SelectionScores]) -> npt.NDArray[np.float64]:
        samples = np.stack([nan_mean(scores.replicates(replicates, seed)) for scores in side])
        picks = rng.integers(len(side), size=(len(side), replicates))
        return np.asarray(np.take_along_axis(samples, picks, axis=0).mean(axis=0))

    difference = float(np.mean([s.map() for s in a]) - np.mean([s.map() for s in b]))
    low, high = interval(drawn(a) - drawn(b))
    return Paired(difference, float(low), float(high))


def write_selection_scores(path: Path, scores: SelectionScores) -> None:
    """Write the file by an atomic rename."""
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as stream:
        np.savez_compressed(
            stream,
            classes=np.array(scores.classes),
            image_ids=np.array(scores.image_ids),
            target=scores.target,
            mask=scores.mask,
            logit=scores.logit,
        )
    os.replace(partial, path)


def read_selection_scores(path: Path) -> SelectionScores:
    """Read what `write_selection_scores` wrote.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise InputError(
            f"{path.parent} holds no {path.name}: it is not the folder of a run with a finished epoch"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return SelectionScores(
                tuple(file["classes"].tolist()),
                tuple(file["image_ids"].tolist()),
                file["target"],
                file["mask"],
                file["logit"],
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def best_figures(path: Path) -> dict[str, float]:
    """For MLflow: best/map_low and best/map_high, the 95 % interval, and best/ap/<class> of that epoch.

    Nothing where the run is of a version that did not write the file.
    """
    if not path.is_file():
        return {}
    scores = read_selection_scores(path)
    low, high = scores.map_interval()
    ap = zip(scores.classes, scores.ap(), strict=True)
    classes = {f"best/ap/{name}": float(value) for name, value in ap if math.isfinite(value)}
    return {"best/map_low": low, "best/map_high": high} | classes
