"""The images and labels of a run, split into the part that is trained on and the selection part."""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.cache import Cache, open_cache
from data.csv_labels import read_label_csv
from data.errors import InputError
from data.labels import LabelSet
from data.split import stratified_split
from data.voc import default_devkit, read_voc
from train.config import DataConfig
from train.selection_scores import SelectionScores


@dataclass(frozen=True, slots=True)
class Examples:
    """What a run learns from.

    Attributes:
        labels: N images over C classes.
        cache: their pixels, uint8[N, S, S, 3], in the same order.
        train, selection: int64 indices of the two parts.
    """

    labels: LabelSet
    cache: Cache
    train: npt.NDArray[np.int64]
    selection: npt.NDArray[np.int64]

    def positive_share(self) -> npt.NDArray[np.float64]:
        """float64[C]: positives among the valid pairs of the training part, 0 for a class without any."""
        valid = self.labels.mask[self.train].sum(axis=0)
        positives = (self.labels.target * self.labels.mask)[self.train].sum(axis=0)
        return np.asarray(positives / np.maximum(valid, 1), dtype=np.float64)

    def selection_ap(self, logit: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """float64[C]: AP (VOC 2010) of logits float32[n, C] of the selection part, NaN without a positive."""
        return self.selection_scores(logit).ap()

    def selection_scores(self, logit: npt.NDArray[np.float32]) -> SelectionScores:
        """Logits float32[n, C] of the selection part, with its labels."""
        part = self.labels.subset(self.selection, self.labels.name)
        return SelectionScores(part.classes, part.image_ids, part.target, part.mask, logit)


def read_labels(config: DataConfig) -> LabelSet:
    """The labels that the configuration names; reader's notes go to stderr."""
    labels = read_label_csv(config.labels) if config.labels else _read_devkit(config)
    for note in labels.notes:
        print(f"note: {note}", file=sys.stderr)
    if not labels.paths:
        raise InputError(f"{labels.name} has labels but no images; training needs the images too")
    return labels


def _read_devkit(config: DataConfig) -> LabelSet:
    return read_voc(config.root or default_devkit(), config.split)


def open_examples(config: DataConfig) -> Examples:
    """Read the labels, hold out the selection part, and decode the images into the cache (or find them there)."""
    labels = read_labels(config)
    train, selection = stratified_split(labels.target, labels.mask, config.selection, config.selection_seed)
    return Examples(labels, open_cache(labels, config.size, config.cache), train, selection)
