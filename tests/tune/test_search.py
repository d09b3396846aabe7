"""A real Ray, a real MLflow on SQLite, and the command line as a user types it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import psutil
import pytest

from benchmarks.tuning.nodes import kill_family
from data.labels import VOC_CLASSES
from data.model_file import ModelInfo
from train.outbox import run_id_of
from train.tracking import PARENT_TAG, client
from tune.points import STATE_TAG
from tune.rows import read_table

SCRIPT = str(Path(__file__).resolve().parents[2] / "tune" / "search.py")


class Driver:
    """The command in a process of its own, whose lines are read as it prints them."""

    def __init__(self, home: Path, *flags: str) -> None:
        flags = ("--out", str(home / "out"), *flags)
        self._process = psutil.Popen(
            [sys.executable, SCRIPT, *flags],
            cwd=home,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""

    def read_until(self, *words: str) -> None:
        """Up to the line that holds all these words."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.printed += line
            if words and all(word in line for word in words):
                return
        assert not words, self.printed

    def end(self) -> int:
        """Its exit code, with the rest of what it prints."""
        self.read_until()
        return self._process.wait()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """With all that it started."""
        kill_family(self._process)


@pytest.mark.timeout(600)
def test_search__killed_resumed_interrupted_resumed_exported_and_registered(
    devkit: Path, tmp_path: Path, epochs: Callable[[Path], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = ["--data.root", str(devkit), "--data.size", "32", "--batch-size", "16", "--schedule.epochs", "20"]
    flags += ["--search.trials", "2", "--space.backbone", "tiny_cnn", "--space.loss", "bce", "asl"]
    flags += ["--search.concurrency", "1", "--search.scheduler", "none"]
    driver = Driver(tmp_path, *flags)
    driver.read_until("[1 of 2 trials ended", "running")
    driver.kill()  # Ray Tune's own state, written every ten seconds, need not know of the first trial's end
    (finished,) = (path.parent for path in (out / "trials").glob("*/result.json"))
    before = (finished / "environment.json").read_bytes()

    driver = Driver(tmp_path, "--resume")  # Ctrl-C in the middle of the second trial
    driver.read_until("epoch 1 ")
    driver.interrupt()
    assert driver.end() == 130, driver.printed
    assert "--resume" in driver.printed
    assert sorted(row.state for row in read_table(out / "trials.csv")) == ["completed", "unfinished"]

    driver = Driver(tmp_path, "--resume")
    assert driver.end() == 0, driver.printed
    assert "[2 of 2 trials ended" in driver.printed  # the one of an earlier session counts
    table = read_table(out / "trials.csv")
    assert [row.state for row in table] == ["completed", "completed"]
    assert {row.point["loss"] for row in table} == {"bce", "asl"}
    assert finished.name in {row.trial_id for row in table}
    assert (finished / "environment.json").read_bytes() == before  # not trained again
    for row in table:
        assert epochs(out / "trials" / row.trial_id) == list(range(1, 21))
    assert table[0].best_map >= table[1].best_map
    assert "registered models:/tailacc/1" in driver.printed
    meta = onnx.load(out / "model.onnx").metadata_props
    info = ModelInfo.from_metadata({item.key: item.value for item in meta}, "model.onnx")
    assert info.classes == VOC_CLASSES

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client().get_experiment_by_name("tailacc")
    runs = client().search_runs([experiment.experiment_id])
    parent = run_id_of(out)
    children = [run for run in runs if run.data.tags.get(PARENT_TAG) == parent]
    assert len(children) == len(runs) - 1
    # The second trial began just before the kill: where Ray Tune had not noted it, it began anew under another id.
    forgotten = [run for run in children if run.data.tags["trial_id"] not in {row.trial_id for row in table}]
    assert all(run.info.status == "KILLED" for run in forgotten)
    children = [run for run in children if run not in forgotten]
    assert len(children) == 2
    for run in children:
        assert run.data.tags[STATE_TAG] == "completed"
        assert run.info.status == "FINISHED"
        assert [m.step for m in client().get_metric_history(run.info.run_id, "val/map")] == list(range(1, 21))
    best = client().get_run(parent)
    assert best.info.status == "FINISHED"
    assert best.data.metrics["best/map"] == pytest.approx(table[0].best_map)
    champion = client().get_model_version_by_alias("tailacc", "champion")
    assert (
        champion.run_id == info.run_id == max(children, key=lambda r: r.data.metrics["best/map"]).info.run_id
    )
