"""The search in MLflow: one parent run with the space and the table of trials, one child run a trial."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config_files import flatten, to_dict
from train.revision import source_revision
from train.tracking import client, experiment_id
from tune.space import SearchConfig

STATE_TAG = "trial.state"
TABLE = "trials.csv"


@dataclass(frozen=True, slots=True)
class TrialRow:
    """What is known of one trial.

    Attributes:
        trial_id: Ray's.
        state: running, completed, pruned (stopped early by ASHA), failed, or unfinished.
        backbone, loss, lr: its point.
        epoch: the last finished one.
        best_map: best selection mAP (VOC 2010) so far, NaN before the first epoch.
        reason: why it failed, one line.
    """

    trial_id: str
    state: str
    backbone: str
    loss: str
    lr: float
    epoch: int
    best_map: float
    reason: str = ""


def write_table(path: Path, rows: Sequence[TrialRow]) -> None:
    """The table of trials as CSV, best first."""
    names = list(TrialRow.__slots__)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)


class ParentRun:
    """The search's own MLflow run.

    Args:
        config: the search.
        run_id: the run to take up again; "" starts one.
    """

    def __init__(self, config: SearchConfig, run_id: str) -> None:
        from mlflow.entities import Param

        self._client = client()
        if run_id:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        experiment = experiment_id(self._client, config.tracking.experiment)
        name = config.tracking.run_name or f"search: {config.search.sampler}, {config.search.trials} trials"
        tags = {"kind": "search", "source_revision": source_revision()}
        run = self._client.create_run(experiment, run_name=name, tags=tags)
        self.run_id = run.info.run_id
        parameters = flatten(to_dict(config))
        self._client.log_batch(self.run_id, params=[Param(k, str(v)) for k, v in parameters.items()])

    def trial_ended(self, row: TrialRow) -> None:
        """Tag a trial's run with what became of it, and close it where its process could not."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        found = self._client.search_runs([experiment], f"tags.trial_id = '{row.trial_id}'")
        for run in found:
            if run.data.tags.get("mlflow.parentRunId") != self.run_id:
                continue
            self._client.set_tag(run.info.run_id, STATE_TAG, row.state)
            if row.reason:
                self._client.set_tag(run.info.run_id, "trial.reason", row.reason)
            status = {"completed": "FINISHED", "failed": "FAILED"}.get(row.state, "KILLED")
            self._client.set_terminated(run.info.run_id, status)

    def finish(
        self, status: str, metrics: dict[str, float], tags: dict[str, Any], files: Sequence[Path]
    ) -> None:
        """Close the search as "FINISHED" or "KILLED" with its best trial's figures and its files."""
        for key, value in metrics.items():
            self._client.log_metric(self.run_id, key, value)
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)
        for path in files:
            self._client.log_artifact(self.run_id, str(path))
        self._client.set_terminated(self.run_id, status)
