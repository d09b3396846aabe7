"""A search from beginning to end: prepare once, let Ray Tune try the points, record, export the best.

    from tune.run import search
    outcome = search(config)      # config of tune.space, with `out` set

`out` owns what the search writes: search.json, ray/ (what --resume needs), trials/<id>/ (a run folder of
train/ each), trials.csv and model.onnx.
"""

import dataclasses
import json
import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.voc import default_devkit
from train.config_files import override, to_dict
from train.examples import open_examples
from tune.record import TABLE, ParentRun, TrialRow, write_table
from tune.space import SearchConfig, check_space
from tune.table import TrialTable, row_of
from tune.trial import run_trial, trial_folder

SETTINGS = "search.json"
STATE = "ray"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a search ended.

    Attributes:
        out: its folder.
        rows: the trials, best first.
        interrupted: it was stopped by Ctrl-C and can be resumed.
        best: folder of the best trial; None where no trial finished an epoch.
        run_id: MLflow run of the search, "" where it is not tracked.
    """

    out: Path
    rows: tuple[TrialRow, ...]
    interrupted: bool
    best: Path | None
    run_id: str


def search(config: SearchConfig) -> Outcome:
    """Run a search, or go on with it where `config.resume` is set.

    Raises:
        InputError: a space that cannot be trained, a folder that is in use, resources that no machine has.
    """
    if config.out is None:
        raise InputError("out must be set: the folder that owns what the search writes")
    out = config.out.absolute()
    config, run_id = _settle(config, out)
    check_space(config)
    examples = open_examples(config.data)  # once here, so that no trial decodes an image
    total = _trials(config)
    print(
        f"search     {total} trials over {len(config.space.backbone)} backbones and {len(config.space.loss)} losses "
        f"({config.search.sampler}{', ASHA' if config.search.asha else ''}), {config.schedule.epochs} epochs each\n"
        f"data       {examples.labels.name}: {len(examples.train)} to train on, {len(examples.selection)} to select on",
        file=sys.stderr,
        flush=True,
    )
    parent = ParentRun(config, run_id) if config.tracking.enabled else None
    if parent:
        _write_settings(config, out, parent.run_id)
    table = TrialTable(total, config.schedule.epochs, parent.trial_ended if parent else lambda row: None)
    _start_ray(config)
    import ray

    try:
        interrupted = _run(config, out, table, parent.run_id if parent else "")
    finally:
        table.stop()
        ray.shutdown()
    return _finish(config, out, table, parent, interrupted)


def _settle(config: SearchConfig, out: Path) -> tuple[SearchConfig, str]:
    """Absolute paths (workers have their own folder), and the folder claimed; the MLflow run id on resume."""
    settings = out / SETTINGS
    if config.resume:
        if not settings.is_file():
            raise InputError(
                f"--resume: {out} holds no {SETTINGS}; leave --resume out to start a search there"
            )
        saved = json.loads(settings.read_text(encoding="utf-8"))
        run_id = str(saved.pop("parent_run"))
        return override(config, saved | {"resume": True}, str(settings)), run_id
    if out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"--out {out} is not empty; choose another folder, or --resume to go on with its search"
        )
    out.mkdir(parents=True, exist_ok=True)
    root = config.data.root
    if root is None and config.data.labels is None:
        root = default_devkit()
    data = dataclasses.replace(
        config.data,
        root=root.absolute() if root else None,
        labels=config.data.labels.absolute() if config.data.labels else None,
        cache=config.data.cache.absolute(),
    )
    space = dataclasses.replace(
        config.space, backbone=tuple(_absolute_weights(b) for b in config.space.backbone)
    )
    config = dataclasses.replace(config, out=out, data=data, space=space)
    _write_settings(config, out, "")
    return config, ""


def _absolute_weights(entry: str) -> str:
    name, _, weights = entry.partition("=")
    return entry if weights in ("", "imagenet", "none") else f"{name}={Path(weights).absolute()}"


def _write_settings(config: SearchConfig, out: Path, parent_run: str) -> None:
    text = json.dumps(to_dict(config) | {"parent_run": parent_run}, indent=2)
    (out / SETTINGS).write_text(text + "\n", encoding="utf-8")


def _trials(config: SearchConfig) -> int:
    """How many trials there will be: a grid is tried in whole rounds."""
    if config.search.sampler != "grid":
        return config.search.trials
    cells = len(config.space.backbone) * len(config.space.loss)
    return math.ceil(config.search.trials / cells) * cells


def _gpus(config: SearchConfig) -> float:
    if config.search.gpus >= 0:
        return config.search.gpus
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def _start_ray(config: SearchConfig) -> None:
    """Start Ray here or join a cluster, and make sure that a trial can be placed at all."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers keep this folder, so that MLflow's relative store and artifact paths are the same for all.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    # The table of trials is ours: neither Ray's own nor its traceback for each failed trial.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    import mlflow
    import ray

    variables = {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # How long a finished trial may take to draw its curves and close its MLflow run before its process
        # is given to the next one; Ray's 2 s would be too short and the next trial would fail.
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
        "MLFLOW_TRACKING_URI": _absolute_store(mlflow.get_tracking_uri()),
    }
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.search.ray_address:
        ray.init(address=config.search.ray_address, runtime_env={"env_vars": variables}, **quiet)
    else:
        # "local": plain init joins whatever cluster this machine last ran, and waits for one that is gone.
        ray.init(address="local", include_dashboard=False, runtime_env={"env_vars": variables}, **quiet)
    wanted = {"CPU": float(config.search.cpus), "GPU": _gpus(config)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes):
        largest = {kind: max(node.get(kind, 0) for node in nodes) for kind in wanted}
        ray.shutdown()
        raise InputError(
            f"a trial wants {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs on one machine, but the largest has "
            f"{largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs; lower --search.cpus or --search.gpus"
        )


def _absolute_store(uri: str) -> str:
    prefix = "sqlite:///"
    return prefix + str(Path(uri.removeprefix(prefix)).absolute()) if uri.startswith(prefix) else uri


def _run(config: SearchConfig, out: Path, table: TrialTable, parent_run: str) -> bool:
    """Let Ray Tune try the points; True where it was interrupted."""
    from ray import tune

    trainable = tune.with_resources(
        tune.with_parameters(run_trial, config=config, parent_run=parent_run),
        {"CPU": config.search.cpus, "GPU": _gpus(config)},
    )
    state = out / STATE
    run_config = tune.RunConfig(
        name=STATE,
        storage_path=str(out),
        callbacks=[table],
        verbose=0,
        log_to_file=("out.log", "err.log"),
    )
    if config.resume and tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(
            str(state),
            trainable=trainable,
            resume_unfinished=True,
            restart_errored=True,
            param_space=_param_space(config),
        )
        tuner._local_tuner._run_config.callbacks = [table]
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=_param_space(config),
            tune_config=_tune_config(config),
            run_config=run_config,
        )
    table.start()
    results = tuner.fit()
    for trial in results._experiment_analysis.trials:
        if trial.trial_id not in table.rows or table.rows[trial.trial_id].state == "running":
            ended = {"TERMINATED": "completed", "ERROR": "failed"}.get(trial.status, "unfinished")
            row = row_of(trial, ended)
            if ended == "completed" and row.epoch < config.schedule.epochs:
                row = dataclasses.replace(row, state="pruned")
            table.rows[trial.trial_id] = row
    rows = table.rows.values()
    return len(rows) < table.total or any(row.state == "unfinished" for row in rows)


def _param_space(config: SearchConfig) -> dict[str, Any]:
    from ray import tune

    space = config.space
    pick = tune.grid_search if config.search.sampler == "grid" else tune.choice

    def between(limits: tuple[float, float]) -> Any:
        low, high = limits
        return tune.loguniform(low, high) if low < high else low

    return {
        "backbone": pick(list(space.backbone)),
        "loss": pick(list(space.loss)),
        "lr": between(space.lr),
        "backbone_lr_ratio": between(space.backbone_lr_ratio),
    }


def _tune_config(config: SearchConfig) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    options, epochs = config.search, config.schedule.epochs
    samples = options.trials
    algorithm: Any = BasicVariantGenerator(random_state=config.seed, max_concurrent=options.concurrency)
    if options.sampler == "grid":
        samples = _trials(config) // (len(config.space.backbone) * len(config.space.loss))
    elif options.sampler == "tpe":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=config.seed,
            n_startup_trials=max(2, options.trials // 4),
            multivariate=True,
            constant_liar=True,
        )
        algorithm = OptunaSearch(sampler=sampler, metric="map", mode="max")
    scheduler = None
    if options.asha:
        # A third of the epochs before the first comparison: earlier, the warm-up still decides.
        scheduler = ASHAScheduler(
            # One more than there are: ASHA would stop a trial at max_t before it has closed its own record.
            time_attr="epoch",
            max_t=epochs + 1,
            grace_period=max(1, epochs // 3),
            reduction_factor=2,
        )
    return tune.TuneConfig(
        metric="map",
        mode="max",
        search_alg=algorithm,
        scheduler=scheduler,
        num_samples=samples,
        max_concurrent_trials=options.concurrency or None if options.sampler == "tpe" else None,
        reuse_actors=True,
    )


def _finish(
    config: SearchConfig, out: Path, table: TrialTable, parent: ParentRun | None, interrupted: bool
) -> Outcome:
    rows = table.ordered()
    write_table(out / TABLE, rows)
    best = next((row for row in rows if math.isfinite(row.best_map)), None)
    folder = trial_folder(out, best.trial_id) if best else None
    if parent:
        for row in rows:
            if row.state == "unfinished":
                parent.trial_ended(row)
        parent.finish(
            "KILLED" if interrupted else "FINISHED",
            {"best/map": best.best_map} if best else {},
            {f"best.{key}": getattr(best, key) for key in ("trial_id", "backbone", "loss", "lr")}
            if best
            else {},
            [out / TABLE, out / SETTINGS],
        )
    return Outcome(out, tuple(rows), interrupted, folder, parent.run_id if parent else "")
