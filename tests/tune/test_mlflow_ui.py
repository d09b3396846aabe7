"""A finished search in the MLflow UI, in a real browser: its trials are found, selected and compared.

With TAILACC_SCREENSHOTS=FOLDER the pictures runs.png and compare.png go there, for a person to look at.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from data.labels import VOC_CLASSES
from train.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from train.config_files import flatten, to_dict
from train.selection_scores import SelectionScores, best_figures, write_selection_scores
from train.tracking import PARENT_TAG, MlflowTracker, client, experiment_id

# For each step of the browser, in milliseconds: the UI is 3 MB of JavaScript, and the machine may be busy.
PATIENCE = 60_000
SEARCH = "search: grid, 4 trials"
TRIALS = [
    ("tiny_cnn", "bce", 4e-3),
    ("tiny_cnn", "asl", 8e-3),
    ("tiny_resnet", "bce", 6e-3),
    ("tiny_resnet", "asl", 1e-2),
]


@dataclass(frozen=True)
class Served:
    """A tracking server with a finished search."""

    address: str
    experiment: str
    parent: str
    children: tuple[str, ...]


def record(folder: Path) -> tuple[str, str, tuple[str, ...]]:
    """A search of four trials as `train.loop` records them: experiment, parent and children."""
    experiment = experiment_id(client(), "tailacc")
    parent = client().create_run(experiment, run_name=SEARCH, tags={"kind": "search"}).info.run_id
    rng, children = np.random.default_rng(0), []
    target = (rng.random((40, len(VOC_CLASSES))) < 0.3).astype(np.uint8)
    ids = tuple(f"2012_{i:06d}" for i in range(len(target)))
    for number, (backbone, loss, lr) in enumerate(TRIALS):
        out = folder / f"trial{number}"
        out.mkdir()
        config = replace(
            TrainConfig(out=out),
            model=ModelConfig(backbone=backbone, weights="none"),
            loss=LossConfig(name=loss),
            optimizer=OptimizerConfig(lr=lr),
        )
        tags = {PARENT_TAG: parent, "trial_id": f"t_{number}", "trial.state": "completed"}
        dataset = {"name": "squares", "digest": "d", "source": str(folder), "profile": "{}"}
        name = f"{backbone} {loss} lr {lr:.2g}"
        tracker = MlflowTracker(out, "tailacc", name, flatten(to_dict(config)), dataset, tags)
        for epoch in (1, 2, 3):
            logit = (target * epoch + rng.normal(0, 2, target.shape)).astype(np.float32)
            scores = SelectionScores(tuple(VOC_CLASSES), ids, target, np.ones_like(target), logit)
            ap = {f"val/ap/{c}": float(v) for c, v in zip(VOC_CLASSES, scores.ap(), strict=True)}
            figures = {"train/loss": 1 / epoch, "val/map": scores.map(), "lr": lr, "time/seconds": 1.0}
            tracker.epoch(epoch, figures | {"time/images_per_second": 100.0} | ap)
        path = out / "selection.npz"
        write_selection_scores(path, scores)
        tracker.finish("FINISHED", {"best/map": scores.map(), "best/epoch": 3} | best_figures(path), [path])
        children.append(tracker.run_id)
    client().set_terminated(parent)
    return experiment, parent, tuple(children)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Iterator[Served]:
    """The real `mlflow server` on the search's SQLite."""
    folder = tmp_path_factory.mktemp("ui")
    store = new_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", store)
        experiment, parent, children = record(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            # Jobs are for its evaluation of language models: three more processes.
            env=os.environ
            | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(f"{address}/health", server, folder / "server.log")
            yield Served(address, experiment, parent, children)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the tracking server did not come up:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page(browser: Any, served: Served) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1600, "height": 1000}, reduced_motion="reduce")
    tab.set_default_timeout(PATIENCE)
    own = urlsplit(served.address).netloc

    def only_own(route: Any) -> None:
        # The UI asks addresses outside for news and telemetry; where there is no network they would hang.
        if urlsplit(route.request.url).netloc == own:
            route.continue_()
        else:
            route.abort()

    tab.route(re.compile("^https?:"), only_own)
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = os.environ.get("TAILACC_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def scroll_to(page: Any, name: str) -> Any:
    """The text in the table under the mouse, which holds only the rows in sight."""
    found = page.get_by_text(name, exact=True).first
    for _ in range(100):
        if found.is_visible():
            found.scroll_into_view_if_needed()
            return found
        page.mouse.wheel(0, 150)
        page.wait_for_timeout(50)
    pytest.fail(f"'{name}' is not on the page {page.url}")


@pytest.mark.timeout(600)
def test_ui__children_of_a_search_are_selected_and_compared(
    page: Any, served: Served, pictures: Path
) -> None:
    # Without /runs it opens on the traces of language models, whatever the experiment's kind: 3.17's first choice.
    page.goto(f"{served.address}/#/experiments/{served.experiment}/runs")
    search = page.get_by_role("row").filter(has=page.get_by_role("link", name=SEARCH))
    search.wait_for()
    assistant = page.get_by_role("button", name="Close").first
    if assistant.is_visible():
        assistant.click()
    search.get_by_role("button").first.click()  # unfolds its trials
    for (backbone, loss, _), run_id in zip(TRIALS, served.children, strict=True):
        row = page.locator(f'[row-id="{run_id}"]')
        row.get_by_role("link", name=f"{backbone} {loss}").wait_for()
        row.get_by_role("checkbox").first.check()
    page.screenshot(path=pictures / "runs.png")
    page.get_by_role("button", name="Compare", exact=True).click()

    page.get_by_text("Comparing 4 Runs from 1 Experiment").wait_for()
    for (_, loss, lr), run_id in zip(TRIALS, served.children, strict=True):
        assert page.get_by_role("link", name=run_id).count() == 1
        assert page.get_by_role("cell", name=loss, exact=True).count() == 2
        assert page.get_by_role("cell", name=str(lr), exact=True).count() >= 1
    for name in ("loss.name", "optimizer.lr", "model.backbone", "data.size"):
        assert page.get_by_role("rowheader", name=name, exact=True).count() == 1, name
    page.screenshot(path=pictures / "compare.png")
    first = page.get_by_text("best/ap/aeroplane", exact=True).first
    first.scroll_into_view_if_needed()
    place = first.bounding_box()
    page.mouse.move(place["x"] + 300, place["y"] + 5)  # over the values: the column of names does not scroll
    for name in ("best/map", "best/map_high", "best/map_low", "train/loss", "val/ap/tvmonitor", "val/map"):
        assert scroll_to(page, name).is_visible()
    page.screenshot(path=pictures / "metrics.png")
