"""One trial: what runs in a worker process of Ray, or over a group of them."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train import checkpoint
from train.config import TrainConfig
from train.loop import Epoch, fit
from train.mlflow_calls import PARENT_TAG
from train.outbox import adopt, run_id_of
from train.selection_scores import SelectionScores, read_selection_scores
from tune.points import POINT_TAG, STATE_TAG, apply_point, point_tag
from tune.space import SearchConfig

TRIALS = "trials"
# What Ray Tune was told last, and the mark of a trial that the search has closed: its checkpoints are gone.
REPORTED, ENDED = "reported.json", "ended"
_WAIT = 5.0  # seconds that a trial gives an MLflow that is away, at its end


def trial_folder(out: Path, trial_id: str) -> Path:
    """Where a trial writes: one folder for its whole life, so that a restarted trial finds its checkpoint."""
    return out / TRIALS / trial_id


def run_trial(settings: dict[str, Any], config: SearchConfig, tags: Mapping[str, str]) -> None:
    """Train one point in this process and report each epoch to Ray Tune.

    Args:
        settings: {"point": see `tune.space`}.
        config: the search; its paths are absolute.
        tags: for the trial's MLflow run, such as its parent.
    """
    from ray import tune

    trial_id = tune.get_context().get_trial_id()
    if told := told_at_end(config, trial_id):
        tune.report(told)
        return
    trial = settle(settings["point"], config, trial_id)
    fit(trial, Report(trial, tune.report), run_tags(settings["point"], config, trial_id, tags))


def told_at_end(config: SearchConfig, trial_id: str) -> dict[str, Any]:
    """The last report of a trial that has ended, {} for one that has not.

    Ray Tune writes its state every second: after a kill -9 it starts again what has ended since.
    """
    folder = _folder(config, trial_id)
    if not any((folder / name).is_file() for name in (ENDED, checkpoint.RESULT)):
        return {}
    told: dict[str, Any] = json.loads((folder / REPORTED).read_text(encoding="utf-8"))
    return told


def settle(point: Mapping[str, Any], config: SearchConfig, trial_id: str) -> TrainConfig:
    """The configuration of a trial, which goes on where its folder has a checkpoint.

    One whose worker died or whose search was interrupted goes on after what it last saved; one that never saved
    anything starts anew, in the same MLflow run.
    """
    folder = _folder(config, trial_id)
    trial = apply_point(config, point, folder)
    # What MLflow could not take by then, the search sends: the next trial waits for this process.
    tracking = dataclasses.replace(trial.tracking, wait=min(trial.tracking.wait, _WAIT))
    saved = any((folder / name).is_file() for name in (checkpoint.LAST, checkpoint.PREVIOUS))
    if folder.is_dir() and not saved:
        checkpoint.forget(folder)
    return dataclasses.replace(trial, tracking=tracking, resume=saved)


def _folder(config: SearchConfig, trial_id: str) -> Path:
    if config.out is None:
        raise ValueError("the search has no folder")
    return trial_folder(config.out, trial_id)


def run_tags(
    point: Mapping[str, Any], config: SearchConfig, trial_id: str, tags: Mapping[str, str]
) -> dict[str, str]:
    """The tags of a trial's MLflow run: who it is, where it runs, and whose child it is."""
    import ray

    parent = run_id_of(config.out) if tags and config.out else ""  # by now MLflow may have it
    own = {
        "trial_id": trial_id,
        "search": str(config.out),
        POINT_TAG: point_tag(point),
        "trial.node": ray.get_runtime_context().get_node_id(),
        "trial.gpu": gpu_name(),
        STATE_TAG: "running",
    }
    return own | dict(tags) | ({PARENT_TAG: parent} if parent else {})


def gpu_name() -> str:
    """The name of this process's GPU, "" on a CPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


class Report:
    """What a trial tells the search after each epoch; called by `fit`.

    Args:
        trial: its configuration.
        tell: takes the flat dict.
        keep: whether this process keeps the last report in the trial's folder; one of a group does.
    """

    def __init__(self, trial: TrainConfig, tell: Callable[[dict[str, Any]], None], keep: bool = True) -> None:
        if trial.out is None:
            raise ValueError("the trial has no folder")
        self._folder, self._tell, self._keep = trial.out, tell, keep
        self._orphan = keep and trial.tracking.enabled
        self._best: SelectionScores | None = None
        self._figures = (math.nan, math.nan, math.nan)

    def __call__(self, epoch: Epoch) -> None:
        import ray

        best = epoch.scores if epoch.best else self._best
        if best is None:  # the best epoch was before a restart
            best = read_selection_scores(self._folder / checkpoint.SELECTION_SCORES)
        if best is not self._best:
            self._best, self._figures = best, (best.map(), *best.map_interval())
        best_map, low, high = self._figures
        told = {
            "map": epoch.metrics["val/map"],
            "best_map": best_map,
            "map_low": low,
            "map_high": high,
            "epoch": epoch.epoch,
            "loss": epoch.metrics["train/loss"],
            "images_per_second": epoch.metrics["time/images_per_second"],
            "seconds": epoch.metrics["time/seconds"],
            "first_step_at": epoch.first_step_at,
            "run_id": epoch.run_id,
            "node": ray.get_runtime_context().get_node_id(),
            "gpu": gpu_name(),
        }
        if self._keep:
            partial = self._folder / (REPORTED + ".part")
            partial.write_text(json.dumps(told), encoding="utf-8")
            os.replace(partial, self._folder / REPORTED)
        # A search does not wait for MLflow before its first trials.
        if self._orphan and run_id_of(search := self._folder.parent.parent):
            adopt(self._folder, search)
            self._orphan = False
        self._tell(told)
