import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from train.config import ScheduleConfig, TrackingConfig, TrainConfig
from train.loop import Epoch, fit
from train.tracking import PARENT_TAG, client


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]) -> Path:
    """A real MLflow store of SQLite in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    return tmp_path


def tracked(config: TrainConfig, **changes: object) -> TrainConfig:
    tracking = TrackingConfig(experiment="squares")
    return dataclasses.replace(config, tracking=tracking, schedule=ScheduleConfig(epochs=2), **changes)  # type: ignore[arg-type]


def test_fit__records_parameters_curves_data_and_files(smoke: TrainConfig, store: Path) -> None:
    result = fit(tracked(smoke), tags={PARENT_TAG: "abc"})
    run = client().get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny_cnn bce lr 0.001"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["data.size"] == "32"
    assert run.data.tags[PARENT_TAG] == "abc"
    assert "source_revision" in run.data.tags
    assert run.data.metrics["best/map"] == pytest.approx(result.best_map)
    steps = client().get_metric_history(result.run_id, "val/map")
    assert [metric.step for metric in steps] == [1, 2]
    assert max(metric.value for metric in steps) == pytest.approx(result.best_map)
    for name in ("train/loss", "lr", "time/seconds", "time/images_per_second", "val/ap/aeroplane"):
        assert name in run.data.metrics
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "VOC2012 train"
    assert '"train": 192' in dataset.dataset.profile
    assert smoke.out is not None
    assert json.loads((smoke.out / "environment.json").read_text())["run_id"] == result.run_id
    names = {item.path for item in client().list_artifacts(result.run_id)}
    assert names == {
        "config.json",
        "history.csv",
        "selection.csv",
        "selection.npz",
        "environment.json",
        "curves.png",
    }


def test_fit__resumed_run_goes_on_in_the_same_mlflow_run(smoke: TrainConfig, store: Path) -> None:
    config = tracked(smoke)
    stopped: list[str] = []

    def interrupt(epoch: Epoch) -> None:
        stopped.append("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, interrupt)
    (run,) = client().search_runs([client().get_experiment_by_name("squares").experiment_id])
    assert run.info.status == "KILLED"
    result = fit(dataclasses.replace(config, resume=True))
    assert result.run_id == run.info.run_id
    assert client().get_run(run.info.run_id).info.status == "FINISHED"
    assert [metric.step for metric in client().get_metric_history(result.run_id, "train/loss")] == [1, 2]
