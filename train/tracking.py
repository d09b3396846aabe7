"""What goes into MLflow: this module and the two it stands on, `train.outbox` and `train.mlflow_calls`.

The store is MLFLOW_TRACKING_URI, or MLflow's own default (SQLite, `mlflow.db` in the current folder), so that
a plain `mlflow ui` shows the runs.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from train.mlflow_calls import PARENT_TAG, client, experiment_id
from train.outbox import Outbox

__all__ = [
    "CHEAPER_HASH_TAGS",
    "HASH_TAG",
    "PARENT_TAG",
    "MlflowTracker",
    "NoTracker",
    "Tracker",
    "client",
    "experiment_id",
    "open_store",
]

# SHA-256 of the model file, on the run that it was exported from and on the registered version: it leads from a
# score file, which names the hash, back to the run.
HASH_TAG = "model.sha256"
# Of the cheaper copies of that file.
CHEAPER_HASH_TAGS = {"int8": "model.int8.sha256", "fp16": "model.fp16.sha256"}
_WAIT_STOPPED = 10.0  # seconds for the record of a run that failed or was told to stop


class Tracker(Protocol):
    """Where a run is recorded."""

    @property
    def run_id(self) -> str:
        """Of MLflow; "" where there is none, or none yet."""

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


class MlflowTracker:
    """One MLflow run, new or taken up again. Nothing here waits for MLflow but `finish`: see `train.outbox`.

    Args:
        folder: of the run, which keeps the outbox. One that is there is gone on with.
        experiment: name of the experiment.
        run_name: shown in the UI.
        parameters: flat, dotted names.
        dataset: name, digest, source and profile of the data set, logged as the run's input.
        tags: further tags; `PARENT_TAG` makes it a child of another run.
        run_id: the run to take up again where the folder has no outbox.
        wait: seconds that `finish` gives a server that is away.
    """

    def __init__(
        self,
        folder: Path,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any],
        dataset: Mapping[str, str],
        tags: Mapping[str, str],
        run_id: str = "",
        wait: float = 60.0,
    ) -> None:
        self._wait = wait
        self._outbox = Outbox(folder, experiment, run_name, tags, run_id)
        if self._outbox.taken_up:
            self._outbox.tags(tags)  # it may go on elsewhere
        else:
            self._outbox.params(parameters)
            self._outbox.dataset(dataset)

    @property
    def run_id(self) -> str:
        """Of MLflow, "" until the server has answered."""
        return self._outbox.run_id

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch (counted from 1) in one call; NaN (a class without AP) is left out."""
        self._outbox.metrics(metrics, epoch)

    def finish(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Close the run with its last metrics and files; what MLflow could not take stays in the folder."""
        self._outbox.metrics(metrics)
        for path in artifacts:
            if path.is_file():
                self._outbox.artifact(path)
        self._outbox.end(status)
        # Who is told to stop is not waited for.
        self._outbox.close(self._wait if status == "FINISHED" else min(self._wait, _WAIT_STOPPED))
