"""The known answers on a public solution's committed scores (5,823 VOC2012 val images), where they are at hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.build import write_report
from eval.options import ReportConfig

SHARED = Path(__file__).parents[3] / "shared"
SCORES = SHARED / "reference" / "resnet18_scores.csv"
LABELS = SHARED / "reference" / "resnet18_labels.csv"
FULL = SHARED / "voc" / "labels_full"

pytestmark = pytest.mark.skipif(
    not (SCORES.is_file() and LABELS.is_file() and FULL.is_dir()),
    reason="the reference scores (../shared/reference) are not on this machine",
)


def judged(out: Path, **options: Any) -> tuple[dict[str, Any], dict[str, float]]:
    write_report(ReportConfig(scores=SCORES, out=out, replicates=200, **options))
    content = json.loads((out / "metrics.json").read_text())
    return content, {figure["name"]: figure["value"] for figure in content["other_figures"]}


def test_reference__its_own_labels(tmp_path: Path) -> None:
    content, others = judged(tmp_path / "out", labels=LABELS)
    assert {k: round(content["map"][k], 4) for k in ("sklearn", "voc2010", "voc2007")} == {
        "sklearn": 0.8446,
        "voc2010": 0.8459,
        "voc2007": 0.8148,
    }
    assert content["map"]["num_classes"] == 20
    low, high = content["map"]["interval"]["voc2010"]
    assert 0.83 < low < 0.8459 < high < 0.86
    assert round(others["per-sample AP"], 4) == 0.9204


def test_reference__difficult_pairs_ignored(tmp_path: Path) -> None:
    main = tmp_path / "kit" / "VOC2012" / "ImageSets" / "Main"
    main.parent.mkdir(parents=True)
    main.symlink_to(FULL)
    content, others = judged(tmp_path / "out", data=tmp_path / "kit")
    assert round(content["map"]["voc2010"], 4) == 0.8531
    assert round(content["map"]["sklearn"], 4) == 0.8520
    assert sum(entry["ignored"] for entry in content["ap"].values()) > 0
    assert round(others["per-sample AP, difficult as negative"], 4) == 0.9204
    assert round(others["mAP (VOC 2010), difficult as negative"], 4) == 0.8459
    assert round(others["mAP (scikit-learn), difficult as negative"], 4) == 0.8446
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What others may have meant" in page
    assert "0.9204" in page
