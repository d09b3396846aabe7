"""What the tests of a search share: a tiny devkit, one Ray for a module, and the processes of its trials."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.synthetic import write_devkit
from tune.options import parse_search
from tune.space import SearchConfig

Make = Callable[..., SearchConfig]


@pytest.fixture(scope="session")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic images to train on."""
    folder = tmp_path_factory.mktemp("devkit")
    write_devkit(folder, 60, 20, seed=1)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's searches write, and its MLflow store."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def local_ray(home: Path) -> Iterator[Any]:
    """A Ray of two CPUs in this process, which the searches of a module share: 10 s of each are saved."""
    import ray

    from tune.placement import start_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        start_ray(parse_search([]), {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120"})
        yield ray
        ray.shutdown()


@pytest.fixture
def make(devkit: Path, home: Path) -> Make:
    """The configuration of a tiny search into `home / name`, from the flags of the command line."""

    def build(name: str, *flags: str) -> SearchConfig:
        base = [
            "--data.root",
            str(devkit),
            "--data.size",
            "32",
            "--batch-size",
            "16",
            "--out",
            str(home / name),
        ]
        base += ["--data.cache", str(home / "cache"), "--search.finalists", "1", "--tracking.no-enabled"]
        return parse_search([*base, *flags])

    return build


@pytest.fixture(scope="session")
def trial_processes() -> Callable[[int], list[psutil.Process]]:
    """Finds the processes below one that run trials."""

    def find(root: int) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(root).children(recursive=True):
            try:
                if any("ImplicitFunc" in part for part in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    return find
