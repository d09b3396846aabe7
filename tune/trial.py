"""One trial: what runs in a worker process of Ray."""

import dataclasses
from pathlib import Path
from typing import Any

from train.checkpoint import LAST
from train.loop import Epoch, fit
from train.tracking import PARENT_TAG
from tune.space import SearchConfig, apply_point


def trial_folder(out: Path, trial_id: str) -> Path:
    """Where a trial writes: one folder for its whole life, so that a restarted trial finds its checkpoint."""
    return out / "trials" / trial_id


def run_trial(point: dict[str, Any], config: SearchConfig, parent_run: str) -> None:
    """Train one point and report each epoch to Ray Tune.

    Args:
        point: see `tune.space.apply_point`.
        config: the search; its paths are absolute.
        parent_run: MLflow run id of the search, "" where it is not tracked.
    """
    from ray import tune

    trial_id = tune.get_context().get_trial_id()
    if config.out is None:
        raise ValueError("the search has no folder")
    folder = trial_folder(config.out, trial_id)
    trial = apply_point(config, point, folder)
    # A trial whose worker died or whose search was interrupted goes on after its last finished epoch;
    # one that never finished an epoch starts anew in what it left.
    trial = dataclasses.replace(
        trial, resume=(folder / LAST).is_file(), overwrite=not (folder / LAST).is_file()
    )
    tags = {"trial_id": trial_id, "search": str(config.out)}
    best = -1.0

    def report(epoch: Epoch) -> None:
        nonlocal best
        best = max(best, epoch.metrics["val/map"])
        tune.report(
            {
                "map": epoch.metrics["val/map"],
                "best_map": best,
                "epoch": epoch.epoch,
                "loss": epoch.metrics["train/loss"],
                "images_per_second": epoch.metrics["time/images_per_second"],
                "seconds": epoch.metrics["time/seconds"],
            }
        )

    fit(trial, report, tags | ({PARENT_TAG: parent_run} if parent_run else {}))
