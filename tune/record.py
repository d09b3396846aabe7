"""The search in MLflow: one parent run with the space and the table of trials, one child run a trial.

Nothing here waits for MLflow but `wait_for_run` and `finish`: the calls go through an outbox in the search's folder
(`train.outbox`), and those about a trial through the trial's own, which also outlives a trial that was killed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config_files import flatten, to_dict
from train.mlflow_calls import PARENT_TAG, absolute_store, impatient_client, one_line
from train.outbox import Outbox, now
from train.revision import source_revision
from tune.points import STATE_TAG
from tune.rows import TrialRow
from tune.space import SearchConfig
from tune.trial import trial_folder

# On the search and on its trials: joins them also where the search's run had no id when a trial began.
SEARCH_TAG = "search.key"
_STATUS = {"completed": "FINISHED", "failed": "FAILED"}


class ParentRun:
    """The search's own MLflow run.

    Args:
        config: the search.
        out: its folder, which keeps the outbox; one that is there is gone on with.
    """

    def __init__(self, config: SearchConfig, out: Path) -> None:
        name = config.tracking.run_name or f"search: {config.search.sampler}, {config.search.trials} trials"
        tags = {"kind": "search", "source_revision": source_revision()}
        self._out, self._wait = out, config.tracking.wait
        self._experiment = config.tracking.experiment
        self._outbox = Outbox(out, config.tracking.experiment, name, tags)
        if not self._outbox.taken_up:
            self._outbox.tags({SEARCH_TAG: self._outbox.key})
            self._outbox.params(flatten(to_dict(config)))

    @property
    def run_id(self) -> str:
        """Of MLflow, "" until the server has answered."""
        return self._outbox.run_id

    def wait_for_run(self, seconds: float) -> str:
        """The run's id, waited for that long; "" where the server is away."""
        return self._outbox.wait_for_run(seconds)

    def page(self) -> str:
        """Where a person finds it in the MLflow UI."""
        # Without "runs" the UI opens an experiment on the page for language models.
        try:
            experiment = (
                impatient_client(absolute_store()).get_experiment_by_name(self._experiment).experiment_id
            )
        except Exception as error:  # MLflow is away; `finish` has said how to send the rest
            return f"not reached ({one_line(error)}); the record is in {self._out}"
        return f"mlflow ui, then its page /#/experiments/{experiment}/runs; parent run {self.run_id}"

    def child_tags(self) -> dict[str, str]:
        """What makes a trial's run a child of this one; without the parent's id it becomes one when it ends."""
        return {SEARCH_TAG: self._outbox.key} | ({PARENT_TAG: self.run_id} if self.run_id else {})

    def trial_ended(self, row: TrialRow) -> None:
        """Tag a trial's run with what became of it, and close it where its process could not."""
        tags = {
            "trial_id": row.trial_id,
            STATE_TAG: row.state,
            "trial.reason": row.reason,
            "trial.node": row.node,
            "trial.gpu": row.gpu,
            "trial.restarts": str(row.restarts),
            SEARCH_TAG: self._outbox.key,
        }
        child = {
            "call": "child",
            "folder": str(trial_folder(self._out, row.trial_id).relative_to(self._out)),
            "trial_id": row.trial_id,
            "run_id": row.run_id,
            "tags": {key: value for key, value in tags.items() if value},
            "status": _STATUS.get(row.state, "KILLED"),
            "time": now(),
            "restarted": row.restarts > 0 or row.state in ("failed", "unfinished"),
        }
        self._outbox.add(child, {"call": "send_child", "folder": child["folder"]})

    def finish(
        self, status: str, metrics: Mapping[str, float], tags: Mapping[str, Any], files: Sequence[Path]
    ) -> bool:
        """Close the search as "FINISHED" or "KILLED" with its best trial's figures and its files.

        Returns whether MLflow has taken everything, of the trials too; else a line says how to send the rest.
        """
        self._outbox.metrics(metrics)
        self._outbox.tags(tags)
        for path in files:
            self._outbox.artifact(path)
        self._outbox.end(status)
        # Last, so that a trial that never lets go of its outbox holds up nothing.
        self._outbox.add({"call": "send_children"})
        return self._outbox.close(self._wait)
