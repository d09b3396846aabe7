"""compare.py on runs as the tracker writes them, in SQLite and in folders: what it finds, says and refuses."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data.errors import InputError
from train.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from train.config_files import flatten, to_dict, write_config
from train.selection_scores import (
    SelectionScores,
    best_figures,
    compare_map,
    read_selection_scores,
    write_selection_scores,
)
from train.tracking import PARENT_TAG, MlflowTracker, client, experiment_id
from tune.compared_runs import LETTERS, Run, find_runs
from tune.comparing import compare_runs, comparison_json, print_comparison, verdict
from tune.rows import TABLE, TrialRow, write_table

CLASSES = ("cat", "dog", "rare", "never")
IMAGES = 120
# Name of the run: signal in its logits.
RUNS = {"weak": 1.0, "weak again": 1.05, "strong": 4.0, "other images": 2.0, "no scores": 2.0}
LOSSES = dict(zip(RUNS, ("bce", "asl", "focal", "bce", "bce"), strict=True))


def make_scores(signal: float, seed: int = 0, first: int = 0) -> SelectionScores:
    """Two frequent classes, one of three images, and one of none; the noise is the same for all."""
    rng = np.random.default_rng(seed)
    target = (rng.random((IMAGES, len(CLASSES))) < 0.3).astype(np.uint8)
    target[:, 2:] = 0
    target[:3, 2] = 1
    logit = (signal * target + rng.normal(0, 1, target.shape)).astype(np.float32)
    ids = tuple(f"2012_{first + i:06d}" for i in range(IMAGES))
    return SelectionScores(CLASSES, ids, target, np.ones_like(target), logit)


def write_run(folder: Path, name: str, parent: str) -> str:
    """A run's folder and its MLflow run, as `train.loop` leaves them; its run id."""
    out = folder / "trials" / name.replace(" ", "_")
    out.mkdir(parents=True)
    seed = list(RUNS).index(name)
    config = replace(
        TrainConfig(out=out, seed=seed),
        model=ModelConfig(backbone="tiny_cnn", weights="none"),
        loss=LossConfig(name=LOSSES[name]),
        optimizer=OptimizerConfig(lr=0.001 * (1 + seed)),
    )
    write_config(out / "config.json", config)
    lines = ["epoch,train/loss,val/map,time/seconds,time/images_per_second"]
    lines += ["1,1.0,0.3,10.0,100.0", "2,0.5,0.5,30.0,20.0", "3,0.4,0.4,10.0,100.0"]
    (out / "history.csv").write_text("\n".join(lines) + "\n")
    (out / "environment.json").write_text(json.dumps({"sessions": [{"status": "FINISHED"}]}))
    path = out / "selection.npz"
    if name != "no scores":
        write_selection_scores(path, make_scores(RUNS[name], first=1000 if name == "other images" else 0))
    tags = {PARENT_TAG: parent, "trial_id": name, "trial.state": "completed"}
    dataset = {"name": "squares", "digest": "d", "source": str(folder), "profile": "{}"}
    tracker = MlflowTracker(out, "tailacc", name, flatten(to_dict(config)), dataset, tags)
    for number, line in enumerate(lines[1:], start=1):
        values = dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True))
        tracker.epoch(number, {key: value for key, value in values.items() if key != "epoch"})
    best = {"best/map": 0.5, "best/epoch": 2} | best_figures(path)
    if path.is_file():
        best["best/map"] = read_selection_scores(path).map()
    tracker.finish("FINISHED", best, [path])
    return tracker.run_id


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of a search of five trials, and name -> MLflow run id, the search's own too."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", new_store(folder))
        experiment = experiment_id(client(), "tailacc")
        parent = client().create_run(experiment, run_name="search", tags={"kind": "search"}).info.run_id
        ids = {name: write_run(folder, name, parent) for name in RUNS}
        maps = {name: RUNS[name] / 10 for name in RUNS}
        rows = [
            TrialRow(name.replace(" ", "_"), "completed", {}, 3, value, run_id=ids[name])
            for name, value in maps.items()
        ]
        write_table(folder / TABLE, [*rows, TrialRow("died", "failed")])
        yield folder, ids | {"search": parent}


def printed(names: list[str], width: int = 200, classes: tuple[str, ...] = ()) -> str:
    stream = io.StringIO()
    print_comparison(compare_runs(find_runs(names), classes), Console(file=stream, width=width))
    return stream.getvalue()


def test_find_runs__id_beginning_name_and_folder_are_the_same_run(
    recorded: tuple[Path, dict[str, str]],
) -> None:
    folder, ids = recorded
    by_id, other = find_runs([ids["strong"], "weak"])
    for name in (ids["strong"][:10], "strong"):
        found = find_runs([name, "weak"])[0]
        assert (found.where, found.map, found.parameters) == (by_id.where, by_id.map, by_id.parameters)
    inside = find_runs([str(folder / "trials" / "strong"), "weak"])[0]
    skipped = ("name", "where", "state", "scores", "ap")
    for item in (item for item in Run.__slots__ if item not in skipped):
        assert getattr(inside, item) == getattr(by_id, item), item
    assert (inside.state, by_id.state, other.name) == ("finished", "completed", "weak")
    scores = make_scores(RUNS["strong"])
    assert by_id.map == scores.map()
    assert (by_id.map_low, by_id.map_high) == scores.map_interval()
    assert (by_id.best_epoch, by_id.epochs, by_id.seconds) == (2, 3, 50.0)
    assert by_id.images_per_second == pytest.approx((10 * 100 + 30 * 20 + 10 * 100) / 50)


def test_find_runs__best_trials_of_a_search(recorded: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, ids = recorded
    found = find_runs([], folder)
    assert [run.name for run in found] == ["strong", "other_images", "no_scores", "weak_again", "weak"]
    shutil.copy(folder / TABLE, tmp_path / TABLE)  # a search whose folders lie on other machines
    assert [run.where for run in find_runs([], tmp_path)] == [
        ids[run.name.replace("_", " ")] for run in found
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["weak"], "a comparison takes two runs or more, got 1"),
        (["weak", "stronger"], "there is no run 'stronger': .*the newest runs there: .*no scores"),
        (["weak", "abcdef01"], "there is no run 'abcdef01'"),
        (["weak", "weak"], "is named twice"),
        (["search", "weak"], "'search' is a search; name two of its trials, best first: .*strong"),
        (["trials", "weak"], "trials holds no config.json: it is not a run folder"),
    ],
)
def test_find_runs__refused(recorded: tuple[Path, dict[str, str]], names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_runs(names)


def test_find_runs__two_of_one_name(recorded: tuple[Path, dict[str, str]]) -> None:
    experiment = experiment_id(client(), "twins")
    twins = [client().create_run(experiment, run_name="twin").info.run_id for _ in range(2)]
    with pytest.raises(InputError, match=f"'twin' fits 2 runs; give the id of one: .*{twins[0][:8]}"):
        find_runs(["twin", "weak"])
    never = find_runs([twins[0], "weak"])[0]
    assert (never.epochs, never.state) == (0, "running")
    assert "note: B has no selection.npz" in printed(["weak", twins[0]])


def test_find_runs__no_store_and_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no MLflow store to ask: no mlflow\.db in"):
        find_runs(["a", "b"])
    with pytest.raises(InputError, match=r"holds no trials\.csv"):
        find_runs([], tmp_path)
    write_table(tmp_path / TABLE, [TrialRow("t", "completed", {}, 1, 0.5), TrialRow("u", "failed")])
    with pytest.raises(InputError, match=r"1 trials of .* finished an epoch"):
        find_runs([], tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / TABLE]  # to ask creates no store


def test_compare_runs__intervals_are_those_of_the_race(recorded: tuple[Path, dict[str, str]]) -> None:
    compared = compare_runs(find_runs(["weak", "strong", "weak again"]))
    assert set(compared.parameters) == {"loss.name", "optimizer.lr", "seed"}  # `out` says nothing
    assert compared.parameters["loss.name"] == ("bce", "focal", "asl")
    for place, name in ((1, "strong"), (2, "weak again")):
        found = compared.differences[place]
        assert found is not None
        assert found.map == compare_map([make_scores(RUNS[name])], [make_scores(RUNS["weak"])])
    strong, same = compared.differences[1:]
    assert strong is not None
    assert same is not None
    assert (strong.apart("cat"), strong.apart("dog")) == (1, 1)
    assert strong.positives == {"cat": int(make_scores(1).target[:, 0].sum())} | {
        "dog": int(make_scores(1).target[:, 1].sum()),
        "rare": 3,
        "never": 0,
    }
    assert (strong.ap["rare"].verdict, strong.apart("rare")) == (1, 0)  # three images prove nothing
    assert math.isnan(strong.ap["never"].low)
    assert verdict(compared, 1) == "B is better than A outside the noise."
    assert verdict(compare_runs(find_runs(["strong", "weak"])), 1) == "B is worse than A outside the noise."
    alike = Run("a", "a", "", scores=make_scores(1, seed=0)), Run("b", "b", "", scores=make_scores(1, seed=0))
    assert verdict(compare_runs(alike), 1) == "B and A cannot be told apart on these 120 images."


def test_compare_runs__other_images_have_no_interval_and_it_is_said(
    recorded: tuple[Path, dict[str, str]],
) -> None:
    compared = compare_runs(find_runs(["weak", "other images", "no scores", "strong"]))
    assert [found is None for found in compared.differences] == [True, True, True, False]
    assert len(compared.notes) == 2
    assert "B and A were not selected on the same images" in compared.notes[0]
    assert "C has no selection.npz" in compared.notes[1]
    assert verdict(compared, 1) == "B and A: what their difference is worth is not known."
    backwards = compare_runs(find_runs(["no scores", "weak"]))
    assert backwards.notes == ("A has no selection.npz: no difference has an interval",)


@pytest.mark.parametrize("width", [80, 120])
def test_print__fits_the_terminal(recorded: tuple[Path, dict[str, str]], width: int) -> None:
    text = printed(list(RUNS), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for letter in LETTERS[: len(RUNS)]:
        assert f"{letter}  " in text


def test_print__marks_classes_outside_the_noise(recorded: tuple[Path, dict[str, str]]) -> None:
    text = printed(["weak", "strong"], classes=("cat", "rare"))
    (cat,) = [line for line in text.splitlines() if line.lstrip().startswith("cat")]
    (rare,) = [line for line in text.splitlines() if line.lstrip().startswith("rare")]
    assert re.search(r"\d\* \[\+\.\d{3},\+\.\d{3}\]", cat)
    assert "*" not in rare
    assert "dog" not in text
    with pytest.raises(InputError, match="unknown class 'bird'; choose one of: cat, dog, never, rare"):
        printed(["weak", "strong"], classes=("bird",))


def test_json__every_figure_and_no_nan(recorded: tuple[Path, dict[str, str]]) -> None:
    content = comparison_json(compare_runs(find_runs(["weak", "strong", "other images"])))
    text = json.dumps(content, allow_nan=False)
    first, second, third = json.loads(text)["runs"]
    assert first["letter"] == "A"
    assert "minus_a" not in first
    assert second["minus_a"]["ap"]["cat"]["apart"] == 1
    assert second["minus_a"]["ap"]["never"]["low"] is None
    assert second["minus_a"]["map"]["low"] > 0
    assert second["images"] == IMAGES
    assert "minus_a" not in third
    assert content["parameters"]["loss.name"] == ["bce", "focal", "bce"]


def test_main__without_torch(recorded: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    script = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "ray", "optuna"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
from tune.compare import cli
cli()
"""
    folder, ids = recorded
    arguments = [ids["weak"][:8], "strong", "--json", str(tmp_path / "out" / "c.json")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "B is better than A outside the noise." in done.stdout
    assert len(json.loads((tmp_path / "out" / "c.json").read_text())["runs"]) == 2
