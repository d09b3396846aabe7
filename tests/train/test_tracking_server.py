"""A real `mlflow server`, on SQLite and on a private Postgres, that freezes, dies and comes back."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from train.outbox import KEY_TAG, Lines, Outbox, unsent
from train.tracking import PARENT_TAG, client

ROOT = Path(__file__).resolve().parents[2]
# Debian keeps these out of the PATH.
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Server:
    """An `mlflow server` on a port of its own, in a process group of its own."""

    def __init__(self, store: str, folder: Path) -> None:
        self.port, self._store, self._folder = free_port(), store, folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self._folder / "server.log").open("ab")
        flags = [
            "--backend-store-uri",
            self._store,
            "--artifacts-destination",
            str(self._folder / "artifacts"),
        ]
        flags += ["--serve-artifacts", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *flags],
            cwd=self._folder,
            # Its workers for language models, which take as long to start as the server.
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        wait_until(self._healthy)

    def _healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(new_store(folder), folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def address(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return server


def runs(experiment: str) -> list[Any]:
    """Those that are not deleted."""
    found = client().get_experiment_by_name(experiment)
    return list(client().search_runs([found.experiment_id]))


def steps(run_id: str) -> list[int]:
    return [metric.step for metric in client().get_metric_history(run_id, "loss")]


def test_outbox__server_killed_in_the_middle_loses_nothing(
    address: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(tmp_path, "killed", "", {})
    for step in range(1, 6):
        outbox.metrics({"loss": 1 / step}, step)
    wait_until(lambda: unsent(tmp_path) == 0)
    address.kill()
    for step in range(6, 11):
        outbox.metrics({"loss": 1 / step}, step)
    (tmp_path / "notes.txt").write_text("text")
    outbox.artifact(tmp_path / "notes.txt")
    outbox.end("FINISHED")
    time.sleep(5)
    assert unsent(tmp_path) == 7
    address.start()
    assert outbox.close(120)
    (run,) = runs("killed")
    assert (run.info.run_id, run.info.status) == (outbox.run_id, "FINISHED")
    assert steps(outbox.run_id) == list(range(1, 11))
    assert [item.path for item in client().list_artifacts(outbox.run_id)] == ["notes.txt"]
    error = capfd.readouterr().err
    assert error.count("note: MLflow is away") == 1
    assert error.count("note: MLflow is back") == 1


def test_outbox__frozen_server_makes_no_second_run(
    address: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Requests that were given up wait in the frozen server, which carries them out when it goes on.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with_experiment = Outbox(tmp_path / "first", "frozen", "first", {})
    assert with_experiment.close(120)
    address.send(signal.SIGSTOP)
    outboxes = [Outbox(tmp_path / str(number), "frozen", "later", {}) for number in range(3)]
    time.sleep(4)
    address.send(signal.SIGCONT)
    for outbox in outboxes:
        outbox.metrics({"loss": 1.0}, 1)
        outbox.end("FINISHED")
        assert outbox.close(120)
    found = [run for run in runs("frozen") if run.info.run_name == "later"]
    assert sorted(run.info.run_id for run in found) == sorted(outbox.run_id for outbox in outboxes)
    assert {run.data.tags[KEY_TAG] for run in found} == {outbox.key for outbox in outboxes}


@pytest.fixture(scope="module")
def postgres() -> Iterator[tuple[str, Callable[[], None]]]:
    """Address of a private Postgres, and what kills it without warning and starts it again after some seconds."""
    if not POSTGRES:
        pytest.skip("no Postgres on this machine: nothing at /usr/lib/postgresql/*/bin/initdb")
    # Postgres refuses to run as root; its user comes with Debian's package.
    root = os.geteuid() == 0
    prefix = ["runuser", "-u", "postgres", "--"] if root else []
    folder = Path(tempfile.mkdtemp(prefix="tailacc-postgres-"))
    if root:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    port, programs = free_port(), POSTGRES[-1].parent

    def call(program: str, *flags: str) -> None:
        command = [*prefix, str(programs / program), "-D", str(folder / "data"), *flags]
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        assert done.returncode == 0, done.stderr

    def start() -> None:
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-w", "-o", options, "-l", str(folder / "log"), "start")

    def stop() -> None:
        call("pg_ctl", "-w", "-m", "immediate", "stop")

    def restart() -> None:
        stop()
        time.sleep(3)
        start()

    call("initdb", "-A", "trust", "-U", "tailacc", "--no-sync")
    start()
    yield f"postgresql+psycopg2://tailacc@127.0.0.1:{port}/postgres", restart
    stop()
    shutil.rmtree(folder)


def test_outbox__four_processes_while_postgres_restarts(
    postgres: tuple[str, Callable[[], None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, restart = postgres
    server = Server(store, tmp_path)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        script = [
            sys.executable,
            str(Path(__file__).with_name("nested_runs.py")),
            str(tmp_path / "search"),
            "0.3",
        ]
        with subprocess.Popen(script, env=os.environ | {"PYTHONPATH": str(ROOT)}) as writers:
            # Some epochs are in, and there is more to come.
            first = tmp_path / "search" / "trials" / "0.0"
            wait_until(lambda: Lines(first).done > 4)
            restart()
            assert writers.wait() == 0
        found = runs("nested")
        (parent,) = (run for run in found if run.info.run_name == "parent")
        children = [run for run in found if run.info.run_id != parent.info.run_id]
        names = sorted(f"{number}.{i}" for number in range(4) for i in range(2))
        assert sorted(run.info.run_name for run in children) == names
        for run in children:
            assert run.info.status == "FINISHED"
            assert run.data.tags[PARENT_TAG] == parent.info.run_id
            assert run.data.params == {"lr": run.info.run_name[0]}
            assert len(run.inputs.dataset_inputs) == 1
            assert steps(run.info.run_id) == list(range(1, 6))
            content = (tmp_path / "artifacts").rglob(f"{run.info.run_id}/artifacts/notes.txt")
            assert [path.read_text()[0] for path in content] == [run.info.run_name[0]]
    finally:
        server.kill()
