"""The command itself, on a devkit and CSVs of 12 images: files, figures, messages and exit codes."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.cli import run
from data.labels import VOC_CLASSES
from data.scores import Scores, read_scores, write_scores
from data.voc import read_voc
from eval.calibration import fit_thresholds, reliability
from eval.metrics import average_precision, mean_average_precision
from eval.report import main

ROOT = Path(__file__).parents[2]


def report(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    code = run(main, ["--replicates", "20", *map(str, options)])
    found = capsys.readouterr()
    return code, found.out, found.err


def metrics_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def test_report__devkit_files_and_figures(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, text, _ = report(capsys, "--scores", score_csv, "--data", devkit, "--out", out)
    assert code == 0
    sheets = {f"sheets/{c + 1:02d}-{n}-{e}.jpg" for c, n in enumerate(VOC_CLASSES) for e in ("top", "bottom")}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "metrics.json",
        "report.html",
        "explorer.html",
        *sheets,
    }
    assert not list(tmp_path.glob(".out*"))
    found = metrics_of(out)
    scores, labels = read_scores(score_csv), read_voc(devkit, "val")
    for kind in ("voc2010", "voc2007", "sklearn"):
        ap = average_precision(scores.logit, labels.target, labels.mask, labels.image_ids, kind)  # type: ignore[arg-type]
        mean, count = mean_average_precision(ap)
        assert found["map"][kind] == pytest.approx(mean)
        assert found["map"]["num_classes"] == count == 3
        assert found["ap"]["bicycle"][kind] == pytest.approx(ap[1])
        assert found["ap"]["cow"][kind] is None
        low, high = found["map"]["interval"][kind]
        assert low < high
    aeroplane = found["ap"]["aeroplane"]
    assert (aeroplane["positives"], aeroplane["ignored"]) == (4, 1)
    assert set(found["accuracy"]) == {"mean", "always_no"}
    assert {"position", "mean", "num_classes", "coverage"} <= set(found["tailacc"])
    assert {len(found["tailacc"][key]) for key in ("position", "mean", "num_classes", "coverage")} == {20}
    assert found["counts"] == {"labelled": 12, "judged": 12, "failed": 0, "classes": 20}
    assert any("17 classes have no positive" in note for note in found["notes"])
    assert re.search(rf"^ ?mean of 3 +{100 * found['map']['voc2010']:.2f} ", text, re.MULTILINE)
    assert str(out / "report.html") in text


def test_report__page_stands_alone_and_shows_five_images_of_each_drawn_class(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report(capsys, "--scores", score_csv, "--data", devkit, "--out", out)
    page = (out / "report.html").read_text()
    # Best and worst five of the three classes that have a positive (30), and their telling errors (27).
    assert page.count('src="data:image/jpeg;base64,') == 57
    loaded = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', page)
    outside = [a for a in loaded if not a.startswith(("data:", "#"))]
    assert outside
    assert all((out / address).is_file() for address in outside)
    assert "<script" not in page
    assert page.count("<svg") == 31
    assert "n/a" in page
    for name in VOC_CLASSES:
        assert f"<th>{name}</th>" in page


def test_report__labels_csv_without_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.csv").write_text("image,cat,a<b\nx/1.jpg,3.0,-1\nx/2.jpg,-2.0,4\nx/3.jpg,1,1\n")
    (tmp_path / "l.csv").write_text("image,cat,a<b\n1,1.0,0.0\n2,0,\n3,0,1\n")
    out = tmp_path / "out"
    code, _, _ = report(capsys, "--scores", tmp_path / "s.csv", "--labels", tmp_path / "l.csv", "--out", out)
    assert code == 0
    assert {p.name for p in out.iterdir()} == {"metrics.json", "report.html", "explorer.html"}
    page = (out / "report.html").read_text()
    assert "photographs are not at hand" in page
    assert "a&lt;b" in page
    assert "<b</th>" not in page
    found = metrics_of(out)
    assert found["ap"]["cat"]["voc2010"] == 1.0
    assert found["ap"]["a<b"] == {**found["ap"]["a<b"], "voc2010": 1.0, "positives": 1, "ignored": 1}
    assert found["score_file"]["csv_values"] == "logit"
    # The image with logits 3 and -1 and truth (1, 0), and so on: 3 of the 2 + 3 - 1 valid answers are right
    # for cat (3/3 minus the third), 2 of 2 for the other.
    assert found["accuracy"]["mean"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["tailacc"]["mean"][0] == pytest.approx((1 / 2 + 1) / 2)
    assert found["tailacc"]["mean"][-1] == 1.0


def test_report__every_figure_of_the_definitions_is_there(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = read_scores(score_csv)
    labels = read_voc(devkit, "val")
    thresholds = fit_thresholds(scores.score, labels.target, labels.mask, "f1")
    metadata = {"thresholds": json.dumps(thresholds.tolist())}
    write_scores(tmp_path / "s.parquet", dataclasses.replace(scores, metadata=metadata))
    out = tmp_path / "out"
    code, text, _ = report(capsys, "--scores", tmp_path / "s.parquet", "--data", devkit, "--out", out)
    assert code == 0
    found = metrics_of(out)
    said = (scores.score > thresholds.astype(np.float32)) & (labels.mask == 1)
    hits = int((said & (labels.target == 1)).sum())
    precision, recall = hits / said.sum(), hits / labels.target.sum()
    assert found["f1_fitted"]["overall_precision"] == pytest.approx(precision)
    assert found["f1_fitted"]["overall_recall"] == pytest.approx(recall)
    assert f"OF1 {100 * found['f1_fitted']['overall_f1']:.2f} at the model's thresholds" in text
    valid = labels.mask[:, 1]
    diagram = reliability(scores.score[:, 1], labels.target[:, 1], valid)
    assert found["ap"]["bicycle"]["ece"] == pytest.approx(diagram.ece)
    assert found["reliability"]["bicycle"]["count"] == diagram.count.tolist()
    assert set(found["ap"]["bicycle"]["precision_at_coverage"]) == {"0.10", "0.25", "0.50"}
    assert found["ap"]["cow"]["precision_at_50"] is None
    assert len(found["confusions"]) == 10
    assert {"called", "shown", "count", "chances", "rate"} == set(found["confusions"][0])
    assert f"{found['confusions'][0]['called']} said of " in text
    low, high = found["tailacc_area"]["interval"]
    assert low <= found["tailacc_area"]["value"] <= high
    for bad, message in (("[0.5]", "one threshold a class (20), got 1"), ("x", "must be a JSON list")):
        write_scores(tmp_path / "s.parquet", dataclasses.replace(scores, metadata={"thresholds": bad}))
        code, _, error = report(capsys, "--scores", tmp_path / "s.parquet", "--data", devkit, "--out", out)
        assert code == 2
        assert message in error


def test_report__pdf_beside_the_page(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--scores", score_csv, "--data", devkit, "--out", out)
    for _ in range(2):  # a previous report with its PDF is replaced
        code, text, _ = report(capsys, *options, "--pdf")
        assert code == 0
        assert str(out / "report.pdf") in text
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")
    assert report(capsys, *options)[0] == 0
    assert not (out / "report.pdf").exists()
    code, _, error = report(capsys, *options, "--run", tmp_path)
    assert code == 2
    assert "is not the folder of a training run" in error


def test_report__no_image_above_the_threshold(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = read_scores(score_csv)
    shy = dataclasses.replace(scores, logit=scores.logit - 20, score=scores.score / 2.5)
    write_scores(tmp_path / "s.parquet", shy)
    out = tmp_path / "out"
    options = ("--scores", tmp_path / "s.parquet", "--data", devkit, "--out", out, "--no-explorer")
    code, text, _ = report(capsys, *options)
    assert code == 0
    assert "no image of any class scores above the classification threshold" in text
    found = metrics_of(out)
    assert found["tailacc"]["mean"] == [None] * 20
    assert found["tailacc_area"] == {"value": None, "interval": [None, None]}
    assert not (out / "explorer.html").exists()


def test_report__chosen_classes_beside_all(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _, text, _ = report(
        capsys, "--scores", score_csv, "--data", devkit, "--out", out, "--classes", "bird, bicycle"
    )
    found = metrics_of(out)
    ap = {name: found["ap"][name]["voc2010"] for name in ("aeroplane", "bicycle", "bird")}
    assert found["map"]["voc2010"] == pytest.approx(sum(ap.values()) / 3)
    assert found["chosen"]["map"]["voc2010"] == pytest.approx((ap["bicycle"] + ap["bird"]) / 2)
    assert found["chosen"]["classes"] == ["bird", "bicycle"]
    assert "mean of 2 chosen " in text


def test_report__parquet_with_a_failed_image(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_scores(score_csv)
    keep = np.arange(1, 12)
    part = Scores(
        whole.classes,
        whole.image_ids[1:],
        whole.logit[keep],
        whole.score[keep],
        metadata={"model_name": "toy <net>", "model_hash": "abc"},
        failed={"2008_000000": "truncated JPEG"},
    )
    write_scores(tmp_path / "scores.parquet", part)
    out = tmp_path / "out"
    code, text, _ = report(capsys, "--scores", tmp_path / "scores.parquet", "--data", devkit, "--out", out)
    assert code == 0
    found = metrics_of(out)
    assert found["failed"] == {"2008_000000": "truncated JPEG"}
    assert found["counts"] == {"labelled": 12, "judged": 11, "failed": 1, "classes": 20}
    assert found["score_file"]["model_hash"] == "abc"
    assert "1 labelled images failed to score" in text
    page = (out / "report.html").read_text()
    assert "truncated JPEG" in page
    assert "toy &lt;net&gt;" in page


def test_report__replaces_a_previous_report_and_nothing_else(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--scores", score_csv, "--data", devkit, "--out", out)
    assert report(capsys, *options)[0] == 0
    before = (out / "metrics.json").read_text()
    assert report(capsys, *options)[0] == 0
    assert (out / "metrics.json").read_text() == before
    (out / "sheets" / "thesis.txt").write_text("mine")
    code, _, error = report(capsys, *options)
    assert code == 2
    assert "it holds 'sheets/thesis.txt'" in error
    assert (out / "sheets" / "thesis.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("another program's")
    code, _, error = report(capsys, *options[:-1], tmp_path / "other")
    assert code == 2
    assert "is no previous report" in error


def test_report__bad_input_is_one_line_and_exit_code_2(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    unknown = tmp_path / "unknown.csv"
    unknown.write_text(score_csv.read_text().replace(",cat,", ",kitten,", 1))
    nan = tmp_path / "nan.csv"
    lines = score_csv.read_text().splitlines()
    lines[3] = re.sub(r",[^,]+$", ",nan", lines[3])
    nan.write_text("\n".join(lines))
    twice = tmp_path / "twice.csv"
    twice.write_text("\n".join([*score_csv.read_text().splitlines(), lines[1]]))
    short = tmp_path / "short.csv"
    short.write_text("\n".join(score_csv.read_text().splitlines()[:-1]))
    a_file = tmp_path / "file"
    a_file.write_text("")
    data = ("--data", devkit, "--out", out)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--scores", tmp_path / "none.parquet", *data), "no score file at"),
        (("--scores", unknown, *data), "unknown class in the scores"),
        (("--scores", nan, *data), "image '2008_000002', class 'tvmonitor'"),
        (("--scores", twice, *data), "image id '2008_000000' stands twice"),
        (("--scores", short, *data), "1 of 12 labelled images have no score: 2008_000011"),
        (("--scores", score_csv, "--data", tmp_path / "nowhere", "--out", out), "no devkit at"),
        (("--scores", score_csv, *data, "--split", "test"), "test"),
        (("--scores", score_csv, *data, "--classes", "cat,kitten"), "unknown class 'kitten'"),
        (("--scores", score_csv, "--data", devkit, "--out", a_file), "is a file"),
        (("--scores", score_csv, *data, "--replicates", "0"), "--replicates must be at least 1, got 0"),
        (("--scores", score_csv, *data, "--labels", unknown), "got both"),
    ]
    for options, message in cases:
        code, _, error = report(capsys, *options)
        assert code == 2, options
        assert message in error, error
        assert error.count("\n") == 1, error
        assert not out.exists()


def test_report__script_form_says_wrong_usage_with_2(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "eval" / "report.py")]
    done = subprocess.run(
        [*command, "--skores", "x"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "skores" in done.stderr
    done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--allow-missing" in done.stdout


def test_report__no_arguments_judges_the_runs_folder_against_voc_root(
    devkit: Path,
    score_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOC_ROOT", str(devkit))
    assert run(main, []) == 2
    assert "no score file at runs/scores.parquet" in capsys.readouterr().err
    write_scores(Path("runs/scores.parquet"), read_scores(score_csv))
    assert run(main, []) == 0
    assert (tmp_path / "runs" / "report" / "report.html").is_file()
