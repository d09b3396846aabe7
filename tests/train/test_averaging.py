import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from train import checkpoint
from train.averaging import cook
from train.config import ModelConfig, ScheduleConfig, TrainConfig
from train.loop import fit
from train.publish import export_run, load_best

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(smoke: TrainConfig, tmp_path: Path) -> list[Path]:
    """A start, and two runs that go on from it with other seeds: only then lie their weights in one basin."""
    folders = []
    for seed in (0, 1):
        config = dataclasses.replace(
            smoke, out=tmp_path / str(seed), seed=seed, schedule=ScheduleConfig(epochs=2)
        )
        fit(config)
        folders.append(tmp_path / str(seed))
    return folders


def test_cook__is_the_mean_of_the_weights_and_can_be_exported(runs: list[Path], tmp_path: Path) -> None:
    soup = cook(runs, tmp_path / "soup")
    assert soup.taken == tuple(runs)
    (one, about, _), (two, _, _), (mean, said, _) = (
        load_best(folder) for folder in (*runs, tmp_path / "soup")
    )
    for key, value in mean.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, (one.state_dict()[key] + two.state_dict()[key]) / 2, atol=1e-7)
    assert said["map"] == soup.map
    assert dict(soup.members)[runs[0]] == pytest.approx(about["map"], abs=1e-6)
    assert export_run(tmp_path / "soup", tmp_path / "soup.onnx").parity.difference <= 1e-4


def test_cook__greedy_is_never_below_the_best_member(runs: list[Path], tmp_path: Path) -> None:
    soup = cook(runs, tmp_path / "soup", greedy=True)
    best_folder, best = max(soup.members, key=lambda member: member[1])
    assert soup.map >= best
    assert soup.taken[0] == best_folder


def test_cook__refuses_what_cannot_be_averaged(smoke: TrainConfig, runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two different runs, got 1"):
        cook([runs[0], runs[0]], tmp_path / "soup")
    other = dataclasses.replace(
        smoke,
        out=tmp_path / "other",
        model=ModelConfig(backbone="tiny_resnet", weights="none"),
        schedule=ScheduleConfig(epochs=1),
    )
    fit(other)
    with pytest.raises(InputError, match=r"model.backbone is tiny_cnn in .* but tiny_resnet in"):
        cook([runs[0], tmp_path / "other"], tmp_path / "soup")
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        cook(runs, runs[0])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / checkpoint.CONFIG).write_bytes((runs[0] / checkpoint.CONFIG).read_bytes())
    with pytest.raises(InputError, match=r"holds no best\.pt"):
        cook([runs[0], tmp_path / "none"], tmp_path / "soup")


def test_main__says_each_member_and_the_average(runs: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train" / "soup.py"), "--runs", *map(str, runs)]
    done = subprocess.run([*command, "--out", str(tmp_path / "soup")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"the average of 2, in {tmp_path / 'soup'}" in done.stdout
