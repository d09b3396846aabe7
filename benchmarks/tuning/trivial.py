"""A search whose trials train nothing: the searcher, the scheduler, the table and the record are the real ones.

python benchmarks/tuning/trivial.py TRIALS FOLDER [FLAGS]     # called by benchmarks/tune.py --scale
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.cli import run
from train.config_files import flatten, to_dict
from train.tracking import MlflowTracker
from tune import run as searching
from tune import tuning
from tune.options import parse_search
from tune.space import SearchConfig
from tune.trial import REPORTED, run_tags, settle, told_at_end

EPOCHS = 2


def trivial(settings: dict[str, Any], config: SearchConfig, tags: Mapping[str, str]) -> None:
    """In a trial's process: the record of two epochs that were not trained."""
    import ray
    from ray import tune

    trial_id = tune.get_context().get_trial_id()
    if told := told_at_end(config, trial_id):
        tune.report(told)
        return
    point = settings["point"]
    trial = settle(point, config, trial_id)
    if trial.out is None:
        raise ValueError("the trial has no folder")
    trial.out.mkdir(parents=True, exist_ok=True)
    with (trial.out / "ran").open("a") as ran:  # one line for each time that it ran
        ran.write("once\n")
    parameters = flatten(to_dict(trial))
    dataset = {"name": "none", "digest": "0" * 16, "source": "none", "profile": "{}"}
    tracker = MlflowTracker(
        trial.out, "tailacc", trial_id, parameters, dataset, run_tags(point, config, trial_id, tags)
    )
    quality = 0.5 - abs(math.log10(point["lr"]) + 3) / 10
    for epoch in range(1, EPOCHS + 1):
        tracker.epoch(epoch, {"val/map": quality, **{f"val/ap/{c}": quality for c in range(20)}})
        told = {
            "map": quality,
            "best_map": quality,
            "map_low": quality,
            "map_high": quality,
            "epoch": epoch,
            "first_step_at": time.time(),
            "run_id": tracker.run_id,
            "node": ray.get_runtime_context().get_node_id(),
            "gpu": "",
        }
        (trial.out / REPORTED).write_text(json.dumps(told), encoding="utf-8")
        tune.report(told)
    tracker.finish("FINISHED", {"best/map": quality}, ())


def main(arguments: list[str]) -> None:
    """Search, without the end that exports a model."""
    trials, home, further = int(arguments[0]), Path(arguments[1]), arguments[2:]
    tuning.run_trial = trivial
    flags = ["--search.trials", str(trials), "--search.sampler", "random", "--search.scheduler", "none"]
    flags += ["--schedule.epochs", str(EPOCHS), "--data.root", str(home / "devkit"), "--data.size", "32"]
    out = ["--out", str(home / "scale"), "--data.cache", str(home / "cache")]
    outcome = searching.search(parse_search([*flags, *out, *further]))
    if outcome.parent:
        outcome.parent.finish("FINISHED", {}, {}, [])


if __name__ == "__main__":
    sys.exit(run(main))
