"""What tests of several rooms share: a browser, an MLflow store of SQLite, and a Ray cluster of several nodes."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tuning.nodes import Cluster

# On a GPU some kernels add up in another order each time: a run would not end with the same weights twice.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A job in a shell's background starts with Ctrl-C ignored and hands that on to every process that a test starts and
# interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


_SLOW = ("test_ray_app.py", "test_tracking_server.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take a minute first: at the end the other cores would wait for them."""
    items.sort(key=lambda item: "tune" not in item.path.parts and item.path.name not in _SLOW)


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


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Puts an MLflow store of SQLite without runs into a folder; returns its URI. Its tables take 2.7 s to make."""
    made = tmp_path_factory.mktemp("empty") / "mlflow.db"

    def put(folder: Path) -> str:
        if not made.is_file():
            mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
            mlflow.MlflowClient(f"sqlite:///{made}").search_experiments()
        shutil.copy(made, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    return put


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    """One MLflow store for the tests of a module."""
    folder = tmp_path_factory.mktemp("store")
    new_store(folder)
    return folder / "mlflow.db"


@pytest.fixture
def store(database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store as MLFLOW_TRACKING_URI, in whose folder the test runs."""
    monkeypatch.chdir(database.parent)
    # As in a fresh process: other tests of this one may have been the first to choose.
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return database


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without nodes yet."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()
