"""A search over a cluster of two nodes, one of which leaves: real Ray nodes, on one machine."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.tuning.nodes import kill_family
from tune.rows import read_table

SCRIPT = str(Path(__file__).resolve().parents[2] / "tune" / "search.py")


@pytest.mark.timeout(500)
def test_cluster__a_node_that_leaves_takes_no_finished_epoch_with_it(
    cluster: Any,
    devkit: Path,
    tmp_path: Path,
    epochs: Callable[[Path], list[int]],
    trial_processes: Callable[[int], list[psutil.Process]],
) -> None:
    cluster.start("--num-cpus", "1")
    second = cluster.start("--num-cpus", "1")
    out, count = tmp_path / "out", 40
    flags = ["--search.ray-address", cluster.address, "--out", str(out), "--data.root", str(devkit)]
    flags += [
        "--data.size",
        "32",
        "--batch-size",
        "16",
        "--schedule.epochs",
        str(count),
        "--tracking.no-enabled",
    ]
    flags += ["--search.trials", "2", "--space.backbone", "tiny_resnet", "--space.loss", "bce,asl"]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, SCRIPT, *flags, "--search.scheduler", "none"],
            cwd=tmp_path,
            env=cluster.environment,
            stdout=log,
            stderr=log,
        )
    try:
        before = histories(second, out, trial_processes, epochs, count)
        kill_family(second)
        assert driver.wait() == 0, (tmp_path / "log").read_text()
    finally:
        driver.kill()
    printed = (tmp_path / "log").read_text()
    assert "placed     2 at a time on 2 machines" in printed
    rows = {row.trial_id: row for row in read_table(out / "trials.csv")}
    assert [row.state for row in rows.values()] == ["completed"] * 2
    assert sorted(row.restarts for row in rows.values()) == [0, 1]
    (lost,) = (row for row in rows.values() if row.restarts)
    for trial_id in rows:
        assert epochs(out / "trials" / trial_id) == list(range(1, count + 1))
    sessions = json.loads((out / "trials" / lost.trial_id / "environment.json").read_text())["sessions"]
    assert len(sessions) == 2
    # What was finished was not trained again: its lines, with the seconds that each epoch took, are the same.
    assert (out / "trials" / lost.trial_id / "history.csv").read_text().startswith(before[lost.trial_id])
    assert (out / "model.onnx").is_file()


def histories(
    node: psutil.Process, out: Path, trial_processes: Any, epochs: Any, count: int
) -> dict[str, str]:
    """Waits until both trials have some epochs, one of them on that node; the history of each then."""
    while True:
        folders = list((out / "trials").glob("*"))
        done = [len(epochs(folder)) for folder in folders]
        if trial_processes(node.pid) and len(done) == 2 and min(done) >= 2:
            assert max(done) < count
            return {folder.name: (folder / "history.csv").read_text() for folder in folders}
        time.sleep(0.05)
