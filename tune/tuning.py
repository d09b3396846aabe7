"""One run of Ray Tune: its scheduler, its retries, its resume, and the loop until the last trial ended."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tune.group import run_group
from tune.placement import WATCHER_CPUS, Placement
from tune.space import SearchConfig
from tune.table import TrialTable
from tune.trial import run_trial


def run_tune(
    config: SearchConfig,
    out: Path,
    name: str,
    tune_config: Any,
    param_space: dict[str, Any],
    table: TrialTable,
    placement: Placement,
    tags: Mapping[str, str],
    hours: float = 0.0,
) -> None:
    """Let Ray Tune try points until all have ended, the time is over, or it is interrupted.

    Args:
        config: the search.
        out: its folder.
        name: of the folder in it that Ray Tune keeps its state in; what is there is gone on with.
        tune_config: Ray's `TuneConfig`.
        param_space: Ray's, {} where the searcher makes the points.
        table: takes what happens.
        placement: of a trial.
        tags: for the trials' MLflow runs.
        hours: after which nothing goes on; 0 = no limit.
    """
    from ray import tune

    # Ray Tune writes its state every ten seconds: after a kill -9 of the search, what began and ended since the last
    # time was tried again, 64 of 1,000 trials of a quarter of a second.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    trainable = _trainable(config, placement, tags)
    state = out / name
    table.start()
    if tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(
            str(state),
            trainable=trainable,
            resume_unfinished=True,
            restart_errored=True,
            param_space=param_space,
        )
        # The callback and the time are of this session: those that were saved are of the one that ended.
        tuner._local_tuner._run_config.callbacks = [table]
        tuner._local_tuner._tune_config.time_budget_s = hours * 3600 or None
    else:
        tune_config.time_budget_s = hours * 3600 or None
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune_config,
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(out),
                callbacks=[table],
                failure_config=tune.FailureConfig(max_failures=config.search.retries),
                verbose=0,
                log_to_file=("out.log", "err.log"),
            ),
        )
    try:
        with _deaths_of_memory():
            results = tuner.fit()
    finally:
        table.stop()
    table.settle(results._experiment_analysis.trials)


@contextlib.contextmanager
def _deaths_of_memory() -> Iterator[None]:
    """Lets Ray Tune take a trial whose process Ray killed for want of memory as one that died: retried, then failed.

    Its actor manager knows two kinds of errors and ends the whole search with "unexpected exception" at this third.
    """
    from ray.air.execution._internal import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    original = RayActorManager._actor_task_failed

    def failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        original(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original


def _trainable(config: SearchConfig, placement: Placement, tags: Mapping[str, str]) -> Any:
    from ray import tune

    if config.search.workers == 1:
        function: Any = tune.with_parameters(run_trial, config=config, tags=dict(tags))
        return tune.with_resources(function, placement.worker)
    function = tune.with_parameters(run_group, config=config, tags=dict(tags), placement=placement)
    return tune.with_resources(function, {"CPU": WATCHER_CPUS})


def concurrency(config: SearchConfig, placement: Placement) -> int:
    """Trials at the same time: what was asked for, but never more than fit."""
    return min(config.search.concurrency or placement.slots, placement.slots)


def make_scheduler(config: SearchConfig) -> Any:
    """Ray Tune's scheduler for `search.scheduler`, None for none."""
    from ray.tune import schedulers

    epochs, chosen = config.schedule.epochs, config.search.scheduler
    if chosen == "asha":
        return schedulers.ASHAScheduler(
            # One more than there are: ASHA would stop a trial at max_t before it has closed its own record.
            time_attr="epoch",
            max_t=epochs + 1,
            # A third of the epochs before the first comparison: earlier, the warm-up still decides.
            grace_period=max(1, epochs // 3),
            reduction_factor=2,
        )
    if chosen == "hyperband":
        return schedulers.HyperBandScheduler(time_attr="epoch", max_t=epochs + 1, reduction_factor=3)
    return None
