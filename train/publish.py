"""From a run folder to a model file, and from there into MLflow's registry."""

import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
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
from train.outbox import run_id_of
from train.selection_fit import CalibrationChoice, SelectionFit, fit_on_selection, selection_logits
from train.selection_scores import SelectionScores
from train.tracking import HASH_TAG, open_store

CHAMPION, PREVIOUS = "champion", "previous"
# SHA-256 of the file that a registered version was made from. MLflow writes the graph anew, so that its own file
# (`HASH_TAG`) may have another.
EXPORTED_TAG = "model.exported_sha256"
CARD = "card.md"


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
        scores: the logits of the selection part that the calibration was fitted to.
    """

    path: Path
    info: ModelInfo
    parity: Parity
    selection_map: float
    fit: SelectionFit
    note: str
    examples: Examples
    scores: SelectionScores


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
    # The weights may be older than MLflow's answer. Averaged ones, which have no history, are of no single run.
    if not state["run_id"] and (folder / checkpoint.HISTORY).is_file():
        state["run_id"] = run_id_of(folder)
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
    scores = examples.selection_scores(logit)
    note = _tell_run(info.run_id, out, fit)
    return Exported(out, info, parity, state["map"], fit, note, examples, scores)


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


def summary(exported: Exported) -> str:
    """What a person should know of a registered version, as a few lines of Markdown."""
    info, labels, scores = exported.info, exported.examples.labels, exported.scores
    low, high = scores.map_interval()
    return "\n".join(
        [
            f"**{info.name}**: {len(info.classes)} yes/no labels of a photograph, {info.precision}.",
            "",
            f"- selection mAP {scores.map():.4f} [{low:.4f}, {high:.4f}] on {len(scores.image_ids)} images, which also "
            "chose the model: optimistic",
            f"- data: {labels.name}, fingerprint {info.data_fingerprint}",
            f"- calibration {info.calibration}; largest |logit difference| to torch "
            f"{exported.parity.difference:.1e}",
            f"- source {info.source_revision or 'unknown'}",
            f"- exported file SHA-256 {sha256(exported.path)}",
            f"- the model card, where one was written: {CARD} among the model's artifacts",
        ]
    )


def register_model(exported: Exported, name: str, alias: str, card: Path | None = None) -> str:
    """Log the model file to its MLflow run, register it as a new version of `name`, and return the version.

    A file that is registered under the name already keeps its version; card, description and alias are renewed.
    The run's status and its end are left as they are.

    Args:
        exported: of a run that was tracked.
        name: of the registered model.
        alias: set on the version, such as "champion"; "" = none.
        card: goes beside the model in MLflow; None: the card.md beside the file, where it is of this very file.

    Raises:
        InputError: the run was not tracked, or is not in this store; a name that the server could not fetch.
    """
    info = exported.info
    if not info.run_id:
        raise InputError(
            f"{exported.path} comes from a run that was not tracked; leave out --tracking.no-enabled in training"
        )
    if not name or set(name) & set("/:@'\","):
        raise InputError(
            f"a registered model's name must not be empty nor hold / : @ , or quotes, got '{name}'"
        )
    store, digest = registry(), sha256(exported.path)
    card = card or _card_beside(exported.path, digest)
    found = _registered_before(store, name, info.run_id, digest)
    if found is None:
        model_id = _log_model(store, exported)
        _log_figures(store, exported, model_id)
        found = _create_version(store, exported, name, model_id, digest)
    if card:
        store.log_model_artifact(found.source.removeprefix("models:/"), str(card))
    number = str(found.version)
    store.update_model_version(name, number, description=summary(exported))
    if alias:
        set_alias(store, name, alias, number)
    return number


def registry() -> Any:
    """A client on the store that is there. Raises `InputError` where there is none."""
    store: Any = open_store()
    if store is None:
        raise InputError(
            f"no MLflow store in {Path.cwd()} (mlflow.db); go to the folder of the training, or set "
            "MLFLOW_TRACKING_URI"
        )
    return store


def aliases(store: Any, name: str) -> dict[str, str]:
    """Alias -> version of a registered model."""
    # MLflow gives the versions as numbers or as text, depending on the store.
    return {key: str(version) for key, version in store.get_registered_model(name).aliases.items()}


def set_alias(store: Any, name: str, alias: str, version: str) -> None:
    """Move an alias. What was champion becomes `previous` first: an interruption never leaves no champion."""
    if alias == CHAMPION:
        earlier = aliases(store, name).get(CHAMPION, version)
        if earlier != version:
            store.set_registered_model_alias(name, PREVIOUS, earlier)
    store.set_registered_model_alias(name, alias, version)


def _card_beside(path: Path, digest: str) -> Path | None:
    card = path.with_name(CARD)
    return card if card.is_file() and digest in card.read_text(encoding="utf-8") else None


def _registered_before(store: Any, name: str, run_id: str, digest: str) -> Any:
    """The version of `name` that holds this very file, None where there is none."""
    versions = store.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((found for found in versions if found.tags.get(EXPORTED_TAG) == digest), None)


def _log_model(store: Any, exported: Exported) -> str:
    """Log the file as a model of its run; returns MLflow's id of it."""
    import mlflow
    import onnx
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    info, examples = exported.info, exported.examples
    size, classes = info.size, len(info.classes)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, size, size, 3), INPUT_NAME)]),
        outputs=Schema(
            [TensorSpec(np.dtype("float32"), (-1, classes), output) for output in (LOGIT_NAME, SCORE_NAME)]
        ),
    )
    try:
        run = store.get_run(info.run_id)
    except MlflowException as error:
        raise InputError(
            f"the run of {exported.path} is not in the MLflow store {mlflow.get_tracking_uri()} "
            f"({str(error).splitlines()[0]}); set MLFLOW_TRACKING_URI to the one that it was trained with"
        ) from error
    # Made here rather than by log_model, which would want the run to be active and so set its status and its end.
    model = store.create_logged_model(
        run.info.experiment_id, "model", info.run_id, params=dict(run.data.params), model_type="onnx"
    )
    mlflow.onnx.log_model(
        onnx.load(exported.path),
        model_id=model.model_id,
        run_id=info.run_id,
        signature=signature,
        # A photograph, so that whoever tries the example sees an answer worth reading.
        input_example={INPUT_NAME: np.ascontiguousarray(examples.cache.pixels[examples.selection[:1]])},
        pip_requirements=[f"{package}=={version(package)}" for package in ("onnx", "onnxruntime-gpu")],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    return str(model.model_id)


def _log_figures(store: Any, exported: Exported, model_id: str) -> None:
    """Metrics on the selection part, each linked to the model and to that part as a data set of the run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    examples, scores, run_id = exported.examples, exported.scores, exported.info.run_id
    labels = examples.labels
    name = f"{labels.name}, selection part"
    part = labels.subset(examples.selection, name)
    dataset = Dataset(
        name=name,
        digest=part.fingerprint(),
        source_type="local",
        source=json.dumps({"path": str(labels.paths[0].parent.resolve())}),
        profile=json.dumps({"images": len(part), "classes": len(part.classes)}),
    )
    store.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "selection")])])
    low, high = scores.map_interval()
    figures = {"map": scores.map(), "map_low": low, "map_high": high, "ece": exported.fit.ece_after}
    figures |= {f"ap/{c}": float(ap) for c, ap in zip(scores.classes, scores.ap(), strict=True)}
    now = int(time.time() * 1000)
    metrics = [
        Metric(f"selection/{key}", value, now, 0, model_id, name, dataset.digest, run_id)
        for key, value in figures.items()
        if math.isfinite(value)
    ]
    store.log_batch(run_id, metrics=metrics)


def _create_version(store: Any, exported: Exported, name: str, model_id: str, digest: str) -> Any:
    """A new version of `name` with all its tags at once: no version without its hash, whenever this is cut off."""
    import mlflow
    from mlflow.exceptions import MlflowException

    info, scores, uri = exported.info, exported.scores, f"models:/{model_id}"
    low, high = scores.map_interval()
    tags = {
        EXPORTED_TAG: digest,
        "model": info.name,
        "precision": info.precision,
        "selection_map": f"{scores.map():.4f}",
        "selection_map_low": f"{low:.4f}",
        "selection_map_high": f"{high:.4f}",
        "parity": f"{exported.parity.difference:.1e}",
        "calibration": info.calibration,
        "data": info.data_fingerprint,
    }
    with tempfile.TemporaryDirectory() as folder:
        mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        (file,) = Path(folder).rglob("*.onnx")
        tags[HASH_TAG] = sha256(file)
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return store.create_model_version(
        name, uri, run_id=info.run_id, tags=tags, await_creation_for=0, model_id=model_id
    )
