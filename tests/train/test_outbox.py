"""Outboxes on a real MLflow store of SQLite, with an address where nobody listens for a server that is away."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data.cli import run as run_entry
from train.outbox import KEY_TAG, OUTBOX, Lines, Outbox, run_id_of, unsent
from train.send import main as send
from train.tracking import PARENT_TAG, client

ROOT = Path(__file__).resolve().parents[2]
AWAY = "http://127.0.0.1:9"  # the discard port: connections are refused


def runs(experiment: str) -> list[Any]:
    """Those that are not deleted, the oldest first."""
    found = client().get_experiment_by_name(experiment)
    return list(client().search_runs([found.experiment_id], order_by=["attributes.start_time"]))


def steps_as_written(database: Path, run_id: str, key: str) -> list[int]:
    """The steps of a metric in the order in which the store took them."""
    with sqlite3.connect(database) as connection:
        query = "SELECT step FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY rowid"
        return [step for (step,) in connection.execute(query, (run_id, key))]


def test_outbox__sends_everything_in_order(store: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("first")
    outbox = Outbox(tmp_path, "order", "a run", {"kind": "test"})
    outbox.params({f"p{i}": i for i in range(130)})  # MLflow takes 100 at once
    outbox.dataset({"name": "d", "digest": "1", "source": "/d", "profile": "{}"})
    for step in range(1, 21):
        outbox.metrics({"loss": 1 / step, "val/ap/c++": 0.5, "none": float("nan")}, step)
    outbox.artifact(tmp_path / "notes.txt")
    outbox.end("FINISHED")
    assert outbox.close(60)
    (run,) = runs("order")
    assert run.info.run_id == outbox.run_id == run_id_of(tmp_path)
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.tags[KEY_TAG] == outbox.key
    assert len(run.data.params) == 130
    assert set(run.data.metrics) == {"loss", "val/ap/c__"}
    assert steps_as_written(store, outbox.run_id, "loss") == list(range(1, 21))
    assert [item.path for item in client().list_artifacts(outbox.run_id)] == ["notes.txt"]
    assert unsent(tmp_path) == 0


def test_outbox__a_call_that_mlflow_refuses_blocks_nothing(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(tmp_path, "refused", "", {})
    outbox.tags({"": "a tag without a name"})
    outbox.artifact(tmp_path / "gone.txt")
    outbox.tags({"good": "yes"})
    assert outbox.close(60)
    (run,) = runs("refused")
    assert run.data.tags["good"] == "yes"
    lines = [line for line in capfd.readouterr().err.splitlines() if "did not take" in line]
    assert [line.split(" of ")[0] for line in lines] == [
        "note: MLflow did not take the tags",
        "note: MLflow did not take the artifact",
    ]


def test_outbox__a_run_that_cannot_be_created_is_kept_and_not_waited_for(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://somewhere")
    outbox = Outbox(tmp_path, "kept", "", {})
    outbox.metrics({"loss": 1.0}, 1)
    assert not outbox.close(250)  # the test's own limit is 300 s
    assert unsent(tmp_path) == 2
    error = capfd.readouterr().err
    assert "MLflow cannot take this run" in error
    assert f"python train/send.py --run {tmp_path}" in error
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    assert send(["--run", str(tmp_path)]) == 0
    assert runs("kept")[0].data.metrics == {"loss": 1.0}


def test_send__server_away_for_the_whole_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    search, trial = tmp_path / "search", tmp_path / "search" / "trials" / "t1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    parent = Outbox(search, "away", "parent", {})
    child = Outbox(trial, "away", "child", {})
    for step in (1, 2, 3):
        child.metrics({"loss": 1 / step}, step)
    (trial / "notes.txt").write_text("text")
    child.artifact(trial / "notes.txt")
    child.end("FINISHED")
    parent.end("FINISHED")
    assert not child.close(0.5)
    assert not parent.close(0.5)
    assert child.run_id == run_id_of(trial) == ""
    assert send(["--search", str(search)]) == 1
    assert "2 left: " in capfd.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    assert send(["--search", str(search)]) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"{search}: 2 calls sent",
        f"{trial}: 7 calls sent",  # with the tag that makes it a child
        "everything is in MLflow",
    ]
    found = {run.info.run_name: run for run in runs("away")}
    assert len(found) == 2
    assert found["child"].data.tags[PARENT_TAG] == found["parent"].info.run_id
    assert steps_as_written(store, run_id_of(trial), "loss") == [1, 2, 3]
    assert [item.path for item in client().list_artifacts(run_id_of(trial))] == ["notes.txt"]
    assert send(["--search", str(search)]) == 0
    assert capfd.readouterr().out == "everything is in MLflow\n"


def test_send__remembers_where_the_run_was_opened(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(tmp_path)
    lines.append({"outbox": 1, "key": "k", "store": f"sqlite:///{store}"})
    lines.append({"call": "create", "experiment": "opened", "name": "", "tags": {}, "time": 1})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert send(["--run", str(tmp_path)]) == 0
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --run DIR or --search DIR"),
        (["--run", "."], "it is not the folder of a tracked run"),
        (["--search", "."], "nothing in it was tracked"),
    ],
)
def test_send__bad_usage(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_entry(send, flags) == 2
    assert message in capfd.readouterr().err


def test_outbox__an_answer_that_was_lost_makes_no_second_run(store: Path, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "lost", "", {"kind": "lost"})
    assert outbox.close(60)
    path = tmp_path / OUTBOX
    # What a process leaves that died after MLflow created the run and before it could note so.
    kept = [line for line in path.read_text().splitlines() if "sent" not in line]
    path.write_text("\n".join(kept) + "\n")
    assert run_id_of(tmp_path) == ""
    again = Outbox(tmp_path, "lost", "", {})
    assert again.close(60)
    assert [run.info.run_id for run in runs("lost")] == [again.run_id] == [outbox.run_id]


def test_outbox__a_torn_last_line_is_not_counted(store: Path, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "torn", "", {})
    outbox.metrics({"loss": 1.0}, 1)
    assert outbox.close(60)
    with (tmp_path / OUTBOX).open("a") as stream:
        stream.write('{"call": "metrics", "values": {"lo')
    again = Outbox(tmp_path, "torn", "", {})
    again.metrics({"loss": 0.5}, 2)
    assert again.close(60)
    assert steps_as_written(store, again.run_id, "loss") == [1, 2]


def test_outbox__killed_writer_is_gone_on_with(store: Path, tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from train.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), "killed", "", {})
outbox.wait_for_run(100)
for step in range(1, 1000):
    outbox.metrics({"loss": 1 / step}, step)
    print(step, flush=True)
    time.sleep(0.005)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    for line in writer.stdout:
        if line == "40\n":
            writer.send_signal(signal.SIGKILL)
            break
    rest = writer.stdout.read().split()
    assert writer.wait() == -signal.SIGKILL
    last = int(rest[-1]) if rest else 40
    again = Outbox(tmp_path, "killed", "", {})
    assert again.close(60)
    (run,) = runs("killed")
    assert run.info.run_id == again.run_id
    steps = steps_as_written(store, run.info.run_id, "loss")
    # The step after the last that was printed may have been written too.
    assert steps in (list(range(1, last + 1)), list(range(1, last + 2)))


def test_outbox__one_sends_at_a_time_and_lines_of_others_are_sent_too(store: Path, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "shared", "", {})
    assert outbox.wait_for_run(60)
    assert send(["--run", str(tmp_path)]) == 0  # nothing is left
    Lines(tmp_path).append({"call": "tags", "values": {"from": "another process"}})
    deadline = time.monotonic() + 60
    while unsent(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert outbox.close(60)
    assert runs("shared")[0].data.tags["from"] == "another process"


def test_outbox__four_processes_at_once(store: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("nested_runs.py")), str(tmp_path), "0.02"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = runs("nested")
    (parent,) = (run for run in found if run.info.run_name == "parent")
    children = [run for run in found if run is not parent]
    assert sorted(run.info.run_name for run in children) == sorted(
        f"{n}.{i}" for n in range(4) for i in range(2)
    )
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.tags[PARENT_TAG] == parent.info.run_id
        assert steps_as_written(store, run.info.run_id, "loss") == list(range(1, 6))
        assert [item.path for item in client().list_artifacts(run.info.run_id)] == ["notes.txt"]
