"""Where trials run: Ray here or a cluster, and the check that a trial can be placed at all.

Ray itself waits for ever for what no machine has; here that is an error which names what there is.
"""

import contextlib
import importlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from train.mlflow_calls import absolute_store
from tune.space import SearchConfig, SearchOptions

# Of a trial's process in Ray Tune that only watches over a group; Tune refuses 0.
WATCHER_CPUS = 0.01
# What the workers of a group leave of their CPUs for the watchers, so that whole CPUs suffice.
_SPARED = 0.1
# Seconds of imports, in the order in which they are asked for.
_HEAVY = ("torch", "pandas", "optuna", "mlflow")
_SECONDS = 5.0  # within which a running cluster answers


@dataclass(frozen=True, slots=True)
class Placement:
    """What a trial takes and how many fit at once.

    Attributes:
        worker: resources of one worker, as Ray counts them.
        slots: trials that the machines hold at the same time.
        machines: how many there are.
    """

    worker: dict[str, float]
    slots: int
    machines: int


@contextlib.contextmanager
def ray_for(config: SearchConfig) -> Iterator[None]:
    """Ray of a search while the context lasts, started while a thread loads what the search imports.

    Ray's start mostly waits for its processes, and the imports keep one core busy: in turn they take the sum of both.
    The thread loads nothing that imports Ray: two threads that are in the middle of the same modules may see half.

    Raises:
        InputError: see `start_ray`.
    """
    import ray

    loading = threading.Thread(target=_load, daemon=True)
    loading.start()
    started = start_ray(config)
    try:
        loading.join()
        yield
    finally:
        if started:
            ray.shutdown()


def _load() -> None:
    for name in _HEAVY:
        importlib.import_module(name)


def start_ray(config: SearchConfig) -> bool:
    """Start Ray in this process, or join the cluster at `search.ray_address`; False where the caller already has.

    Args:
        config: the search.

    Raises:
        InputError: no cluster answers at that address.
    """
    variables = {
        # Workers keep the driver's folder, so that relative paths mean the same to all.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # How long a finished trial may take to draw its curves and close its MLflow run before its process
        # is given to the next one; Ray's 2 s would be too short and the next trial would fail.
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
        "MLFLOW_TRACKING_URI": absolute_store(),
    }
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The table of trials is ours: neither Ray's own nor its traceback for each failed trial.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # So is the record: without Ray's own, for which TensorBoard's would import torch here.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    address = _answering(config.search.ray_address) if config.search.ray_address else ""
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        os.environ |= variables
        ray.init(address=address, runtime_env={"env_vars": variables}, **quiet)
        return True
    os.environ |= variables  # which the workers of a local Ray inherit
    # None is started ahead: a trial's has variables of Ray Tune's, so that those would only be in the way for 3 s.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # "local": plain init joins whatever cluster this machine last ran, and waits for one that is gone.
    ray.init(address="local", include_dashboard=False, **quiet)
    return True


def _answering(address: str) -> str:
    """HOST:PORT of the cluster, which was seen to answer."""
    if "://" in address:
        raise InputError(
            f"--search.ray-address takes HOST:PORT of the cluster's head or auto, but got {address}"
        )
    if address == "auto":
        from ray._private.utils import read_ray_address

        address = os.environ.get("RAY_ADDRESS") or read_ray_address() or ""
        if not address:
            raise InputError(
                "--search.ray-address auto: this machine runs no Ray cluster; start one (ray start --head), or leave "
                "the option out to search on this machine alone"
            )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(
            f"--search.ray-address takes HOST:PORT of the cluster's head or auto, but got {address}"
        )
    try:
        with contextlib.closing(socket.create_connection((host, int(port)), _SECONDS)):
            return address
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one (ray start --head --port {port}), or leave "
            "--search.ray-address out to search on this machine alone"
        ) from error


def gpus_of(options: SearchOptions, machines: Sequence[dict[str, float]]) -> float:
    """GPUs of each worker: where it is left open, one if any machine has one."""
    if options.gpus >= 0:
        return options.gpus
    return 1.0 if any(machine.get("GPU", 0) >= 1 for machine in machines) else 0.0


def place(options: SearchOptions, machines: Sequence[dict[str, float]]) -> Placement:
    """How many trials fit on the machines at once.

    Args:
        options: what a trial wants.
        machines: the resources of each, as Ray counts them ("CPU", "GPU").

    Raises:
        InputError: not even one trial fits, ever.
    """
    worker = {"CPU": float(options.cpus), "GPU": gpus_of(options, machines)}
    fits = [min(int(m.get(kind, 0) / n + 1e-9) for kind, n in worker.items() if n) for m in machines]
    slots = sum(fits) // options.workers
    if slots:
        return Placement(worker, slots, len(machines))
    one = f"{worker['CPU']:g} CPUs and {worker['GPU']:g} GPUs"
    if not sum(fits):
        wanted = f"a trial's worker wants {one} on one machine, which none has"
        remedy = "Lower --search.cpus or --search.gpus"
    else:
        wanted = f"a trial wants {options.workers} workers of {one}, but only {sum(fits)} fit"
        remedy = "Lower --search.workers, --search.cpus or --search.gpus"
    has = "; ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
    raise InputError(f"{wanted}: the machines have {has or 'nothing'}. {remedy}")


def machines() -> list[dict[str, Any]]:
    """The machines that are alive, as `ray.nodes` describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def worker_resources(placement: Placement) -> dict[str, float]:
    """What a worker of a group asks Ray for."""
    return placement.worker | {"CPU": placement.worker["CPU"] - _SPARED}


def prepare_machines(config: SearchConfig, out: Path) -> None:
    """Let every other machine decode its images and download weights once, before trials wait for each other there.

    Raises:
        InputError: a machine does not see the search's folder or the data.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in machines() if node["NodeID"] != here]
    if not others:
        return
    task = ray.remote(num_cpus=0)(_prepare)
    waiting = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            config, out
        ): node
        for node in others
    }
    for reference, node in waiting.items():
        try:
            missing = ray.get(reference)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"machine {node[:8]} of the cluster cannot run trials: {reason}") from error
        if missing:
            raise InputError(
                f"machine {node[:8]} of the cluster does not see {missing}; every machine needs it under the same path"
            )


def _prepare(config: SearchConfig, out: Path) -> str:
    """On another machine: what it does not see, "" where it sees all."""
    from train.examples import open_examples
    from tune.points import data_configs, fetch_all_weights

    for path in (out, config.data.root, config.data.labels):
        if path and not path.exists():
            return str(path)
    for data in data_configs(config):
        open_examples(data)
    fetch_all_weights(config)
    return ""
