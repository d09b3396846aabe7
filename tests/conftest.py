"""What tests of several rooms share: a browser, an MLflow store of SQLite, and a Ray cluster of several nodes."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# A job in a shell's background starts with Ctrl-C ignored and hands that on to every process that a test starts and
# interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The searches first: each takes a minute, and at the end the other cores would wait for them."""
    items.sort(key=lambda item: "tune" not in item.path.parts)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; where there is none, the tests skip and say so."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip(
            "no Chromium here; on Debian and Ubuntu: apt-get install --no-install-recommends chromium"
        )
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for the tests of a module: its tables alone take seconds to make."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def store(database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store as MLFLOW_TRACKING_URI, in whose folder the test runs."""
    monkeypatch.chdir(database.parent)
    # As in a fresh process: other tests of this one may have been the first to choose.
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return database


class Cluster:
    """A Ray cluster whose nodes are groups of processes of this machine, with a token of its own.

    Attributes:
        address: HOST:PORT of the head.
        environment: of whoever joins it.
    """

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        with socket.socket() as probe:  # below 10000: Ray's workers take their ports above
            port = next(p for p in range(7300, 9900) if probe.connect_ex(("127.0.0.1", p)))
        self.address = f"127.0.0.1:{port}"
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self._folder, self._port = folder, port
        self.nodes: list[psutil.Process] = []

    def start(self, *flags: str) -> psutil.Process:
        """One more node, the first one as head; returns once it belongs to the cluster."""
        where = ["--address", self.address] if self.nodes else ["--head", "--port", str(self._port)]
        log = self._folder / f"node-{len(self.nodes)}.log"
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            *where,
            "--node-ip-address",
            "127.0.0.1",
        ]
        command += ["--disable-usage-stats", "--object-store-memory", "100000000", "--block", *flags]
        if not self.nodes:
            command += ["--include-dashboard", "false"]
        with log.open("w") as stream:
            node = psutil.Popen(command, env=self.environment, stdout=stream, stderr=stream)
        end = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        self.nodes.append(node)
        return node

    def kill(self, node: psutil.Process) -> None:
        """What a machine that goes down takes with it: all of the node's processes at once."""
        family = [*node.children(recursive=True), node]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)

    def stop(self) -> None:
        """All nodes, the head last."""
        for node in reversed(self.nodes):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.kill(node)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without nodes yet."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()
