"""From a run folder to a model file, and from there into MLflow's registry."""

import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.image import fingerprint
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from train import checkpoint
from train.config import TrainConfig
from train.config_files import read_config, to_dict
from train.display import run_name
from train.examples import Examples, open_examples
from train.heads import Classifier, make_model
from train.onnx_graph import PARITY_BATCHES, Parity, export_onnx
from train.selection_fit import CalibrationChoice, SelectionFit, fit_on_selection, selection_logits
from train.tracking import HASH_TAG, client, open_store


@dataclass(frozen=True, slots=True)
class Exported:
    """A model file and what is known of it.

    Attributes:
        path: the .onnx file.
        info: its metadata.
        parity: what the gate saw.
        selection_map: mAP (VOC 2010) on the selection part at the best epoch.
        fit: the calibration and the thresholds, and what they are worth.
        note: why the MLflow run was not told of the file, "" where it was.
        examples: what the run learnt from and what it was selected on.
    """

    path: Path
    info: ModelInfo
    parity: Parity
    selection_map: float
    fit: SelectionFit
    note: str
    examples: Examples


def newest_run(folder: Path) -> Path:
    """The run in `folder` whose best weights were written last."""
    runs = sorted(folder.glob(f"*/{checkpoint.BEST}"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(f"no finished run in {folder}; train one (python train/main.py) or give --run DIR")
    return runs[-1].parent


def load_best(folder: Path) -> tuple[Classifier, dict[str, Any], TrainConfig]:
    """The model of the run in `folder` with its best weights, on the CPU, what its checkpoint says, its settings."""
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
    return model, state, config


def export_run(
    folder: Path, out: Path, calibration: CalibrationChoice = "auto", wished_precision: float = 0.9
) -> Exported:
    """Export the best weights of the run in `folder` to the model file `out`, and tell the MLflow run of it.

    Args:
        folder: of the run.
        out: the .onnx file.
        calibration: of the scores, fitted on the selection part; "auto": the best there (`fit_on_selection`).
        wished_precision: what the second set of thresholds should reach.
    """
    if not 0 < wished_precision <= 1:
        raise InputError(f"--wished-precision must be above 0 and at most 1, got {wished_precision}")
    model, state, config = load_best(folder)
    size, classes = state["size"], tuple(state["classes"])
    if state["preprocessing"] != fingerprint(size):
        raise InputError(
            f"{folder} was trained with preprocessing {state['preprocessing']}, but this installation gives "
            f"{fingerprint(size)}: its pixels differ. Export with the versions it was trained with, or train again"
        )
    examples = open_examples(config.data)
    labels, index = examples.labels, examples.selection
    logit = selection_logits(model, examples, config.flip_test)
    fit = fit_on_selection(logit, labels.target[index], labels.mask[index], calibration, wished_precision)
    info = ModelInfo(
        name=f"{run_name(config)} {size} px",
        classes=classes,
        size=size,
        preprocessing=state["preprocessing"],
        scale=tuple(fit.calibration.scale.tolist()),
        bias=tuple(fit.calibration.bias.tolist()),
        thresholds=tuple(fit.thresholds.tolist()),
        config=json.dumps(to_dict(config)),
        data_fingerprint=state["data_fingerprint"],
        source_revision=state["source_revision"],
        run_id=state["run_id"],
        calibration=fit.calibration.kind,
        wished_precision=wished_precision,
        precision_thresholds=tuple(fit.precision_thresholds.tolist()),
        flip=config.flip_test,
    )
    # The selection part first: images that the weights were not fitted to; the rest where it is too small.
    rows = [*examples.selection, *examples.train][: max(PARITY_BATCHES)]
    parity = export_onnx(model, info, examples.cache.pixels[rows], out)
    return Exported(out, info, parity, state["map"], fit, _tell_run(info.run_id, out, fit), examples)


def _tell_run(run_id: str, path: Path, fit: SelectionFit) -> str:
    """Note the file's hash and the fit on the run that it comes from; returns why that was not possible, or ""."""
    figures = {"ece_before": fit.ece_before, "ece_after": fit.ece_after}
    figures |= {f"nll_{kind}": value for kind, value in fit.nll.items()}
    return note_on_run(run_id, {HASH_TAG: sha256(path), "model.calibration": fit.calibration.kind}, figures)


def note_on_run(run_id: str, tags: Mapping[str, str], figures: Mapping[str, float]) -> str:
    """Write tags, and figures under selection/, to an MLflow run; returns why that was not possible, or ""."""
    if not run_id:
        return "the run was not tracked"
    store: Any = open_store()
    if store is None:
        return "there is no MLflow store here (MLFLOW_TRACKING_URI names another)"
    from mlflow.entities import Metric, RunTag
    from mlflow.exceptions import MlflowException

    now = int(time.time() * 1000)
    metrics = [Metric(f"selection/{k}", v, now, 0) for k, v in figures.items() if math.isfinite(v)]
    try:
        store.log_batch(run_id, metrics=metrics, tags=[RunTag(*item) for item in tags.items()])
    except MlflowException as error:
        return str(error).splitlines()[0]
    return ""


def describe(exported: Exported) -> list[str]:
    """The file, its parity, and what was fitted on the selection part, as lines for the terminal."""
    fit, classes = exported.fit, exported.info.classes
    nll = ", ".join(f"{kind} {value:.4f}" for kind, value in fit.nll.items())
    lines = [
        f"model      {exported.path}  ({exported.path.stat().st_size / 1e6:.1f} MB, {exported.info.name})",
        f"parity     largest |logit difference| {exported.parity.difference:.1e} at batch 1, 2 and 32",
        f"calibrated {fit.calibration.kind} (cross-fitted nats a pair: {nll})",
        f"ECE        {fit.ece_before:.4f} before, {fit.ece_after:.4f} after, cross-fitted on the selection part",
        f"thresholds F1: {fit.thresholds.min():.2f} to {fit.thresholds.max():.2f}; "
        f"precision {fit.wished_precision:g}: {np.count_nonzero(fit.precision_thresholds < 1)} of {len(classes)} "
        "classes reach it",
    ]
    if fit.calibration.kept:
        names = ", ".join(classes[c] for c in fit.calibration.kept)
        lines.append(f"note       not calibrated, for want of both answers or of any skill: {names}")
    if exported.note:
        lines.append(f"note       the MLflow run was not told of the file: {exported.note}")
    return lines


def sha256(path: Path) -> str:
    """64 hexadecimal digits of a file's content, as they stand in tags and score files."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def register_model(exported: Exported, name: str, alias: str) -> str:
    """Log the model file to its MLflow run, register it as a new version of `name`, and return the version.

    Args:
        exported: of a run that was tracked.
        name: of the registered model.
        alias: set on the new version, such as "champion"; "" = none.
    """
    import mlflow
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
    store.set_model_version_tag(name, version, "calibration", info.calibration)
    with tempfile.TemporaryDirectory() as folder:
        # MLflow writes the graph anew, so its file may have another hash than ours.
        mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=folder)
        (file,) = Path(folder).rglob("*.onnx")
        store.set_model_version_tag(name, version, HASH_TAG, sha256(file))
    if alias:
        store.set_registered_model_alias(name, alias, version)
    return version


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
