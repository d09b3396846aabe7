"""What is known of how the judged model was made, read from its run: a run folder, or its MLflow run.

Nothing is invented: what no file tells stays empty here, and the paper says "not recorded".
"""

import csv
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.labels import LabelSet
from data.scores import Scores
from eval.feedback import find_run
from train.tracking import PARENT_TAG, open_store

# The files of a run folder (train/checkpoint.py writes them; all are also artifacts of the MLflow run).
CONFIG, HISTORY, SELECTION, ENVIRONMENT = "config.json", "history.csv", "selection.csv", "environment.json"
RESULT = "result.json"
# The files of a search's folder (tune/).
TRIALS, SEARCH, TRIAL_FOLDERS = "trials.csv", "search.json", "trials"
STATE_TAG = "trial.state"


@dataclass(frozen=True, slots=True)
class Part:
    """Some images of a data set: how many, and the positive and ignored ones of each class."""

    images: int
    positives: Mapping[str, int]
    ignored: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The labels that the model was trained on, and the two parts they were split into."""

    name: str
    fingerprint: str
    preprocessing: str
    train: Part
    selection: Part


@dataclass(frozen=True, slots=True)
class JudgedLabels:
    """The labels that the scores are judged against, scored or not."""

    name: str
    fingerprint: str
    counts: Part


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration of a search.

    Attributes:
        name: of the trial.
        state: completed, pruned, failed, ...; "not recorded" where the search did not say.
        settings: its flat configuration.
        epochs: finished ones; None where not recorded.
        best_map: best selection mAP (VOC 2010); None where not recorded.
        chosen: it gave the judged model.
    """

    name: str
    state: str
    settings: Mapping[str, str]
    epochs: int | None
    best_map: float | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class Search:
    """A search: its own flat settings, and its trials, best first."""

    settings: Mapping[str, Any]
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything known of the judged model; empty or None = not recorded.

    Attributes:
        origin: where the facts were read, in words.
        score_file: metadata of the score file: model name, version and hash, server version, ...
        tested: the labels that the scores are judged against: name, fingerprint, counts.
        run_id: MLflow run.
        config: the flat resolved configuration, dotted names as in MLflow.
        data: what it was trained on.
        parameters: of the network.
        weights_sha256: of the file that the weights started from.
        sessions: hardware, versions and time, one for each start of the run.
        history: metrics of each epoch.
        search: the search that the run was a trial of; None for a run of its own, or where not recorded.
        seen: judged images that belong to the selection part, and so to the training data.
        selected: the size of the selection part as its list of images gives it.
        notes: what a reader must know.
    """

    origin: str
    score_file: Mapping[str, str]
    tested: JudgedLabels
    run_id: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    data: TrainingData | None = None
    parameters: int | None = None
    weights_sha256: str = ""
    sessions: tuple[Mapping[str, Any], ...] = ()
    history: tuple[Mapping[str, float], ...] = ()
    search: Search | None = None
    seen: int = 0
    selected: int = 0
    notes: tuple[str, ...] = ()

    @property
    def best_epoch(self) -> int | None:
        """The epoch (from 1) whose weights were kept: the first with the best selection mAP."""
        maps = [row["val/map"] for row in self.history]
        return maps.index(max(maps)) + 1 if maps else None

    @property
    def best_map(self) -> float | None:
        """The selection mAP (VOC 2010) of the kept weights."""
        return max((row["val/map"] for row in self.history), default=None)


def collect_facts(scores: Scores, labels: LabelSet, run: Path | None = None, store: Any = None) -> Facts:
    """Read what is known of the model that gave the scores.

    Args:
        scores: the judged score file.
        labels: what it is judged against.
        run: folder of the training run; None: the run of the registered model that the score file names.
        store: an `MlflowClient`; None: the store of MLFLOW_TRACKING_URI or mlflow.db here, where there is one.

    Raises:
        InputError: `run` is no run folder, or its preprocessing is not that of the scores.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    store = store if store is not None else open_store()
    known = Facts("the score file alone", dict(scores.metadata), _tested(labels))
    if run is not None:
        if not (run / CONFIG).is_file():
            raise InputError(f"--run {run} is not the folder of a training run: it holds no {CONFIG}")
        origin = f"the run folder {run.name}"
        own, (scored, _) = _run_id_of(run), find_run(store, scores.metadata)
        if own and scored and own != scored:
            raise InputError(
                f"{origin} is not of the model that gave the scores: it is MLflow run {own}, the model is of {scored}"
            )
        facts = _read(run, replace(known, origin=origin, run_id=own or scored), labels)
        return replace(facts, search=_search_beside(run) or _search_of(store, facts.run_id))
    run_id, reason = find_run(store, scores.metadata)
    if not run_id:
        note = f"how the model was trained is not recorded: {reason} (--run DIR tells it)"
        return replace(known, notes=(note,))
    with tempfile.TemporaryDirectory() as folder:
        there = {item.path for item in store.list_artifacts(run_id)}
        for name in there & {CONFIG, HISTORY, SELECTION, ENVIRONMENT}:
            store.download_artifacts(run_id, name, folder)
        facts = _read(Path(folder), replace(known, origin=f"the MLflow run {run_id}", run_id=run_id), labels)
    return replace(facts, search=_search_of(store, run_id))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optimizer": {"lr": 1}}` -> `{"optimizer.lr": 1}`, as MLflow's parameters are named."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def _tested(labels: LabelSet) -> JudgedLabels:
    def counts(values: Iterable[int]) -> dict[str, int]:
        return {name: int(value) for name, value in zip(labels.classes, values, strict=True)}

    part = Part(len(labels), counts(labels.positives()), counts(labels.ignored()))
    return JudgedLabels(labels.name, labels.fingerprint(), part)


def _read(folder: Path, facts: Facts, labels: LabelSet) -> Facts:
    """`facts` with what the files of a run tell; a file that is missing leaves its part empty."""
    selection = _selection(folder / SELECTION)
    environment = _json(folder / ENVIRONMENT)
    data = _training_data(environment["data"]) if environment else None
    wanted = facts.score_file.get("preprocessing", "")
    if data and wanted and data.preprocessing != wanted:
        raise InputError(
            f"{facts.origin} is not of the model that gave the scores: it was trained with preprocessing "
            f"{data.preprocessing}, the scores have {wanted}"
        )
    return replace(
        facts,
        config=flatten(_json(folder / CONFIG)),
        data=data,
        parameters=environment["model"]["parameters"] if environment else None,
        weights_sha256=environment["model"]["weights_sha256"] if environment else "",
        sessions=tuple(environment["sessions"]) if environment else (),
        history=_history(folder / HISTORY),
        seen=len(selection & set(labels.image_ids)),
        selected=len(selection),
    )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _training_data(content: Mapping[str, Any]) -> TrainingData:
    return TrainingData(
        content["name"],
        content["fingerprint"],
        content["preprocessing"],
        Part(**content["train"]),
        Part(**content["selection"]),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _history(path: Path) -> tuple[dict[str, float], ...]:
    return tuple({key: float(value) for key, value in row.items()} for row in _rows(path))


def _selection(path: Path) -> set[str]:
    return {row["image_id"] for row in _rows(path)}


def _run_id_of(run: Path) -> str:
    # A trial that the search stopped wrote no result.
    return str(_json(run / ENVIRONMENT).get("run_id") or _json(run / RESULT).get("run_id", ""))


def _search_beside(run: Path) -> Search | None:
    """The search that the run folder is a trial of, from the search's own folder."""
    folder = run.absolute().parent.parent
    rows = _rows(folder / TRIALS)
    if run.absolute().parent.name != TRIAL_FOLDERS or not rows:
        return None
    trials = [
        Trial(
            row["trial_id"],
            row["state"],
            _text(flatten(_json(folder / TRIAL_FOLDERS / row["trial_id"] / CONFIG))) or _point(row),
            int(row["epoch"]),
            _finite(float(row["best_map"])),
            row["trial_id"] == run.name,
        )
        for row in rows
    ]
    return Search(flatten(_json(folder / SEARCH)), _best_first(trials))


def _search_of(store: Any, run_id: str) -> Search | None:
    """The search that the MLflow run is a child of; None for a run of its own or one that the store lacks."""
    if store is None or not run_id:
        return None
    import mlflow

    try:
        own = store.get_run(run_id)
        parent_id = own.data.tags.get(PARENT_TAG)
        parent = store.get_run(parent_id) if parent_id else None
    except mlflow.exceptions.MlflowException:
        return None
    if parent is None:
        return None
    children = store.search_runs(
        [own.info.experiment_id], f"tags.`{PARENT_TAG}` = '{parent_id}'", max_results=1000
    )
    trials = []
    for child in children:
        steps = store.get_metric_history(child.info.run_id, "val/map")
        trials.append(
            Trial(
                child.data.tags.get("trial_id", child.info.run_id),
                child.data.tags.get(STATE_TAG, "not recorded"),
                child.data.params,
                len(steps) or None,
                max((step.value for step in steps), default=None),
                child.info.run_id == run_id,
            )
        )
    return Search(parent.data.params, _best_first(trials))


def _best_first(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    def rank(trial: Trial) -> tuple[float, str]:
        return (-trial.best_map if trial.best_map is not None else math.inf, trial.name)

    return tuple(sorted(trials, key=rank))


def _text(settings: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in settings.items()}


def _point(row: Mapping[str, str]) -> dict[str, str]:
    """What the table of trials says of one that left no configuration."""
    names = {"backbone": "model.backbone", "loss": "loss.name", "lr": "optimizer.lr"}
    return {key: row[column] for column, key in names.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
