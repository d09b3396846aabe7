"""A devkit of coloured squares, small enough to train on in a second."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.labels import VOC_CLASSES
from train.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
)
from train.presets import preset

CLASSES = VOC_CLASSES


def write_squares(root: Path, split: str, count: int, seed: int) -> None:
    """Images whose classes are coloured squares in fixed places: class c is easy to see."""
    random = np.random.default_rng(seed)
    folder = root / "VOC2012"
    main = folder / "ImageSets" / "Main"
    for path in (main, folder / "JPEGImages"):
        path.mkdir(parents=True, exist_ok=True)
    label = np.where(random.random((count, len(CLASSES))) < 0.25, 1, -1)
    label[random.random(label.shape) < 0.03] = 0
    ids = [f"2012_{split}{i:04d}" for i in range(count)]
    for image_id, row in zip(ids, label, strict=True):
        pixels = random.integers(90, 120, (40, 50, 3)).astype(np.uint8)
        for c in np.flatnonzero(row == 1):
            y, x = divmod(int(c), 5)
            pixels[10 * y : 10 * y + 9, 10 * x : 10 * x + 9] = (250, 20 * y, 250 - 50 * x)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=95)
    (main / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    for c, name in enumerate(CLASSES):
        lines = (f"{image_id} {label[i, c]:2d}\n" for i, image_id in enumerate(ids))
        (main / f"{name}_{split}.txt").write_text("".join(lines))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Batches this small lose more to the hand-over between threads than they win."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    write_squares(root, "train", 230, seed=1)
    write_squares(root, "val", 60, seed=2)
    return root


@pytest.fixture
def smoke(devkit: Path, tmp_path: Path) -> TrainConfig:
    """The smoke preset on the squares, untracked, into a fresh folder."""
    base = preset("smoke")
    return dataclasses.replace(
        base,
        data=DataConfig(root=devkit, size=32, cache=devkit / "cache"),
        model=ModelConfig(backbone="tiny_cnn", weights="none", dropout=0.1),
        tracking=TrackingConfig(enabled=False),
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr=1e-3),
        # The place of a square is part of its class: no flips.
        augment=AugmentConfig(min_area=0.85, aspect=1.1, flip=0.0),
        out=tmp_path / "run",
        batch_size=32,
        precision="float32",
        threads=1,
    )
