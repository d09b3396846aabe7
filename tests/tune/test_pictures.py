"""The pictures of a search, and the mathematics behind them, on tables with everything that a search can leave."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tune.pictures import LEAST_TRIALS, draw_pictures, importances, pareto_front
from tune.rows import TrialRow

BACKBONES = {"mobilenet_v3_large": (0.80, 8.0), "resnet50": (0.84, 36.0), "efficientnet_v2_s": (0.87, 60.0)}


def make_rows(count: int, seed: int = 0) -> list[TrialRow]:
    """Trials in which the backbone decides, then the loss; the rates do nothing, and the epochs are the same."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        backbone = str(rng.choice(list(BACKBONES)))
        loss = str(rng.choice(["bce", "pos_weighted", "focal", "asl"]))
        point: dict[str, Any] = {"backbone": backbone, "loss": loss, "epochs": 12}
        point |= {
            "lr": float(10 ** rng.uniform(-3.5, -2.5)),
            "weight_decay": float(10 ** rng.uniform(-3, -1)),
        }
        if loss == "asl":
            point["loss.gamma_neg"] = float(rng.uniform(1, 6))
        value = BACKBONES[backbone][0] + (0.01 if loss == "asl" else 0) + float(rng.normal(0, 0.003))
        row = TrialRow(f"t_{number:05d}", "completed", point, 12, value, value - 0.02, value + 0.02)
        row = replace(row, cost=BACKBONES[backbone][1])
        if number % 8 == 5:
            row = TrialRow(row.trial_id, "failed", point, reason="the loss is not finite")
        elif value < 0.85 and number % 3 == 1:
            row = replace(
                row, state="pruned", epoch=2, best_map=value - 0.2, map_low=math.nan, map_high=math.nan
            )
        rows.append(row)
    return rows


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.convert("L").getextrema()[0] < 100  # something is drawn
        return image.size


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_importances__name_what_decides(seed: int) -> None:
    found = importances(make_rows(24, seed))
    assert set(found) == {"backbone", "loss", "lr", "weight_decay"}  # neither the constant nor one loss's own
    assert next(iter(found)) == "backbone"
    assert found["backbone"] > 0.5
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == pytest.approx(1)
    assert importances(make_rows(24, seed)) == found


def test_importances__a_pruned_trial_counts_by_its_rank() -> None:
    rows = make_rows(24)
    worst = min((row for row in rows if row.state == "pruned"), key=lambda row: row.best_map)
    lower = [replace(row, best_map=0.01) if row is worst else row for row in rows]
    assert importances(lower) == importances(rows)


def test_importances__too_little_to_say() -> None:
    rows = [row for row in make_rows(24) if row.state == "completed"]
    assert importances(rows[: LEAST_TRIALS - 1]) == {}
    assert importances(rows[:LEAST_TRIALS]) != {}
    assert importances([replace(row, point={"lr": 1.0}) for row in rows]) == {}
    assert importances([replace(row, best_map=0.5) for row in rows]) == {}
    assert importances([replace(row, best_map=math.nan) for row in rows]) == {}
    assert importances([]) == {}


def test_pareto_front__by_hand() -> None:
    def row(name: str, cost: float, value: float, state: str = "completed") -> TrialRow:
        return TrialRow(name, state, {}, 1, value, cost=cost)

    rows = [
        row("dear", 50, 0.9),
        row("beaten", 20, 0.7),
        row("middle", 20, 0.8),
        row("as good but dearer", 30, 0.8),
        row("cheap", 5, 0.6),
        row("the same", 5, 0.6),
        row("failed", 1, 0.99, "failed"),
        row("no cost", math.nan, 0.95),
        row("no epoch", 2, math.nan),
    ]
    assert [r.trial_id for r in pareto_front(rows)] == ["cheap", "middle", "dear"]
    assert pareto_front([]) == []


def test_draw_pictures__a_search_with_all_kinds_of_trials(tmp_path: Path) -> None:
    paths = draw_pictures(make_rows(24), tmp_path)
    assert [path.name for path in paths] == ["importance.png", "parallel.png", "progress.png", "pareto.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        width, height = size(path)
        assert 950 < width < 1300
        assert 200 < height < 800


@pytest.mark.parametrize("count", [0, 1, 2])
def test_draw_pictures__few_trials_and_no_cost(count: int, tmp_path: Path) -> None:
    rows = [replace(row, cost=math.nan) for row in make_rows(count)]
    names = [path.name for path in draw_pictures(rows, tmp_path)]
    assert names == (["importance.png", "parallel.png", "progress.png"] if count else ["importance.png"])
    assert size(tmp_path / "importance.png")[1] < 200  # a note


def test_draw_pictures__all_alike(tmp_path: Path) -> None:
    row = TrialRow("t", "completed", {"loss": "bce", "lr": 1e-3}, 1, 0.5, cost=3.0)
    rows = [replace(row, trial_id=f"t{i}") for i in range(8)] + [TrialRow("f", "failed", {"loss": "bce"})]
    assert len(draw_pictures(rows, tmp_path)) == 4
