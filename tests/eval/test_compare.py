import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.cli import run
from data.errors import InputError
from data.labels import VOC_CLASSES
from eval.compare import main
from eval.comparison import Difference, compare, verdict
from eval.intervals import bootstrap, interval
from eval.joining import Joined
from eval.metrics import average_precision, mean_average_precision
from eval.ranking import rankings


def scored(noise: float, seed: int, count: int = 400, rows: Any = None) -> Joined:
    """Scores of three classes, the better the lower the noise; the labels are the same for every seed."""
    rng = np.random.default_rng(7)
    target = (rng.uniform(size=(count, 3)) < [0.3, 0.2, 0.1]).astype(np.uint8)
    mask = (rng.uniform(size=target.shape) < 0.95).astype(np.uint8)
    logit = (2.0 * target + np.random.default_rng(seed).normal(0, noise, target.shape)).astype(np.float32)
    names = np.array([f"im{i:04d}" for i in range(count)])
    rows = np.arange(count) if rows is None else rows
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    columns = logit[rows], score[rows], target[rows], mask[rows]
    return Joined("toy", ("a", "b", "c"), tuple(names[rows]), *columns, (), (), {}, count, "f")


def test_compare__a_model_with_itself_is_exactly_equal() -> None:
    found = compare(scored(1, 0), scored(1, 0), replicates=30)
    for row in (*found.overall, *found.classes):
        assert (row.difference, row.low, row.high, row.verdict) == (0, 0, 0, "")
    assert verdict(found).startswith("no difference is shown: A - B = +0.00 points")


def test_compare__the_differences_are_those_of_the_metrics_and_paired() -> None:
    a, b = scored(0.6, 1), scored(1.5, 2)
    found = compare(a, b, replicates=200, seed=3)
    one, two = (average_precision(j.logit, j.target, j.mask, j.image_ids) for j in (a, b))
    np.testing.assert_allclose([row.difference for row in found.classes], one - two)
    head = found.overall[0]
    assert head.difference == pytest.approx(mean_average_precision(one)[0] - mean_average_precision(two)[0])
    assert head.verdict == "A is better"
    assert verdict(found).startswith("A is better: A - B = +")
    turned = compare(b, a, replicates=200, seed=3)
    assert turned.overall[0].verdict == "B is better"
    assert (turned.overall[0].low, turned.overall[0].high) == pytest.approx((-head.high, -head.low))


def test_compare__is_paired() -> None:
    # Two models that err on the same images: the interval is far narrower than that of independent resamplings.
    a = scored(1, 1)
    noise = np.random.default_rng(5).normal(0, 0.3, a.logit.shape).astype(np.float32)
    b = replace(a, logit=a.logit + noise)
    head = compare(a, b, replicates=200, seed=3).overall[0]
    apart = [
        bootstrap(list(rankings(j.logit, j.target, j.mask, j.image_ids)), 400, None, 200, seed)
        for j, seed in ((a, 3), (b, 4))
    ]
    low, high = interval(apart[0].mean_ap("voc2010") - apart[1].mean_ap("voc2010"))
    assert head.high - head.low < 0.6 * (high - low)


def test_compare__order_of_rows_has_no_influence() -> None:
    a, b = scored(0.8, 1), scored(1.0, 2)
    rows = np.random.default_rng(0).permutation(400)
    assert compare(a, b, 40).classes == compare(scored(0.8, 1, rows=rows), b, 40).classes


def test_compare__a_winner_by_chance_is_named_about_as_often_as_the_interval_says() -> None:
    named = 0
    for seed in range(60):
        found = compare(scored(1, 100 + seed, 150), scored(1, 300 + seed, 150), replicates=100, seed=seed)
        named += bool(found.overall[0].verdict)
    assert named <= 9


def test_compare__what_can_not_be_compared() -> None:
    with pytest.raises(InputError, match="same labels, images and classes"):
        compare(scored(1, 0), scored(1, 0, rows=np.arange(399)))
    with pytest.raises(InputError, match="--replicates must be at least 1, got 0"):
        compare(scored(1, 0), scored(1, 1), replicates=0)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.02, "A is better"), (-0.02, -0.01, "B is better"), (-0.01, 0.01, ""), (0.0, 0.1, "")],
)
def test_verdict__only_where_the_interval_excludes_zero(low: float, high: float, said: str) -> None:
    assert Difference("x", 0.9, 0.8, 0.1, low, high).verdict == said
    assert Difference("x", np.nan, np.nan, np.nan, np.nan, np.nan).verdict == ""


def test_main__table_json_and_chosen_classes(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.csv"
    text = score_csv.read_text().splitlines()
    other.write_text("\n".join([text[0], *reversed(text[1:])]))
    options = ["--data", str(devkit), "--replicates", "20"]
    out = tmp_path / "deep" / "c.json"
    assert run(main, [str(score_csv), str(other), *options, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["map"]["voc2010"]["difference"] == 0
    assert content["ap"]["cow"]["a"] is None
    assert content["ap"]["cow"]["verdict"] is None
    assert set(content["ap"]) == set(VOC_CLASSES)
    assert content["bootstrap"] == {"level": 0.95, "replicates": 20, "seed": 0}
    assert content["verdict"] in printed.splitlines()
    assert "n/a" in printed
    assert run(main, [str(score_csv), str(other), *options, "--classes", "bird,bicycle"]) == 0
    printed = capsys.readouterr().out
    assert " aeroplane" not in printed
    assert "take no part" not in printed


def test_main__files_that_do_not_fit_each_other(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, fewer, none = tmp_path / "short.csv", tmp_path / "fewer.csv", tmp_path / "none.csv"
    lines = score_csv.read_text().splitlines()
    short.write_text("\n".join(lines[:-1]))
    fewer.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    none.write_text("image,zebra\n2008_000000,0.5\n")
    options = ["--data", str(devkit), "--replicates", "5"]
    assert run(main, [str(score_csv), str(short), *options]) == 2
    assert "1 labelled images are scored in one file only: 2008_000011; score them" in capsys.readouterr().err
    assert run(main, [str(score_csv), str(short), *options, "--allow-missing"]) == 0
    assert "they were left out by --allow-missing" in capsys.readouterr().out
    assert run(main, [str(score_csv), str(fewer), *options]) == 0
    assert "1 classes are scored in one file only: tvmonitor" in capsys.readouterr().out
    for other, message in (
        (none, "have no class in common"),
        (tmp_path / "no.csv", "no score file at"),
    ):
        assert run(main, [str(score_csv), str(other), *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert run(main, [str(score_csv), str(fewer), *options, "--classes", "tvmonitor"]) == 2
    assert "unknown class 'tvmonitor'" in capsys.readouterr().err
