"""What goes into MLflow. The only module of train/ that imports it, and it imports nothing of train/.

The store is MLFLOW_TRACKING_URI, or MLflow's own default (SQLite, `mlflow.db` in the current folder), so that
a plain `mlflow ui` shows the runs.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

PARENT_TAG = "mlflow.parentRunId"
# SHA-256 of the model file, on the run that it was exported from and on the registered version: it leads from a
# score file, which names the hash, back to the run.
HASH_TAG = "model.sha256"
# Of the cheaper copies of that file.
CHEAPER_HASH_TAGS = {"int8": "model.int8.sha256", "fp16": "model.fp16.sha256"}
_PARAMETER_LIMIT = 6000  # MLflow's longest parameter value, in characters


class Tracker(Protocol):
    """Where a run is recorded."""

    run_id: str

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch (counted from 1)."""

    def finish(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Close the run as "FINISHED", "FAILED" or "KILLED" with its last metrics and files."""


class NoTracker:
    """Records nothing."""

    run_id = ""

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def finish(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Nothing."""


def client() -> Any:
    """An `MlflowClient` on the store, with the logs of its database migrations kept quiet."""
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient()


def open_store() -> Any:
    """A client on MLFLOW_TRACKING_URI, or on mlflow.db of the current folder; None where there is none.

    For readers and for those who add to a run: asking MLflow itself would create an empty store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    local = uri.removeprefix("sqlite:///")
    if local != uri and not Path(local).is_file():
        return None
    # MLflow's own defaults try a server that is away for four minutes without a word.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return client()


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


class MlflowTracker:
    """One MLflow run, new or taken up again.

    Args:
        experiment: name of the experiment.
        run_name: shown in the UI.
        parameters: flat, dotted names.
        dataset: name, digest, source and profile of the data set, logged as the run's input.
        tags: further tags; `PARENT_TAG` makes it a child of another run.
        run_id: the run to take up again instead of starting one.
    """

    def __init__(
        self,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any],
        dataset: Mapping[str, str],
        tags: Mapping[str, str],
        run_id: str = "",
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self._client = client()
        if run_id:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        run = self._client.create_run(
            experiment_id(self._client, experiment), run_name=run_name or None, tags=dict(tags)
        )
        self.run_id = run.info.run_id
        self._client.log_batch(
            self.run_id, params=[Param(k, str(v)[:_PARAMETER_LIMIT]) for k, v in parameters.items()]
        )
        source = Dataset(
            name=dataset["name"],
            digest=dataset["digest"],
            source_type="local",
            source=json.dumps({"path": dataset["source"]}),
            profile=dataset["profile"],
        )
        context = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(self.run_id, [DatasetInput(source, context)])

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch (counted from 1) in one call; NaN (a class without AP) is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(k, float(v), now, epoch) for k, v in metrics.items() if math.isfinite(v)]
        self._client.log_batch(self.run_id, metrics=values)

    def finish(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Close the run with its last metrics and files."""
        for key, value in metrics.items():
            self._client.log_metric(self.run_id, key, value)
        for path in artifacts:
            if path.is_file():
                self._client.log_artifact(self.run_id, str(path))
        self._client.set_terminated(self.run_id, status)
