"""One, two and four gloo processes train the same model from the same global batches."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train import checkpoint
from train.config import AugmentConfig, LossConfig, ScheduleConfig, TrainConfig
from train.config_files import write_config

ROOT = Path(__file__).resolve().parents[2]

# Forks the processes of each world from one that has imported everything but started no thread.
_WORLDS = """
import dataclasses, sys
from pathlib import Path
from accelerate import debug_launcher
from train.config import TrainConfig
from train.config_files import read_config
from train.loop import fit

def work(world):
    for file in sys.argv[1:]:
        config = read_config(Path(file), TrainConfig())
        fit(dataclasses.replace(config, out=config.out / str(world)))

if __name__ == "__main__":
    for world in (1, 2, 4):
        debug_launcher(work, args=(world,), num_processes=world)
"""


def history(out: Path) -> list[dict[str, float]]:
    with (out / checkpoint.HISTORY).open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def test_fit__one_two_and_four_processes_agree(smoke: TrainConfig, tmp_path: Path) -> None:
    """Odd sizes on purpose: 185 images to train on, 45 to select on, batches of 32.

    A loss over pairs and one over the batch with a memory; dropout, mixing and batch-norm in all.
    """
    files = []
    for name in ("bce", "smooth_ap"):
        config = dataclasses.replace(
            smoke,
            data=dataclasses.replace(smoke.data, selection=0.16),
            loss=LossConfig(name=name),
            augment=AugmentConfig(flip=0.0, min_area=0.85, cutmix=1.0, mix_probability=0.5),
            schedule=ScheduleConfig(epochs=1),
            out=tmp_path / name,
        )
        files.append(tmp_path / f"{name}.json")
        write_config(files[-1], config)
    script = tmp_path / "worlds.py"
    script.write_text(_WORLDS)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, files)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for world in (1, 2, 4):
        assert f"{world} process(es)" in done.stderr
    for name in ("bce", "smooth_ap"):
        one = history(tmp_path / name / "1")
        selection = (tmp_path / name / "1" / checkpoint.SELECTION).read_text()
        assert len(selection.splitlines()) - 1 == 45
        for world in (2, 4):
            other = history(tmp_path / name / str(world))
            assert (tmp_path / name / str(world) / checkpoint.SELECTION).read_text() == selection
            for a, b in zip(one, other, strict=True):
                assert b["lr"] == a["lr"]
                assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-4)
                # Two images of the 45 that change places in one class change its AP; 2.5e-3 was seen.
                assert b["val/map"] == pytest.approx(a["val/map"], abs=1e-2)


def test_main__accelerate_launch_starts_two_processes(smoke: TrainConfig, tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` would run one; this form really starts two gloo processes."""
    config = dataclasses.replace(smoke, schedule=ScheduleConfig(epochs=1), out=tmp_path / "run")
    write_config(tmp_path / "config.json", config)
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(ROOT / "train" / "main.py"), "--config", str(tmp_path / "config.json")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es), 32 images a step over all of them: 16 each" in done.stderr
    sessions = json.loads((tmp_path / "run" / checkpoint.ENVIRONMENT).read_text())["sessions"]
    assert sessions[0]["processes"] == 2
