"""A cheaper model beside the float32 one: what the report's files say of both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.cli import run
from data.csv_labels import read_label_csv
from data.model_file import Gate
from data.scores import Scores, read_scores, write_scores
from data.voc import read_voc
from eval.metrics import average_precision, mean_average_precision
from eval.report import main

GATE = Gate(
    "int8", "ab" * 32, 254, 0.8123, 0.8102, 9, 0.9, 0.9004, 0.003, 30.4, 101.2, 44_700_000, 11_300_000, 28, 2
)


@pytest.fixture
def both(score_csv: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The score files of a cheaper model and of the float32 model that it was made from."""
    scores = read_scores(score_csv)
    noise = np.random.default_rng(2).normal(0, 0.3, scores.logit.shape).astype(np.float32)
    cheap = {"model_name": "net int8", "model_hash": "cd" * 32, "gate": GATE.to_json()}
    whole = {"model_name": "net", "model_hash": GATE.float32_hash, "gate": ""}
    write_scores(tmp_path / "int8.parquet", replace(scores, logit=scores.logit + noise, metadata=cheap))
    write_scores(tmp_path / "float32.parquet", replace(scores, metadata=whole))
    return tmp_path / "int8.parquet", tmp_path / "float32.parquet"


@pytest.fixture
def labels(devkit: Path, tmp_path: Path) -> Path:
    """The devkit's labels without its photographs, which would cost seconds to draw."""
    found = read_voc(devkit, "val")
    rows = [",".join(["image", *found.classes])]
    for image_id, target, mask in zip(found.image_ids, found.target, found.mask, strict=True):
        rows.append(",".join([image_id, *(str(y) if m else "" for y, m in zip(target, mask, strict=True))]))
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "labels.csv"


def report(*options: object) -> int:
    return run(main, ["--replicates", "20", "--no-feedback", "--no-explorer", *map(str, options)])


def means(path: Path, labels_csv: Path) -> float:
    scores, labels = read_scores(path), read_label_csv(labels_csv)
    return mean_average_precision(
        average_precision(scores.logit, labels.target, labels.mask, labels.image_ids)
    )[0]


def test_report__the_gate_of_a_cheaper_model_is_in_page_json_pdf_and_terminal(
    both: tuple[Path, Path], labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert report("--scores", both[0], "--labels", labels, "--out", out, "--pdf") == 0
    page, content = (out / "report.html").read_text(), json.loads((out / "metrics.json").read_text())
    assert content["gate"] == {**json.loads(GATE.to_json()), "fall": pytest.approx(0.0021)}
    assert "also" not in content
    assert "gate" not in content["score_file"]
    assert "Both models: int8 beside float32" in page
    cells = (
        "81.02</td><td>81.23</td><td>-0.21 (at least -0.30)",
        "90.04</td><td>90.00</td><td>+0.04 (at least -0.30)",
        "101</td><td>30</td><td>3.33 times",
        "11.3</td><td>44.7",
    )
    for row in cells:
        assert f"<td>{row}" in page
    assert "<th>layers in float32</th><td>2</td><td>28</td>" in page
    assert "both: images/s, at the export: int8 101, float32 30, 3.33 times" in capsys.readouterr().out


def test_report__also_compares_both_on_the_judged_images(
    both: tuple[Path, Path], labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert report("--scores", both[0], "--also", both[1], "--labels", labels, "--out", out) == 0
    content, page = json.loads((out / "metrics.json").read_text()), (out / "report.html").read_text()
    a, b = (means(path, labels) for path in both)
    assert (content["also"]["a"], content["also"]["b"]) == ("int8", "float32")
    found = content["also"]["map"]["voc2010"]
    assert (found["a"], found["b"]) == (pytest.approx(a), pytest.approx(b))
    assert content["map"]["voc2010"] == found["a"]
    assert f"<th>mAP (voc2010), judged images</th><td>{100 * a:.2f}</td><td>{100 * b:.2f}</td>" in page
    assert f"A = int8, B = float32: {content['also']['verdict']}" in capsys.readouterr().out
    assert not any("--also" in note for note in content["notes"])


def test_report__also_of_another_model_than_the_gate_saw_is_said(
    both: tuple[Path, Path], labels: Path, score_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert report("--scores", both[0], "--also", score_csv, "--labels", labels, "--out", out) == 0
    content = json.loads((out / "metrics.json").read_text())
    assert content["also"]["b"] == "scores.csv"
    assert any("(scores.csv) is not known to be the float32 file" in note for note in content["notes"])
    # Any two models may stand beside each other; then there is no gate.
    assert report("--scores", both[1], "--also", score_csv, "--labels", labels, "--out", out) == 0
    content = json.loads((out / "metrics.json").read_text())
    assert (content["also"]["a"], content["also"]["b"]) == ("net", "scores.csv")
    assert "gate" not in content


def test_report__no_second_model_no_section(labels: Path, score_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert report("--scores", score_csv, "--labels", labels, "--out", out) == 0
    assert 'id="beside"' not in (out / "report.html").read_text()
    assert not {"gate", "also"} & set(json.loads((out / "metrics.json").read_text()))


@pytest.mark.parametrize("wrong", ["gate", "also"])
def test_report__what_can_not_be_shown_is_named(
    wrong: str, both: tuple[Path, Path], labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[object] = ["--labels", labels, "--out", tmp_path / "out", "--scores", both[0]]
    if wrong == "gate":
        scores = read_scores(both[0])
        write_scores(both[0], replace(scores, metadata={"gate": '{"map": 1}'}))
        message = "int8.parquet: the gate's figures are not those of this version"
    else:
        plain = Scores(("cat",), ("x",), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))
        write_scores(tmp_path / "other.parquet", plain)
        options += ["--also", tmp_path / "other.parquet"]
        message = "12 labelled images are scored in one file only"
    assert report(*options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
