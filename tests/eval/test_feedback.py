from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.cli import run
from data.model_file import Gate
from data.scores import read_scores, write_scores
from eval.build import write_report
from eval.feedback import find_run
from eval.options import ReportConfig
from eval.report import main
from train.tracking import CHEAPER_HASH_TAGS, HASH_TAG, client, open_store

Served = Callable[[Path], tuple[Path, str]]


def test_write_report__the_figures_go_back_to_the_run(
    devkit: Path, score_csv: Path, tmp_path: Path, served_run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, run_id = served_run(score_csv)
    config = ReportConfig(scores=scores, data=devkit, out=tmp_path / "out", replicates=10)
    judgement = write_report(config)
    found = client().get_run(run_id).data
    assert found.metrics["served/map"] == pytest.approx(judgement.overall.map["voc2010"])
    assert found.metrics["served/map_low"] < found.metrics["served/map_high"]
    assert found.metrics["served/ap/bicycle"] == pytest.approx(judgement.ap["voc2010"][1])
    assert found.metrics["served/ece"] == pytest.approx(judgement.overall.ece)
    assert found.metrics["served/tailacc_area"] == pytest.approx(judgement.overall.tail_area)
    assert "served/ap/cow" not in found.metrics  # no positive, no AP
    assert found.tags["served.labels"].startswith("VOC2012 val ")
    assert found.tags["served.images"] == "12 of 12"
    files = {item.path for item in client().list_artifacts(run_id, "served")}
    assert files >= {"served/metrics.json", "served/report.html"}
    assert f"in the MLflow run {run_id}" in capsys.readouterr().out


def test_write_report__a_cheaper_models_figures_stand_beside_the_first_ones(
    devkit: Path, score_csv: Path, tmp_path: Path, served_run: Served
) -> None:
    path, run_id = served_run(score_csv)
    client().set_tag(run_id, CHEAPER_HASH_TAGS["int8"], "cd" * 32)
    gate = Gate("int8", "ab" * 32, 9, 0.8, 0.8, 0, 0.0, 0.0, 0.003, 1, 2, 4, 1, 3, 0)
    metadata = {"model_name": "toy int8", "model_hash": "cd" * 32, "gate": gate.to_json()}
    write_scores(path, replace(read_scores(path), metadata=metadata))
    assert find_run(client(), metadata) == (run_id, "")
    write_report(ReportConfig(scores=path, data=devkit, out=tmp_path / "out", replicates=5, explorer=False))
    found = client().get_run(run_id).data
    assert "served_int8/map" in found.metrics
    assert not any(name.startswith("served/") for name in found.metrics)
    assert found.tags["served_int8.images"] == "12 of 12"


def test_main__no_feedback_tells_nobody(
    devkit: Path, score_csv: Path, tmp_path: Path, served_run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, run_id = served_run(score_csv)
    options = [
        "--scores",
        scores,
        "--data",
        devkit,
        "--out",
        tmp_path / "o",
        "--replicates",
        5,
        "--no-feedback",
    ]
    assert run(main, [str(option) for option in options]) == 0
    assert "MLflow" not in capsys.readouterr().out
    assert not client().get_run(run_id).data.metrics


def test_find_run__registered_version_hash_and_reasons(score_csv: Path, served_run: Served) -> None:
    _, run_id = served_run(score_csv)
    store = client()
    store.create_registered_model("toy")
    version = store.create_model_version("toy", "unused", run_id).version
    known = {"model_name": "toy", "model_version": str(version), "model_hash": "cd" * 32}
    assert find_run(store, known) == (run_id, "")
    # A version of the same number in this store that is another file is not the model.
    store.set_model_version_tag("toy", version, HASH_TAG, "ef" * 32)
    assert find_run(store, known) == ("", "no MLflow run here exported the model cdcdcdcdcdcd")
    assert find_run(store, {"model_version": "file", "model_hash": "ab" * 32}) == (run_id, "")
    assert "does not tell" in find_run(store, known | {"model_version": "7"})[1]
    assert find_run(store, {"model_name": "scores.csv"}) == ("", "the score file names no model")
    assert "names no model" in find_run(store, known | {"model_hash": "' or 1=1"})[1]
    assert "no MLflow store here" in find_run(None, known)[1]


def test_write_report__a_missing_store_is_a_note(
    devkit: Path,
    score_csv: Path,
    tmp_path: Path,
    served_run: Served,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, _ = served_run(score_csv)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_store() is None
    options = ["--scores", scores, "--data", devkit, "--out", "o", "--replicates", 5]
    assert run(main, [str(option) for option in options]) == 0
    assert "MLflow: not told: there is no MLflow store here" in capsys.readouterr().out
    assert {path.name for path in Path().iterdir()} == {"o"}  # none was created
