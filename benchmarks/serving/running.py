"""Programs under measurement: started, asked whether they are ready, their CPU time read, stopped."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from data.errors import InputError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Rival:
    """Settings of MLServer.

    Attributes:
        workers: processes for inference beside the one that speaks gRPC; 0: none, all in one.
        batch: largest batch; 1 turns the adaptive batching off.
        wait_ms: longest wait for a batch.
        threads: of one inference.
        runners: inferences at a time in each process.
    """

    workers: int
    batch: int
    wait_ms: float
    threads: int
    runners: int

    def __str__(self) -> str:
        return (
            f"parallel_workers={self.workers} max_batch_size={self.batch} max_batch_time={self.wait_ms / 1000:g} "
            f"intra_op={self.threads} runners={self.runners}"
        )


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where, the process, and the seconds from its start to ready."""

    target: str
    pid: int
    ready_s: float

    def cpu_seconds(self) -> float:
        """CPU time of its process and of all that it started, so far."""
        children: dict[int, list[int]] = {}
        used: dict[int, float] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
            used[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
        total, left = 0.0, [self.pid]
        while left:
            pid = left.pop()
            total += used.get(pid, 0.0)
            left += children.get(pid, [])
        return total


@contextmanager
def our_server(model: Path, name: str, arguments: list[str], log: Path) -> Iterator[Server]:
    """`serve/server.py` on a free port."""
    command = [sys.executable, str(ROOT / "serve/server.py"), "--device", "cpu", "--listen", "127.0.0.1:0"]
    with log.open("w") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--model", f"{name}={model}", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None  # noqa: S101
            line = process.stdout.readline().split()
            if len(line) != 2 or line[0] != "ready":
                raise InputError(f"our server did not start: {log.read_text().strip()}")
            yield Server(line[1], process.pid, time.perf_counter() - start)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextmanager
def mlserver(python: Path, model: Path, name: str, rival: Rival, ports: int, log: Path) -> Iterator[Server]:
    """Seldon MLServer with our runtime, on the ports `ports` and the two after it."""
    with tempfile.TemporaryDirectory() as folder, log.open("w") as errors:
        settings: Mapping[str, Any] = {
            "host": "127.0.0.1",
            "http_port": ports,
            "grpc_port": ports + 1,
            "metrics_port": ports + 2,
            "debug": False,
            "parallel_workers": rival.workers,
            "use_structured_logging": False,
            "logging_settings": None,
        }
        model_settings = {
            "name": name,
            "implementation": "mlserver_runtime.OnnxImages",
            "max_batch_size": rival.batch,
            "max_batch_time": rival.wait_ms / 1000 if rival.batch > 1 else 0,
        }
        (Path(folder) / "settings.json").write_text(json.dumps(settings))
        (Path(folder) / "model-settings.json").write_text(json.dumps(model_settings))
        environment = os.environ | {
            "PYTHONPATH": str(HERE),
            "BENCHMARK_MODEL": str(model.absolute()),
            "BENCHMARK_THREADS": str(rival.threads),
            "BENCHMARK_RUNNERS": str(rival.runners),
        }
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(python), "-m", "mlserver.cli", "start", folder]
            if not (python.parent / "mlserver").is_file()
            else [str(python.parent / "mlserver"), "start", folder],
            stdout=errors,
            stderr=errors,
            env=environment,
        )
        target = f"127.0.0.1:{ports + 1}"
        try:
            _wait_ready(target, name, process, log)
            yield Server(target, process.pid, time.perf_counter() - start)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(target: str, name: str, process: Any, log: Path) -> None:
    from proto.inference.v2 import inference_pb2 as pb

    with grpc.insecure_channel(target) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        request = pb.ModelReadyRequest(name=name).SerializeToString()
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                if pb.ModelReadyResponse.FromString(ask(request, timeout=1)).ready:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.1)
    raise InputError(f"MLServer did not start: {log.read_text().strip()[-2000:]}")


def child(python: Path | str, script: str, *arguments: object) -> dict[str, Any]:
    """Run a script of this folder to its end; its one line of JSON."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} if python == sys.executable else dict(os.environ)
    done = subprocess.run(
        [str(python), str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise InputError(f"{script} failed: {done.stderr.strip()[-1000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def rivals(cores: int) -> list[Rival]:
    """The settings of MLServer that are tried; the fastest at 16 calls in flight is used, and at 1 the one for that."""
    plain = Rival(0, 8, 5, cores, 1)
    return [
        plain,
        replace(plain, batch=4, wait_ms=2),
        replace(plain, batch=1),
        replace(plain, threads=1, runners=cores),
        replace(plain, batch=1, threads=1, runners=cores),
        Rival(cores, 8, 5, 1, 1),
    ]
