"""What happens to a trial must not happen to the search: real processes, really killed."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.errors import InputError
from tune.champion import conclude
from tune.rows import read_table
from tune.run import search
from tune.space import SearchConfig

Make = Callable[..., SearchConfig]
Find = Callable[[int], list[psutil.Process]]
Epochs = Callable[[Path], list[int]]


def test_fault__a_killed_worker_goes_on_from_its_checkpoint(
    local_ray: Any, make: Make, home: Path, trial_processes: Find, epochs: Epochs
) -> None:
    config = make("killed", "--search.trials", "1", "--space.backbone", "tiny_cnn", "--space.loss", "bce")
    config = replaced(config, epochs=12)
    seen: list[int] = []

    def kill() -> None:
        folder = home / "killed" / "trials"
        while not any(len(epochs(trial)) >= 2 for trial in folder.glob("*")):
            time.sleep(0.02)
        (trial,) = folder.glob("*")
        for process in trial_processes(os.getpid()):
            process.kill()
        seen.extend(epochs(trial))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    outcome = search(config)
    killer.join()
    (row,) = outcome.rows
    assert (row.state, row.restarts, row.epoch) == ("completed", 1, 12)
    assert 2 <= len(seen) < 12
    folder = home / "killed" / "trials" / row.trial_id
    assert epochs(folder) == list(range(1, 13))
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    assert len(sessions) == 2  # one before and one after: what was finished was not trained again
    assert not (folder / "last.pt").exists()
    assert outcome.winner == folder


def test_fault__one_that_stays_ends_the_trial_with_its_reason_and_the_search_goes_on(
    local_ray: Any, make: Make, home: Path
) -> None:
    flags = ["--search.trials", "2", "--space.backbone", "tiny_cnn", "tiny_resnet", "--space.loss", "bce"]
    config = replaced(make("stays", *flags), epochs=2, retries=1)
    outcome = search_with_broken(config, home)
    states = {row.point["backbone"]: row for row in outcome.rows}
    assert states["tiny_resnet"].state == "completed"
    failed = states["tiny_cnn"]
    assert (failed.state, failed.restarts) == ("failed", 1)
    assert "is a file; give a folder" in failed.reason
    table = {row.trial_id: row.reason for row in read_table(home / "stays" / "trials.csv")}
    assert table[failed.trial_id] == failed.reason


def search_with_broken(config: SearchConfig, home: Path) -> Any:
    """The search, with a file where the first tiny_cnn trial wants its folder: a fault that no retry mends."""
    from tune import run

    original = run.make_scheduler

    def sabotage(config: SearchConfig) -> Any:
        from tune.sampling import Points

        suggest = Points.suggest

        def suggested(self: Points, trial_id: str) -> Any:
            found = suggest(self, trial_id)
            if found and found["point"]["backbone"] == "tiny_cnn":
                folder = home / "stays" / "trials"
                folder.mkdir(exist_ok=True)
                (folder / trial_id).write_text("in the way")
            return found

        patch.setattr(Points, "suggest", suggested)
        return original(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_scheduler", sabotage)
        return search(config)


def test_search__failing_trials_are_named_with_their_reason(
    local_ray: Any, make: Make, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--search.trials", "1", "--space.backbone", "tiny_cnn", "--space.loss", "bce"]
    flags += ["--space.lr", "1e30", "1e30", "--optimizer.clip", "0", "--search.sampler", "random"]
    config = make("wild", *flags, "--search.retries", "0")
    assert conclude(config, search(config)) == 1
    (row,) = read_table(home / "wild" / "trials.csv")
    assert row.state == "failed"
    assert "the loss is not finite (nan) at step" in row.reason
    assert "no trial finished an epoch" in capfd.readouterr().err


def test_search__what_no_machine_has_is_refused(local_ray: Any, make: Make) -> None:
    message = "worker wants 999 CPUs and 0 GPUs on one machine, which none has: the machines have"
    with pytest.raises(InputError, match=message):
        search(make("big", "--search.cpus", "999"))


def test_search__weights_that_cannot_be_had_are_an_error_before_any_trial(
    local_ray: Any, make: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    message = (
        r"of resnet18 could not be downloaded .* put it at .*, or give a file with --space\.backbone resnet18=PATH, "
        r"or train from scratch with resnet18=none"
    )
    with pytest.raises(InputError, match=message):
        search(make("weights", "--data.size", "64", "--space.backbone", "tiny_cnn", "resnet18"))
    assert not (home / "weights").exists()


def test_hyperband__runs_to_its_end(local_ray: Any, make: Make) -> None:
    flags = ["--search.trials", "3", "--space.backbone", "tiny_cnn", "--space.loss", "bce"]
    flags += ["--search.sampler", "random", "--search.scheduler", "hyperband", "--space.lr", "1e-6", "2e-2"]
    config = make("hyperband", *flags)
    outcome = search(replaced(config, epochs=6))
    assert len(outcome.rows) == 3
    assert {row.state for row in outcome.rows} <= {"completed", "pruned"}
    assert any(row.epoch == 6 for row in outcome.rows)
    assert outcome.winner is not None


def test_budget__ends_the_search_with_what_was_found(local_ray: Any, make: Make, home: Path) -> None:
    flags = ["--search.trials", "500", "--space.backbone", "tiny_cnn", "--space.loss", "bce"]
    config = make("budget", *flags, "--search.sampler", "random", "--search.hours", str(15 / 3600))
    outcome = search(replaced(config, epochs=4))
    assert 0 < len(outcome.rows) < 500
    assert not outcome.interrupted
    assert not {row.state for row in outcome.rows} & {"running", "unfinished", "failed"}


def test_disk__keeps_the_weights_of_the_best_alone(local_ray: Any, make: Make, home: Path) -> None:
    flags = [
        "--search.trials",
        "4",
        "--space.backbone",
        "tiny_cnn",
        "--space.loss",
        "bce",
        "--search.keep",
        "2",
    ]
    outcome = search(replaced(make("disk", *flags, "--search.sampler", "random"), epochs=2))
    assert len(outcome.rows) == 4
    kept = {path.parent.name for path in (home / "disk" / "trials").glob("*/best.pt")}
    best = sorted(outcome.rows, key=lambda row: -row.best_map)[:2]
    assert kept == {row.trial_id for row in best}
    assert not list((home / "disk" / "trials").glob("*/last.pt"))


def replaced(config: SearchConfig, epochs: int, retries: int = 2) -> SearchConfig:
    import dataclasses

    schedule = dataclasses.replace(config.schedule, epochs=epochs)
    options = dataclasses.replace(config.search, retries=retries)
    return dataclasses.replace(config, schedule=schedule, search=options)
