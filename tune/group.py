"""A trial of several workers: a Ray Train group whose workers run Accelerate.

The process of Ray Tune only watches over it and takes a hundredth of a CPU; the group asks for its workers' places
itself, all or none. How many groups run at once is limited to what fits (`tune.placement`): two watchers that each
wait for half of the machine would wait for ever.
"""

from collections.abc import Mapping
from typing import Any

from train.config import TrainConfig
from train.loop import fit
from tune.placement import Placement, worker_resources
from tune.space import SearchConfig
from tune.trial import Report, run_tags, settle, told_at_end


def run_group(
    settings: dict[str, Any], config: SearchConfig, tags: Mapping[str, str], placement: Placement
) -> None:
    """Train one point on `search.workers` processes and report each epoch to Ray Tune.

    Args:
        settings, config, tags: see `tune.trial.run_trial`.
        placement: what a worker takes.
    """
    from ray import train, tune
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trial_id = tune.get_context().get_trial_id()
    if told := told_at_end(config, trial_id):
        tune.report(told)
        return
    trial = settle(settings["point"], config, trial_id)
    gpus = placement.worker["GPU"]
    trainer = TorchTrainer(
        _work,
        train_loop_config={"trial": trial, "tags": run_tags(settings["point"], config, trial_id, tags)},
        scaling_config=train.ScalingConfig(
            num_workers=config.search.workers,
            use_gpu=gpus > 0,
            resources_per_worker=worker_resources(placement),
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=train.RunConfig(
            name=f"group-{trial_id}",
            storage_path=str(trial.out.parent.parent) if trial.out else None,
            callbacks=[TuneReportCallback()],
            failure_config=train.FailureConfig(max_failures=0),  # Tune starts the whole trial again
        ),
    )
    trainer.fit()


def _work(settings: dict[str, Any]) -> None:
    """In each worker. All report, with the same metrics: Ray Train waits for every worker."""
    from ray import train

    trial: TrainConfig = settings["trial"]
    report = Report(trial, train.report, keep=train.get_context().get_world_rank() == 0)
    fit(trial, report, settings["tags"], report_everywhere=True)
