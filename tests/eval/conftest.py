import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from data.labels import VOC_CLASSES
from data.scores import read_scores, write_scores
from train.config import TrainConfig
from train.config_files import to_dict
from train.tracking import HASH_TAG, client, experiment_id

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


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The files of a finished run of three epochs, the second the best, as train/ writes them."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(TrainConfig())))
    (folder / "result.json").write_text(json.dumps({"run_id": "abc"}))
    (folder / "selection.csv").write_text("image_id\n2012_000001\n2012_000002\n")
    rows = [f"{i},{0.3 / i},{value},100" for i, value in enumerate((0.2, 0.5, 0.4), start=1)]
    header = "epoch,train/loss,val/map,time/images_per_second"
    (folder / "history.csv").write_text("\n".join([header, *rows]) + "\n")
    none = dict.fromkeys(VOC_CLASSES, 0)
    hardware = {"cpu": "Test CPU", "cores": 2, "threads": 2, "gpu": "", "gpus": 0}
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "status": "FINISHED",
        "seconds": 90.5,
        "hardware": hardware,
        "processes": 1,
        "precision": "bf16",
        "seed": 0,
        "source_revision": "0123abc",
        "system": "Linux x86_64",
        "python": "3.11.7",
        "versions": {"torch": "9.9"},
    }
    data = {
        "name": "VOC2012 train",
        "fingerprint": "f" * 16,
        "preprocessing": "p" * 16,
        "train": {"images": 30, "positives": none | {"bicycle": 3}, "ignored": none},
        "selection": {"images": 5, "positives": none | {"bicycle": 1}, "ignored": none},
    }
    model = {"parameters": 12345, "weights_sha256": ""}
    environment = {"data": data, "model": model, "sessions": [session]}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture
def served_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[Path, str]]:
    """Turns a CSV into the score file of a model that an MLflow run exported; gives the file and the run's id."""
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.chdir(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(csv: Path) -> tuple[Path, str]:
        run = client().create_run(experiment_id(client(), "eval"), tags={HASH_TAG: "ab" * 32})
        scores = read_scores(csv)
        metadata = {"model_name": "toy", "model_version": "file", "model_hash": "ab" * 32}
        write_scores(store / "scores.parquet", replace(scores, metadata=metadata))
        return store / "scores.parquet", str(run.info.run_id)

    return make
