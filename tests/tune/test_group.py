"""A trial of two workers: a real Ray Train group under Ray Tune."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune.run import search
from tune.space import SearchConfig


@pytest.mark.timeout(500)
def test_group__two_workers_train_one_trial(
    local_ray: Any, make: Callable[..., SearchConfig], home: Path
) -> None:
    flags = ["--search.trials", "1", "--space.backbone", "tiny_cnn", "--space.loss", "bce"]
    flags += ["--search.workers", "2", "--schedule.epochs", "3", "--search.retries", "0"]
    outcome = search(make("group", *flags))
    (row,) = outcome.rows
    assert (row.state, row.epoch, row.restarts) == ("completed", 3, 0)
    assert row.map_low < row.best_map < row.map_high
    folder = home / "group" / "trials" / row.trial_id
    (session,) = json.loads((folder / "environment.json").read_text())["sessions"]
    assert session["processes"] == 2
    assert outcome.winner == folder
