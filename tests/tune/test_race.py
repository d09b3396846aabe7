"""The race: who wins, who ties, and that a tie goes to the cheaper model."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.selection_scores import SelectionScores, write_selection_scores
from tune.race import Runner, describe_race, finalists, judge, race_points, write_race
from tune.rows import TrialRow


def run(folder: Path, skill: float, seed: int) -> Path:
    """A run folder whose model has that skill, on images that are the same for all."""
    truth = np.random.default_rng(0)
    target = (truth.random((300, 3)) < 0.3).astype(np.uint8)
    logit = skill * target + np.random.default_rng(seed).normal(size=target.shape)
    ids = tuple(f"i{n:03d}" for n in range(300))
    folder.mkdir(parents=True)
    scores = SelectionScores(("a", "b", "c"), ids, target, np.ones_like(target), logit.astype(np.float32))
    write_selection_scores(folder / "selection.npz", scores)
    return folder


def runner(tmp_path: Path, name: str, backbone: str, skill: float) -> Runner:
    folders = tuple(run(tmp_path / f"{name}{seed}", skill, hash_of(name) + seed) for seed in range(2))
    return Runner(name, {"backbone": f"{backbone}=/w.pth", "loss": "bce"}, folders)


def hash_of(name: str) -> int:
    return sum(map(ord, name)) * 10


def price(point: Mapping[str, Any]) -> float:
    return {"small": 1.0, "large": 5.0}[point["backbone"].partition("=")[0]]


def never(point: Mapping[str, Any]) -> float:
    raise AssertionError("nobody should measure")


def test_judge__the_better_one_wins_whatever_it_costs(tmp_path: Path) -> None:
    found = judge([runner(tmp_path, "a", "small", 0.3), runner(tmp_path, "b", "large", 3.0)], never)
    assert [(s.trial_id, s.verdict) for s in found] == [("b", "wins"), ("a", "worse")]
    assert found[1].low > 0
    assert math.isnan(found[0].cost)
    assert found[0].point["backbone"] == "large"  # without the path of its weights


def test_judge__a_tie_goes_to_the_cheaper_model(tmp_path: Path) -> None:
    runners = [runner(tmp_path, "a", "small", 1.48), runner(tmp_path, "b", "large", 1.5)]
    found = judge(runners, price)
    assert {s.verdict for s in found} == {"wins", "tied"}
    assert found[0].trial_id == "a"
    assert [s.cost for s in found] == [1.0, 5.0]
    text = "\n".join(describe_race(found, 300))
    assert "race       wins" in text
    assert "1.00 ms of a core an image" in text


def test_judge__a_tie_of_the_same_architecture_needs_no_measurement(tmp_path: Path) -> None:
    found = judge([runner(tmp_path, "a", "small", 1.5), runner(tmp_path, "b", "small", 1.5)], never)
    assert found[0].map == max(s.map for s in found)
    assert found[0].verdict == "wins"
    assert found[1].verdict == "tied"


def test_judge__exports_the_best_of_the_fresh_runs(tmp_path: Path) -> None:
    one = runner(tmp_path, "a", "small", 1.0)
    from train.selection_scores import read_selection_scores

    best = max(one.folders, key=lambda f: read_selection_scores(f / "selection.npz").map())
    assert judge([one], never)[0].folder == str(best)


def test_write_race__is_json_without_nan(tmp_path: Path) -> None:
    write_race(tmp_path / "race.json", judge([runner(tmp_path, "a", "small", 1.0)], never))
    (row,) = json.loads((tmp_path / "race.json").read_text())
    assert (row["trial_id"], row["verdict"], row["cost"]) == ("a", "wins", None)


def test_finalists__are_the_best_that_did_not_fail() -> None:
    rows = [
        TrialRow("a", "completed", best_map=0.5),
        TrialRow("b", "failed", best_map=0.9),
        TrialRow("c", "pruned", best_map=0.7),
        TrialRow("d", "completed"),
    ]
    assert [row.trial_id for row in finalists(rows, 3)] == ["c", "a"]


def test_race_points__have_seeds_that_chose_nothing() -> None:
    points = race_points([TrialRow("a", "completed")], {"a": {"backbone": "x=/w", "lr": 1.0}}, 5, 2)
    assert points == [
        {"backbone": "x=/w", "lr": 1.0, "seed": 6, "finalist": "a"},
        {"backbone": "x=/w", "lr": 1.0, "seed": 7, "finalist": "a"},
    ]
    assert race_points([TrialRow("a", "completed")], {"a": {}}, 2**31 - 1, 1)[0]["seed"] == 0


@pytest.mark.parametrize("count", [1, 3])
def test_judge__one_run_each_is_enough(count: int, tmp_path: Path) -> None:
    runners = [
        Runner(str(n), {"backbone": "small", "loss": "bce"}, (run(tmp_path / str(n), 1.0, n),))
        for n in range(count)
    ]
    assert len(judge(runners, never)) == count
