"""From a run folder to a model file, and from there into MLflow's registry."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.image import fingerprint
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from train import checkpoint
from train.config import TrainConfig, read_config, to_dict
from train.display import run_name
from train.examples import open_examples
from train.heads import Classifier, make_model
from train.onnx_graph import PARITY_BATCHES, Parity, export_onnx
from train.tracking import client


@dataclass(frozen=True, slots=True)
class Exported:
    """A model file and what is known of it.

    Attributes:
        path: the .onnx file.
        info: its metadata.
        parity: what the gate saw.
        selection_map: mAP (VOC 2010) on the selection part at the best epoch.
    """

    path: Path
    info: ModelInfo
    parity: Parity
    selection_map: float


def newest_run(folder: Path) -> Path:
    """The run in `folder` whose best weights were written last."""
    runs = sorted(folder.glob(f"*/{checkpoint.BEST}"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(f"no finished run in {folder}; train one (python train/main.py) or give --run DIR")
    return runs[-1].parent


def load_best(folder: Path) -> tuple[Classifier, dict[str, Any]]:
    """The model of the run in `folder` with its best weights, on the CPU, and what its checkpoint says."""
    if not (folder / checkpoint.BEST).is_file():
        raise InputError(
            f"{folder} holds no {checkpoint.BEST}: it is not the folder of a run with a finished epoch"
        )
    state = checkpoint.load(folder / checkpoint.BEST)
    config = read_config(folder / checkpoint.CONFIG, TrainConfig())
    # Without its starting weights, which the trained ones replace.
    architecture = dataclasses.replace(config.model, weights="none")
    model = make_model(architecture, len(state["classes"]), state["size"])
    model.load_state_dict(state["model"])
    return model, state


def export_run(folder: Path, out: Path) -> Exported:
    """Export the best weights of the run in `folder` to the model file `out`."""
    model, state = load_best(folder)
    config = read_config(folder / checkpoint.CONFIG, TrainConfig())
    size, classes = state["size"], tuple(state["classes"])
    if state["preprocessing"] != fingerprint(size):
        raise InputError(
            f"{folder} was trained with preprocessing {state['preprocessing']}, but this installation gives "
            f"{fingerprint(size)}: its pixels differ. Export with the versions it was trained with, or train again"
        )
    info = ModelInfo(
        name=f"{run_name(config)} {size} px",
        classes=classes,
        size=size,
        preprocessing=state["preprocessing"],
        scale=(1.0,) * len(classes),
        bias=(0.0,) * len(classes),
        thresholds=(0.5,) * len(classes),
        config=json.dumps(to_dict(config)),
        data_fingerprint=state["data_fingerprint"],
        source_revision=state["source_revision"],
        run_id=state["run_id"],
    )
    examples = open_examples(config.data, config.seed)
    # The selection part first: images that the weights were not fitted to; the rest where it is too small.
    rows = [*examples.selection, *examples.train][: max(PARITY_BATCHES)]
    parity = export_onnx(model, info, examples.cache.pixels[rows], out)
    return Exported(out, info, parity, state["map"])


def register_model(exported: Exported, name: str, alias: str) -> str:
    """Log the model file to its MLflow run, register it as a new version of `name`, and return the version.

    Args:
        exported: of a run that was tracked.
        name: of the registered model.
        alias: set on the new version, such as "champion"; "" = none.
    """
    import mlflow
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    info = exported.info
    if not info.run_id:
        raise InputError(
            f"{exported.path} comes from a run that was not tracked; leave out --tracking.no-enabled in training"
        )
    size, classes = info.size, len(info.classes)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, size, size, 3), INPUT_NAME)]),
        outputs=Schema(
            [TensorSpec(np.dtype("float32"), (-1, classes), output) for output in (LOGIT_NAME, SCORE_NAME)]
        ),
    )
    store: Any = client()
    with mlflow.start_run(run_id=info.run_id):
        logged = mlflow.onnx.log_model(
            onnx.load(exported.path),
            name="model",
            registered_model_name=name,
            signature=signature,
            input_example={INPUT_NAME: np.zeros((1, size, size, 3), dtype=np.uint8)},
            pip_requirements=[f"onnxruntime-gpu=={_version('onnxruntime-gpu')}"],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
    version = str(logged.registered_model_version)
    store.set_model_version_tag(name, version, "selection_map", f"{exported.selection_map:.4f}")
    store.set_model_version_tag(name, version, "parity", f"{exported.parity.difference:.1e}")
    if alias:
        store.set_registered_model_alias(name, alias, version)
    return version


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
