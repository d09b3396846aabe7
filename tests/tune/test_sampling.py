"""The points that are tried: reproducible, complete for a grid, and learnt from for TPE."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna

from tune.presets import quick
from tune.sampling import Points, number_of_trials
from tune.space import SearchConfig, SearchOptions, Space


def config(**options: Any) -> SearchConfig:
    space = Space(backbone=("tiny_cnn", "tiny_resnet"), loss=("bce", "asl", "focal"), loss_settings=True)
    return dataclasses.replace(quick(), space=space, search=SearchOptions(**options), seed=3)


def drawn(points: Points, count: int) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        suggestion = points.suggest(f"t{number}")
        assert suggestion is not None
        found.append(suggestion["point"])
    return found


def test_grid__tries_every_cell_once_a_round() -> None:
    wanted = config(sampler="grid", trials=7)
    assert number_of_trials(wanted) == 12
    found = drawn(Points(wanted, {}), 12)
    cells = [(point["backbone"], point["loss"]) for point in found]
    assert sorted(cells) == sorted([(b, x) for b in wanted.space.backbone for x in wanted.space.loss] * 2)
    assert len({point["lr"] for point in found}) == 12  # the rates are drawn anew


def test_random__is_the_same_for_a_seed_and_stays_within_the_space() -> None:
    first = drawn(Points(config(sampler="random", trials=20), {}), 20)
    assert first == drawn(Points(config(sampler="random", trials=20), {}), 20)
    other = dataclasses.replace(config(sampler="random", trials=20), seed=4)
    assert first != drawn(Points(other, {}), 20)
    for point in first:
        settings = {key for key in point if key.startswith("loss.")}
        branch = {"bce": set(), "asl": {"loss.gamma_neg", "loss.margin"}, "focal": {"loss.gamma"}}
        assert settings == branch[point["loss"]]
        assert 4e-3 <= point["lr"] <= 1.2e-2


def test_tpe__its_random_points_take_every_choice_in_turn() -> None:
    for trials in (3, 24):
        found = drawn(Points(config(sampler="tpe", trials=trials), {}), max(3, trials // 4))
        losses = [point["loss"] for point in found]
        assert sorted(losses) == sorted(["bce", "asl", "focal"] * (len(found) // 3))
        backbones = [point["backbone"] for point in found]
        assert abs(backbones.count("tiny_cnn") - backbones.count("tiny_resnet")) <= 1


def test_tpe__learns_where_the_good_points_are() -> None:
    points = Points(config(sampler="tpe", trials=60), {})
    late = []
    for number in range(60):
        point = drawn_one(points, number)
        value = 0.8 if (point["backbone"], point["loss"]) == ("tiny_resnet", "asl") else 0.2
        points.on_trial_complete(f"t{number}", {"best_map": value + point["lr"]})
        late += [point] if number >= 40 else []
    good = sum((p["backbone"], p["loss"]) == ("tiny_resnet", "asl") for p in late)
    assert good > 10  # 20 * 1/6 by chance


def drawn_one(points: Points, number: int) -> dict[str, Any]:
    suggestion = points.suggest(f"t{number}")
    assert suggestion is not None
    return dict(suggestion["point"])


def test_points__a_failed_trial_teaches_nothing() -> None:
    points = Points(config(sampler="tpe", trials=4), {})
    drawn(points, 3)
    points.on_trial_complete("t0", {"best_map": 0.5})
    points.on_trial_complete("t1", None, error=True)
    points.on_trial_complete("t2", {"best_map": float("nan")})
    points.on_trial_complete("stranger", {"best_map": 0.9})
    states = [trial.state.name for trial in points._study.trials]
    assert states == ["COMPLETE", "FAIL", "FAIL"]


def test_points__warm_start_takes_what_lies_in_the_space() -> None:
    inside = {"backbone": "tiny_cnn", "loss": "bce", "lr": 5e-3, "backbone_lr_ratio": 1.0}
    earlier = [
        (inside, 0.6),
        (inside | {"lr": 1.0}, 0.7),  # outside a range
        (inside | {"backbone": "resnet50"}, 0.8),  # not a choice
        (inside | {"loss": "asl"}, 0.9),  # lacks that loss's settings
        (inside, float("nan")),
    ]
    points = Points(config(sampler="tpe", trials=4), {}, earlier)
    assert points.taken == 1
    assert [trial.values for trial in points._study.trials] == [[0.6]]


def test_points__two_objectives_take_the_cost_of_the_architecture() -> None:
    costs = {"tiny_cnn": 0.3, "tiny_resnet": 0.7}
    points = Points(config(sampler="tpe", trials=6, objective="map-and-cost"), costs)
    for number in range(6):
        point = drawn_one(points, number)
        points.on_trial_complete(f"t{number}", {"best_map": 0.5})
        assert points._study.trials[number].values == [0.5, costs[point["backbone"]]]
    assert points._study.directions == [
        optuna.study.StudyDirection.MAXIMIZE,
        optuna.study.StudyDirection.MINIMIZE,
    ]


def test_points__go_on_where_they_were_saved(tmp_path: Path) -> None:
    wanted = config(sampler="random", trials=10)
    whole = drawn(Points(wanted, {}), 10)
    first = Points(wanted, {})
    assert drawn(first, 4) == whole[:4]
    first.save(str(tmp_path / "state"))
    second = Points(wanted, {})
    second.restore(str(tmp_path / "state"))
    assert [drawn_one(second, number) for number in range(4, 10)] == whole[4:]
    second.on_trial_complete("t0", {"best_map": 0.5})  # asked before the interruption
    assert second._study.trials[0].state.name == "COMPLETE"
