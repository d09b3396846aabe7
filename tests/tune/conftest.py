"""What the tests of a search share: a tiny devkit, one Ray for a module, and the processes of its trials."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from data.cache import open_cache
from data.image import fingerprint
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from data.synthetic import write_devkit
from train.config import DataConfig, TrainConfig
from train.config_files import to_dict
from train.examples import Examples, open_examples
from train.onnx_graph import Parity
from train.onnx_session import logits, open_model
from train.publish import Exported
from train.selection_fit import fit_on_selection
from train.selection_scores import SelectionScores
from tune.options import parse_search
from tune.space import SearchConfig

Make = Callable[..., SearchConfig]


@pytest.fixture(scope="session")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic images to train on."""
    folder = tmp_path_factory.mktemp("devkit")
    write_devkit(folder, 60, 20, seed=1)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the searches write, and their MLflow store."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def local_ray(home: Path) -> Iterator[Any]:
    """A Ray of two CPUs in this process, which the searches share: 10 s of each are saved."""
    import ray

    from tune.placement import start_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        start_ray(parse_search([]))
        yield ray
        ray.shutdown()


@pytest.fixture
def make(devkit: Path, home: Path) -> Make:
    """The configuration of a tiny search into `home / name`, from the flags of the command line."""

    def build(name: str, *flags: str) -> SearchConfig:
        base = [
            "--data.root",
            str(devkit),
            "--data.size",
            "32",
            "--batch-size",
            "16",
            "--out",
            str(home / name),
        ]
        base += ["--data.cache", str(home / "cache"), "--search.finalists", "1", "--tracking.no-enabled"]
        return parse_search([*base, *flags])

    return build


@pytest.fixture(scope="session")
def trial_processes() -> Callable[[int], list[psutil.Process]]:
    """Finds the processes below one that run trials."""

    def find(root: int) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(root).children(recursive=True):
            try:
                if any("ImplicitFunc" in part for part in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    return find


@pytest.fixture(scope="session")
def epochs() -> Callable[[Path], list[int]]:
    """The epochs in the history of a run's folder."""

    def read(folder: Path) -> list[int]:
        path = folder / "history.csv"
        if not path.is_file():
            return []
        with path.open() as stream:
            return [int(row["epoch"]) for row in csv.DictReader(stream)]

    return read


SIGNS = ("person", "cat", "dog", "rare")
Tiny = Callable[..., Exported]


@pytest.fixture(scope="session")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """160 images of 16 px, half held out. Row 0 shows the labels, rows 4 and 8 noise; each class has two columns."""
    folder, rng = tmp_path_factory.mktemp("signs"), np.random.default_rng(0)
    target = (rng.random((160, 4)) < (0.5, 0.4, 0.3, 0.05)).astype(np.uint8)
    lines = [",".join(("image", *SIGNS))]
    for i, row in enumerate(target):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[0:2, 0:8] = np.repeat(row * 200, 2)[None, :, None]
        for y in (4, 8):
            pixels[y : y + 2, 0:8] = np.repeat(rng.integers(0, 256, 4), 2)[None, :, None]
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        lines.append(f"{i:03d}.png," + ",".join(map(str, row)))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return open_examples(sign_data(folder))


def sign_data(folder: Path, **changed: Any) -> DataConfig:
    base = DataConfig(labels=folder / "labels.csv", selection=0.5, size=16, cache=folder / "cache")
    return dataclasses.replace(base, **changed)


@pytest.fixture(scope="session")
def tiny(signs: Examples) -> Tiny:
    """Writes a model file that reads the labels off the image, blurred by one of the two rows of noise."""

    def build(path: Path, noise: float = 0.0, row: int = 4, size: int = 16, **changed: Any) -> Exported:
        k, count = size // 16, len(SIGNS)
        weight = np.zeros((size, size, 3, count), np.float32)
        for c in range(count):
            weight[0, 2 * c * k, 0, c] = 0.02
            weight[row * k, 2 * c * k, 0, c] = 0.02 * noise
        nodes = [
            helper.make_node("Cast", [INPUT_NAME], ["x"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], [LOGIT_NAME]),
            helper.make_node("Sigmoid", [LOGIT_NAME], [SCORE_NAME]),
        ]
        tensors = {"weight": weight.reshape(-1, count), "bias": np.full(count, -2, np.float32)}
        kind = onnx.TensorProto
        graph = helper.make_graph(
            nodes,
            "signs",
            [helper.make_tensor_value_info(INPUT_NAME, kind.UINT8, ["N", size, size, 3])],
            [helper.make_tensor_value_info(n, kind.FLOAT, ["N", count]) for n in (LOGIT_NAME, SCORE_NAME)],
            [numpy_helper.from_array(value, name) for name, value in tensors.items()],
        )
        folder = signs.labels.paths[0].parent
        config = dataclasses.replace(TrainConfig(), data=sign_data(folder, size=size))
        known = {
            "name": path.stem,
            "classes": SIGNS,
            "size": size,
            "preprocessing": fingerprint(size),
            "scale": (1.0,) * count,
            "bias": (0.0,) * count,
            "thresholds": (0.5,) * count,
            "config": json.dumps(to_dict(config)),
            "data_fingerprint": signs.labels.fingerprint(),
            "source_revision": "abc+dirty",
        }
        info = ModelInfo(**known | changed)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        helper.set_model_props(proto, info.to_metadata())
        onnx.save_model(proto, path)
        index, labels = signs.selection, signs.labels
        at = open_cache(labels, size, folder / "cache").pixels
        logit = logits(open_model(path), at[index])
        target, mask = labels.target[index], labels.mask[index]
        ids = tuple(labels.image_ids[i] for i in index)
        scores = SelectionScores(SIGNS, ids, target, mask, logit)
        fit = fit_on_selection(logit, target, mask, "none")
        return Exported(path, info, Parity(1e-6, 1.0), scores.map(), fit, "", signs, scores)

    return build
