"""How the calls of an outbox (`train.outbox`) are made to MLflow, and which errors are worth another attempt.

A call is a flat dict as it stands in the file: {"call": "metrics", "step": 3, "time": ..., "values": {...}}.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PARENT_TAG = "mlflow.parentRunId"
# On every run: what the outbox that opened it calls it. It finds a run whose answer to "create" was lost.
KEY_TAG = "tailacc.key"
_DEFAULT_STORE = "sqlite:///mlflow.db"
# MLflow's longest values, in characters.
_PARAMETER_LIMIT, _TAG_LIMIT = 6000, 5000
# What MLflow takes in one request.
_AT_ONCE = {"params": 100, "tags": 100, "metrics": 1000}
# Statuses below 500 that tell of the server or of the door to it, not of the call.
_LATER = (401, 403, 407, 408, 425, 429)
# MLflow turns every error of its database into 400 but OperationalError. These are a connection that broke, and two
# processes that made the same row at the same moment (seen with a data set on Postgres): the next attempt finds it.
_BROKEN = ("InterfaceError", "PendingRollbackError", "OperationalError", "connection already closed")
_RACED = ("UniqueViolation", "UNIQUE constraint failed", "Duplicate entry")


def absolute_store() -> str:
    """MLFLOW_TRACKING_URI, or else mlflow.db of the current folder; SQLite's path made absolute."""
    uri, prefix = os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT_STORE, "sqlite:///"
    return prefix + str(Path(uri.removeprefix(prefix)).absolute()) if uri.startswith(prefix) else uri


def client(uri: str = "") -> Any:
    """An `MlflowClient` on that store, or on MLFLOW_TRACKING_URI; the logs of its database are kept quiet."""
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri or None)


def impatient_client(uri: str) -> Any:
    """A client whose requests fail within 10 s: MLflow's own defaults try for four minutes without a word."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return client(uri)


def experiment_id(mlflow_client: Any, name: str) -> str:
    """The id of the experiment of that name, created at first use, also when several processes try at once."""
    from mlflow.exceptions import MlflowException

    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        try:
            # The UI then opens on runs and models rather than on traces of language models.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(mlflow_client.create_experiment(name, tags=tags))
        except MlflowException:
            found = mlflow_client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def create(mlflow_client: Any, call: Mapping[str, Any], key: str, again: bool) -> str:
    """Create a run and return its id; `again`: an earlier attempt may have done so, look for its key first."""
    experiment = experiment_id(mlflow_client, call["experiment"])
    if again and (known := runs_with(mlflow_client, experiment, {KEY_TAG: key})):
        return str(known[0].info.run_id)
    tags = call["tags"] | {KEY_TAG: key}
    run = mlflow_client.create_run(experiment, call["time"], tags, call["name"] or None)
    return str(run.info.run_id)


def runs_with(mlflow_client: Any, experiment: str, tags: Mapping[str, str]) -> list[Any]:
    """The runs with all these tags, the oldest first."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return list(mlflow_client.search_runs([experiment], wanted, order_by=["attributes.start_time"]))


def perform(mlflow_client: Any, run_id: str, call: Mapping[str, Any], folder: Path) -> None:
    """Make one call on an open run; all of them may be made twice.

    Args:
        mlflow_client: an `MlflowClient`.
        run_id: of the run.
        call: see `train.outbox.Outbox`.
        folder: what a relative path in it is relative to.
    """
    kind = call["call"]
    if kind in _AT_ONCE:
        for values in _entities(call):
            mlflow_client.log_batch(run_id, **{kind: values})
    elif kind == "dataset":
        mlflow_client.log_inputs(run_id, [_dataset(call["values"])])
    elif kind == "artifact":
        mlflow_client.log_artifact(run_id, str(folder / call["path"]))
    elif kind == "running":
        mlflow_client.update_run(run_id, status="RUNNING")
    elif kind == "end":
        end(mlflow_client, run_id, call)
    else:
        raise ValueError(f"unknown call '{kind}'")


def end(mlflow_client: Any, run_id: str, call: Mapping[str, Any]) -> None:
    """Close a run; with "unless_ended" only one that still counts as running."""
    if call.get("unless_ended") and mlflow_client.get_run(run_id).info.status != "RUNNING":
        return
    mlflow_client.set_terminated(run_id, call["status"], call["time"])


def remove_twins(mlflow_client: Any, run_id: str, key: str) -> None:
    """Delete other runs of the same key: a server that froze may carry out a request that was given up."""
    experiment = mlflow_client.get_run(run_id).info.experiment_id
    for run in runs_with(mlflow_client, experiment, {KEY_TAG: key}):
        if run.info.run_id != run_id:
            mlflow_client.delete_run(run.info.run_id)


def note_child(mlflow_client: Any, parent: str, call: Mapping[str, Any], outbox_run: str | None) -> None:
    """Tag and close the runs of a search's trial, where its own process cannot.

    Args:
        mlflow_client: an `MlflowClient`.
        parent: run id of the search.
        call: trial_id, run_id ("" = the newest with that trial_id), tags, status, time.
        outbox_run: the run of the trial's outbox, "" before it was created: the outbox closes it, so only what
            the trial left behind is closed here: a run of a process that died before its first checkpoint.
            None where no outbox is in reach.
    """
    experiment = mlflow_client.get_run(parent).info.experiment_id
    found = [
        run.info.run_id
        for run in runs_with(mlflow_client, experiment, {"trial_id": call["trial_id"]})
        if run.data.tags.get(PARENT_TAG, parent) == parent
    ]
    own = outbox_run
    if own is None and (own := call["run_id"] or (found[-1] if found else "")):
        _close(mlflow_client, own, call, call["tags"] | {PARENT_TAG: parent})
    lost = {"trial.state": "lost", "trial.reason": "its process died before its first checkpoint"}
    for run_id in found:
        if run_id != own:
            _close(mlflow_client, run_id, {**call, "status": "KILLED"}, lost | {PARENT_TAG: parent})


def _close(mlflow_client: Any, run_id: str, call: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    perform(mlflow_client, run_id, {"call": "tags", "values": tags}, Path())
    end(mlflow_client, run_id, {**call, "unless_ended": True})


def _entities(call: Mapping[str, Any]) -> Iterator[list[Any]]:
    from mlflow.entities import Metric, Param, RunTag

    kind, values = call["call"], call["values"].items()
    found: list[Any]
    if kind == "params":
        found = [Param(key, str(value)[:_PARAMETER_LIMIT]) for key, value in values]
    elif kind == "tags":
        found = [RunTag(key, str(value)[:_TAG_LIMIT]) for key, value in values]
    else:
        found = [Metric(key, value, call["time"], call["step"]) for key, value in values]
    size = _AT_ONCE[kind]
    return (found[start : start + size] for start in range(0, len(found), size))


def _dataset(values: Mapping[str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = Dataset(
        name=values["name"],
        digest=values["digest"],
        source_type="local",
        source=json.dumps({"path": values["source"]}),
        profile=values["profile"],
    )
    return DatasetInput(source, [InputTag("mlflow.data.context", "training")])


def is_temporary(error: Exception) -> bool:
    """Whether the same call may succeed later: the server or its database is away, or won't have us now.

    Otherwise the call itself is at fault, and so would be every repetition.
    """
    response = getattr(error, "response", None)  # of requests, which MLflow's artifact upload lets through
    status = getattr(response, "status_code", None)
    if status is None and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
        if any(word in str(error) for word in _BROKEN + _RACED):
            return True
    if status is not None:
        return bool((status >= 500 and status != 501) or status in _LATER)
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return not isinstance(error, (TypeError, ValueError, LookupError, ImportError, AttributeError))


def one_line(error: Exception) -> str:
    """The kind of an error and the beginning of its message."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
