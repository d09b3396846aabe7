"""The record of a search on a real MLflow store of SQLite, without Ray."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from train.config import TrackingConfig
from train.outbox import Outbox, run_id_of, unsent
from train.tracking import PARENT_TAG, client
from tune.points import STATE_TAG
from tune.record import SEARCH_TAG, ParentRun
from tune.rows import TrialRow
from tune.space import SearchConfig
from tune.trial import trial_folder

ROOT = Path(__file__).resolve().parents[2]
AWAY = "http://127.0.0.1:9"  # the discard port: connections are refused


def config(experiment: str, wait: float = 60.0) -> SearchConfig:
    return SearchConfig(tracking=TrackingConfig(experiment=experiment, wait=wait))


def open_trial(out: Path, experiment: str, trial_id: str, tags: dict[str, str]) -> Outbox:
    own = {"trial_id": trial_id, STATE_TAG: "running"}
    return Outbox(trial_folder(out, trial_id), experiment, trial_id, own | tags)


def run_of(out: Path, trial_id: str) -> Any:
    return client().get_run(run_id_of(trial_folder(out, trial_id)))


def test_parent_run__tree_of_a_search_and_its_resume(store: Path, tmp_path: Path) -> None:
    parent = ParentRun(config("tree"), tmp_path)
    assert parent.wait_for_run(60) == parent.run_id != ""
    tags = parent.child_tags()
    done, dead = (open_trial(tmp_path, "tree", name, tags) for name in ("t1", "t2"))
    done.end("FINISHED")
    assert done.close(60)
    assert dead.close(60)  # it ends without a word, as a process that is killed
    parent.trial_ended(TrialRow("t1", "completed", node="n", gpu="g", restarts=1))
    # As Ray sees it: the record of the trial itself says that it finished, and it stays so.
    parent.trial_ended(TrialRow("t2", "failed", reason="its worker died"))
    (tmp_path / "trials.csv").write_text("trial_id\n")
    assert parent.finish("KILLED", {"best/map": 0.5}, {"best.trial_id": "t1"}, [tmp_path / "trials.csv"])
    run = client().get_run(parent.run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"best/map": 0.5})
    assert run.data.tags["kind"] == "search"
    assert run.data.tags["best.trial_id"] == "t1"
    assert run.data.params["schedule.epochs"] == str(SearchConfig().schedule.epochs)
    assert [item.path for item in client().list_artifacts(parent.run_id)] == ["trials.csv"]
    first, second = run_of(tmp_path, "t1"), run_of(tmp_path, "t2")
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    wanted = {STATE_TAG: "completed", "trial.node": "n", "trial.gpu": "g", "trial.restarts": "1"}
    assert wanted.items() <= first.data.tags.items()
    assert second.data.tags["trial.reason"] == "its worker died"
    for child in (first, second):
        assert child.data.tags[PARENT_TAG] == parent.run_id
        assert child.data.tags[SEARCH_TAG] == run.data.tags[SEARCH_TAG]
    again = ParentRun(config("tree"), tmp_path)
    assert again.run_id == parent.run_id  # without waiting: it stands in the folder
    again.trial_ended(TrialRow("t1", "failed", reason="said too late"))
    assert again.finish("FINISHED", {}, {}, [])
    assert client().get_run(parent.run_id).info.status == "FINISHED"
    assert run_of(tmp_path, "t1").info.status == "FINISHED"


def test_parent_run__sends_what_its_trials_could_not(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    parent = ParentRun(config("later", wait=0.5), tmp_path)
    assert parent.wait_for_run(0.5) == ""
    assert PARENT_TAG not in parent.child_tags()
    for name in ("t1", "t2"):
        trial = open_trial(tmp_path, "later", name, parent.child_tags())
        trial.metrics({"val/map": 0.5}, 1)
        trial.end("FINISHED")
        assert not trial.close(0.2)
    parent.trial_ended(TrialRow("t1", "completed"))
    parent.trial_ended(TrialRow("t2", "pruned"))
    assert not parent.finish("KILLED", {}, {}, [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    again = ParentRun(replace(config("later"), resume=True), tmp_path)
    assert again.finish("FINISHED", {}, {}, [])
    for name, state in (("t1", "completed"), ("t2", "pruned")):
        assert unsent(trial_folder(tmp_path, name)) == 0
        run = run_of(tmp_path, name)
        assert run.data.tags[PARENT_TAG] == again.run_id
        assert run.data.tags[STATE_TAG] == state
        assert (run.info.status, run.data.metrics) == ("FINISHED", {"val/map": 0.5})


def test_parent_run__trial_without_an_outbox_in_reach_and_one_that_was_lost(
    store: Path, tmp_path: Path
) -> None:
    parent = ParentRun(config("far"), tmp_path / "here")
    assert parent.wait_for_run(60)
    # On another machine's disk; t2 began twice, since its process died before its first checkpoint.
    for machine, name in (("a", "t1"), ("a", "t2"), ("b", "t2")):
        assert open_trial(tmp_path / machine, "far", name, parent.child_tags()).close(60)
    parent.trial_ended(TrialRow("t1", "pruned", run_id=run_id_of(trial_folder(tmp_path / "a", "t1"))))
    parent.trial_ended(TrialRow("t2", "completed", restarts=1))
    parent.trial_ended(TrialRow("t3", "failed", reason="it never opened a run"))
    assert parent.finish("FINISHED", {}, {}, [])
    found = [
        (run.info.status, run.data.tags[STATE_TAG])
        for run in (run_of(tmp_path / m, name) for m, name in (("a", "t1"), ("a", "t2"), ("b", "t2")))
    ]
    assert found == [("KILLED", "pruned"), ("KILLED", "lost"), ("FINISHED", "completed")]


def test_parent_run__a_trial_killed_with_unsent_calls_is_sent_by_the_search(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from train.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), "killed", "t1", {"trial_id": "t1"})
outbox.metrics({"val/map": 0.5}, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = trial_folder(tmp_path, "t1")
    subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=False)
    assert unsent(folder) == 2
    parent = ParentRun(config("killed"), tmp_path)
    parent.trial_ended(TrialRow("t1", "failed", reason="its worker died"))
    assert parent.finish("FINISHED", {}, {}, [])
    run = run_of(tmp_path, "t1")
    assert (run.info.status, run.data.metrics) == ("FAILED", {"val/map": 0.5})
    assert run.data.tags[PARENT_TAG] == parent.run_id
