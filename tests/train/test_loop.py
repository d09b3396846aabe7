import csv
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from train import checkpoint
from train.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from train.divergence import Diverged
from train.loop import Epoch, fit

ROOT = Path(__file__).resolve().parents[2]


def epochs(config: TrainConfig, count: int, **changes: object) -> TrainConfig:
    return dataclasses.replace(config, schedule=ScheduleConfig(epochs=count), **changes)  # type: ignore[arg-type]


def weights(out: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(out / checkpoint.LAST)
    return {f"{part}.{key}": value for part in ("model", "ema") for key, value in state[part].items()}


def history(out: Path) -> list[dict[str, str]]:
    with (out / checkpoint.HISTORY).open() as stream:
        return list(csv.DictReader(stream))


def test_fit__learns_and_leaves_exactly_its_files(smoke: TrainConfig) -> None:
    seen: list[Epoch] = []
    result = fit(epochs(smoke, 8), seen.append)
    assert smoke.out is not None
    assert {path.name for path in smoke.out.iterdir()} == set(checkpoint.RUN_FILES) - {checkpoint.DIVERGED}
    assert [epoch.epoch for epoch in seen] == list(range(1, 9))
    assert result.best_map == max(epoch.metrics["val/map"] for epoch in seen)
    # Chance is about the share of positives, 0.25 (0.69 was seen).
    assert result.best_map > 0.55
    assert seen[-1].metrics["train/loss"] < seen[0].metrics["train/loss"]
    assert json.loads((smoke.out / checkpoint.RESULT).read_text())["best_epoch"] == result.best_epoch
    assert len(history(smoke.out)) == 8
    best = checkpoint.load(smoke.out / checkpoint.BEST)
    assert best["map"] == result.best_map
    assert best["epoch"] == result.best_epoch


def test_fit__same_seed_same_weights_other_seed_others(smoke: TrainConfig, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(epochs(smoke, 1, out=tmp_path / name, seed=seed))
        runs[name] = weights(tmp_path / name)
    assert all(torch.equal(runs["a"][key], runs["b"][key]) for key in runs["a"])
    assert not all(torch.equal(runs["a"][key], runs["c"][key]) for key in runs["a"])


def test_fit__resumed_after_an_interruption_ends_with_the_same_weights(
    smoke: TrainConfig, tmp_path: Path
) -> None:
    whole, cut = epochs(smoke, 4, out=tmp_path / "whole"), epochs(smoke, 4, out=tmp_path / "cut")
    fit(whole)

    def interrupt(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cut, interrupt)
    result = fit(dataclasses.replace(cut, resume=True))
    assert result.epochs == 4
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[key], second[key]) for key in first)
    skip = {"time/seconds", "time/images_per_second"}
    rows = [
        [{k: v for k, v in row.items() if k not in skip} for row in history(tmp_path / n)]
        for n in ("whole", "cut")
    ]
    assert rows[0] == rows[1]


def test_fit__early_stopping_counts_epochs_without_a_better_map(smoke: TrainConfig) -> None:
    still = dataclasses.replace(
        smoke,
        optimizer=OptimizerConfig(lr=1e-12, backbone_lr=1e-12),
        schedule=ScheduleConfig(epochs=9, patience=2),
        ema=0.0,
    )
    result = fit(still)
    assert result.epochs == result.best_epoch + 2


def test_fit__refuses_a_folder_that_is_in_use(smoke: TrainConfig) -> None:
    assert smoke.out is not None
    with pytest.raises(InputError, match=r"--resume: no last.pt in"):
        fit(dataclasses.replace(smoke, resume=True))
    fit(epochs(smoke, 1))
    with pytest.raises(InputError, match="is not empty; choose another folder, or --resume"):
        fit(smoke)
    with pytest.raises(InputError, match=r"--resume: loss.name was bce in .* but is now asl"):
        fit(epochs(smoke, 1, resume=True, loss=LossConfig(name="asl")))
    (smoke.out / "thesis.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"holds 'thesis.txt', which is not a run's file"):
        fit(dataclasses.replace(smoke, overwrite=True))
    (smoke.out / "thesis.txt").unlink()
    assert fit(epochs(smoke, 1, overwrite=True)).epochs == 1


def test_fit__loss_that_is_not_finite_names_step_and_image(smoke: TrainConfig) -> None:
    wild = dataclasses.replace(smoke, optimizer=OptimizerConfig(lr=1e30, backbone_lr=1e30, clip=0))
    with pytest.raises(
        Diverged, match=r"not finite \(.*\) at step \d+, in the batch of 2012_train\d+, "
    ) as caught:
        fit(wild)
    assert smoke.out is not None
    written = json.loads((smoke.out / checkpoint.DIVERGED).read_text())
    assert len(written["image_ids"]) == len(set(written["image_ids"])) == 32
    assert written["step"] == caught.value.step


def test_fit__exploding_loss_stops_the_run(smoke: TrainConfig) -> None:
    wild = dataclasses.replace(
        smoke,
        optimizer=OptimizerConfig(lr=300.0, backbone_lr=1e-3, clip=0),
        schedule=ScheduleConfig(epochs=20),
    )
    with pytest.raises(Diverged, match=r"the loss diverges: its moving average is .* and it began at"):
        fit(wild)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"backbone": "resnet19"}}, "unknown backbone 'resnet19'; choose one of: .*resnet18"),
        ({"model": {"head": "round"}}, "unknown head 'round'; choose one of: csra, linear"),
        ({"loss": {"name": "hinge"}}, "unknown loss 'hinge'; choose one of: apl, asl, bce"),
    ],
)
def test_fit__unknown_name_is_refused_before_anything_is_written(
    smoke: TrainConfig, change: dict[str, dict[str, str]], message: str
) -> None:
    parts = {key: dataclasses.replace(getattr(smoke, key), **value) for key, value in change.items()}
    with pytest.raises(InputError, match=message):
        fit(dataclasses.replace(smoke, **parts))  # type: ignore[arg-type]
    assert smoke.out is not None
    assert not smoke.out.exists()


def test_main__accelerate_launch_runs_it(devkit: Path, tmp_path: Path) -> None:
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    flags = [
        "--preset",
        "smoke",
        "--data.root",
        devkit,
        "--data.cache",
        devkit / "cache",
        "--out",
        tmp_path / "run",
    ]
    command = [
        accelerate,
        "launch",
        str(ROOT / "train" / "main.py"),
        *map(str, flags),
        "--schedule.epochs",
        "1",
    ]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "best selection mAP" in done.stdout
    assert "mlflow ui" in done.stdout


def test_diverged__survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(Diverged("the loss is not finite", 7, ["a", "b"])))
    assert (str(error), error.step, error.image_ids) == ("the loss is not finite", 7, ("a", "b"))
