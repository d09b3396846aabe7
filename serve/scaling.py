"""The deployment on a Ray cluster: start it, wait until it serves, and end it."""

import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve

from data.errors import InputError
from serve.config import ServerConfig, parse_address
from serve.registry import find_version, follows_alias, is_fetched, pinned, split_models, store_address
from serve.replica import Replica
from serve.scale_config import ScaleConfig

_APP = "tailacc"
_POLL_S = 0.2


def settled_model(text: str) -> tuple[str, str]:
    """Name and source of the one model of `text`: an alias as the version that it names now, a file by its full path.

    Replicas begin at different times, and must not serve different versions. Raises `InputError`.
    """
    models = split_models(text)
    if len(models) != 1:
        raise InputError(f"--model must be one model on a cluster, got {len(models)}")
    name, source = models[0]
    if follows_alias(source):
        return name, pinned(source, find_version(source))
    if is_fetched(source):
        return name, source
    path = Path(source).resolve()
    if not path.is_file():
        raise InputError(f"no model file at {source}; every node of the cluster must have it there")
    return name, str(path)


def deploy(config: ScaleConfig, port: int) -> None:
    """Start Ray Serve with its gRPC proxies on `port`, and the deployment. Raises `InputError`."""
    name, source = settled_model(config.model)
    server = ServerConfig(
        device=config.device,
        threads=config.cpus,
        decode_threads=config.cpus,
        max_batch=config.max_batch,
        stall_s=config.stall_s,
        limits=config.limits,
    )
    serve.start(
        proxy_location="EveryNode" if config.proxies == "every" else "HeadOnly",
        http_options={"host": "127.0.0.1", "port": port + 1},
        grpc_options={"port": port, "grpc_servicer_functions": ["serve.ray_proxy.add_services"]},
    )
    low, high = config.replicas
    deployment = serve.deployment(Replica).options(
        name="Scoring",
        # Beyond it the replica's own admission would refuse; the proxies then say so, before they send the bytes.
        max_ongoing_requests=config.limits.inflight_requests,
        max_queued_requests=config.limits.inflight_requests,
        autoscaling_config={
            "min_replicas": low,
            "initial_replicas": low,
            "max_replicas": high,
            "target_ongoing_requests": config.target,
        },
        ray_actor_options={
            "num_cpus": config.cpus,
            "num_gpus": 1 if config.device == "cuda" else 0,
            "runtime_env": {"env_vars": _environment(source)},
        },
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=config.grace_s,
    )
    target = serve.RunTarget(target=deployment.bind(name, source, server), name=_APP, route_prefix="/tailacc")
    serve.run_many([target], wait_for_applications_running=False)


def _environment(source: str) -> dict[str, str]:
    """Where replicas find MLflow. A store that is a file here must be one at the same path on every node."""
    if not is_fetched(source):
        return {}
    store = store_address()
    local = store.removeprefix("sqlite:///")
    return {"MLFLOW_TRACKING_URI": store if local == store else f"sqlite:///{Path(local).resolve()}"}


def wait_ready(seconds: float) -> None:
    """Wait until the deployment runs.

    Raises:
        InputError: it failed, or did not start in time; the message has Ray's reason in one line.
    """
    end = time.monotonic() + seconds
    while True:
        app = serve.status().applications.get(_APP)
        state = str(app.status.value) if app else "NOT_STARTED"
        if state == "RUNNING":
            return
        if state == "DEPLOY_FAILED" or time.monotonic() > end:
            raise InputError(f"the replicas are not ready ({state}): {_reason(app)}")
        time.sleep(_POLL_S)


def _reason(app: Any) -> str:
    texts = [one.message for one in app.deployments.values()] if app else []
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    said = [line for line in lines if "InputError" in line or "RegistryError" in line]
    chosen = said or lines or ["Ray says no more; `ray status` shows whether there are cores"]
    return str(chosen[-1])[:400]


def free_port() -> int:
    """A free port whose next one is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port < 65535 and second.connect_ex(("127.0.0.1", port + 1)):
                return int(port)


def run_cluster(config: ScaleConfig, say_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code; `say_ready` gets HOST:PORT once it serves."""
    config.check()
    host, port = parse_address(config.listen, "--listen")
    port = port or free_port()
    try:
        # Not None, which would join whatever cluster this machine's last `ray start` has left a note of.
        if config.address:
            ray.init(address=config.address, log_to_driver=False)
        else:
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
    except ConnectionError as error:
        raise InputError(f"no Ray cluster at --address {config.address}: {error}".splitlines()[0]) from error
    # After Ray has put its own in place, which would exit with the signal's number.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        deploy(config, port)
        wait_ready(config.start_s)
        low, high = config.replicas
        where = "the nodes with replicas" if config.proxies == "every" else "the head node"
        print(
            f"replicas {low} to {high}, {config.cpus} cores each; gRPC without TLS and tokens on every interface "
            f"of {where}, port {port}",
            file=sys.stderr,
        )
        say_ready(f"{host}:{port}")
        while True:
            time.sleep(_POLL_S)
    except _Stopped:
        return 0
    finally:
        serve.shutdown()
        ray.shutdown()


class _Stopped(BaseException):
    """SIGTERM or SIGINT. An exception, since Ray's own calls wait for half a minute while a deployment starts."""


def _stop(number: int, _: Any) -> None:
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)  # a second one ends the ending
    raise _Stopped
