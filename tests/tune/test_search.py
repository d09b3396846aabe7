"""A real Ray, a real MLflow on SQLite, and the command line as a user types it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from data.labels import VOC_CLASSES
from data.model_file import ModelInfo
from data.synthetic import write_devkit
from train.tracking import PARENT_TAG, client
from tune.points import STATE_TAG

SCRIPT = str(Path(__file__).resolve().parents[2] / "tune" / "search.py")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("search")
    write_devkit(home / "devkit", 60, 20, seed=1)
    return home


def command(home: Path, out: str, *flags: str) -> list[str]:
    base = [
        sys.executable,
        SCRIPT,
        "--data.root",
        "devkit",
        "--data.size",
        "32",
        "--batch-size",
        "16",
        "--out",
        out,
    ]
    return [*base, *flags]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.timeout(600)
def test_search__interrupted_resumed_exported_and_registered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--search.trials", "2", "--space.backbone", "tiny_cnn", "--space.loss", "bce", "asl"]
    flags += ["--search.concurrency", "1", "--schedule.epochs", "4", "--search.scheduler", "none"]
    flags += ["--search.finalists", "1"]
    out = home / "runs" / "first"
    process = subprocess.Popen(
        command(home, str(out), *flags), cwd=home, env=environment(home), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    printed = ""
    for line in process.stderr:  # Ctrl-C in the middle of the first trial
        printed += line
        if "epoch 1 " in line:
            process.send_signal(signal.SIGINT)
            break
    printed += process.stderr.read()
    assert process.wait() == 130, printed
    assert "--resume" in printed
    first = rows(out)
    assert any(row["state"] == "unfinished" for row in first) or len(first) < 2

    done = subprocess.run(
        command(home, str(out), "--resume"), cwd=home, env=environment(home), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = rows(out)
    assert [row["state"] for row in table] == ["completed", "completed"]
    assert {row["point.loss"] for row in table} == {"bce", "asl"}
    assert first[0]["trial_id"] in {row["trial_id"] for row in table}
    assert float(table[0]["best_map"]) >= float(table[1]["best_map"])
    assert "registered models:/tailacc/1" in done.stdout
    meta = onnx.load(out / "model.onnx").metadata_props
    info = ModelInfo.from_metadata({item.key: item.value for item in meta}, "model.onnx")
    assert info.classes == VOC_CLASSES

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    experiment = client().get_experiment_by_name("tailacc")
    runs = client().search_runs([experiment.experiment_id])
    parent = json.loads((out / "search.json").read_text())["parent_run"]
    children = [run for run in runs if run.data.tags.get(PARENT_TAG) == parent]
    assert len(runs) == 3
    assert len(children) == 2
    for run in children:
        assert run.data.tags[STATE_TAG] == "completed"
        assert run.info.status == "FINISHED"
        assert [m.step for m in client().get_metric_history(run.info.run_id, "val/map")] == [1, 2, 3, 4]
    best = client().get_run(parent)
    assert best.info.status == "FINISHED"
    assert best.data.metrics["best/map"] == pytest.approx(float(table[0]["best_map"]))
    champion = client().get_model_version_by_alias("tailacc", "champion")
    assert (
        champion.run_id == info.run_id == max(children, key=lambda r: r.data.metrics["best/map"]).info.run_id
    )


def test_search__failing_trials_are_named_with_their_reason(home: Path) -> None:
    flags = [
        "--search.trials",
        "1",
        "--space.backbone",
        "tiny_cnn",
        "--space.loss",
        "bce",
        "--space.lr",
        "1e30",
        "1e30",
    ]
    flags += ["--optimizer.clip", "0", "--tracking.no-enabled", "--search.sampler", "random"]
    flags += ["--search.finalists", "1", "--search.retries", "0"]
    done = subprocess.run(
        command(home, "runs/wild", *flags), cwd=home, env=environment(home), capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    (row,) = rows(home / "runs" / "wild")
    assert row["state"] == "failed"
    assert "the loss is not finite (nan) at step" in row["reason"]
    assert "no trial finished an epoch" in done.stderr


def test_search__what_no_machine_has_is_refused(home: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        command(home, "runs/big", "--search.cpus", "999"),
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "worker wants 999 CPUs and 0 GPUs on one machine, which none has: the machines have" in done.stderr
    assert time.monotonic() - started < 240  # refused, not waited for
