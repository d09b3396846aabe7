from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from data.labels import VOC_CLASSES

# A deadline for each example would time the machine, not the code.
settings.register_profile("eval", deadline=None)
settings.load_profile("eval")


@pytest.fixture(scope="session")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A devkit of 12 photographs: image i shows class i % 3, and class 0 is difficult-only in image 11."""
    root = tmp_path_factory.mktemp("devkit")
    folder = root / "VOC2012"
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    ids = [f"2008_{i:06d}" for i in range(12)]
    rng = np.random.default_rng(0)
    for image_id in ids:
        pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image_id}.jpg")
    (main / "val.txt").write_text("\n".join(ids) + "\n")
    for c, name in enumerate(VOC_CLASSES):
        values = [1 if i % 3 == c else -1 for i in range(12)]
        if c == 0:
            values[11] = 0
        (main / f"{name}_val.txt").write_text(
            "".join(f"{i} {v:2d}\n" for i, v in zip(ids, values, strict=True))
        )
    return root


@pytest.fixture
def score_csv(tmp_path: Path) -> Path:
    """Probabilities for the devkit's 12 images and 20 classes, as anyone may write them."""
    rng = np.random.default_rng(1)
    values = rng.uniform(0.01, 0.99, (12, 20))
    rows = [",".join(["image", *VOC_CLASSES])]
    rows += [f"a\\b/2008_{i:06d}.jpg," + ",".join(f"{v:.6f}" for v in values[i]) for i in range(12)]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(rows) + "\n")
    return path
