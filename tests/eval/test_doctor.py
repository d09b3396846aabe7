import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

from data.cli import run
from data.errors import InputError
from eval.diagnosis import Figure, Published, explain, figures, headline_figures
from eval.doctor import main
from eval.joining import Joined


def joined(mask_share: float = 0.9, count: int = 120) -> Joined:
    rng = np.random.default_rng(2)
    target = (rng.uniform(size=(count, 4)) < 0.3).astype(np.uint8)
    logit = (np.round(rng.normal(size=target.shape) + 1.5 * target, 1) - 1).astype(np.float32)
    mask = (rng.uniform(size=target.shape) < mask_share).astype(np.uint8)
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    ids = tuple(f"{i:03d}" for i in range(count))
    return Joined("toy", tuple("abcd"), ids, logit, score, target, mask, (), (), {}, count, "f")


def by_name(j: Joined) -> dict[str, float]:
    found = [*headline_figures(j), *figures(j)]
    values = {figure.name: figure.value for figure in found}
    assert len(values) == len(found)  # no two figures share a name
    return values


def test_figures__agree_with_scikit_learn() -> None:
    j = joined()
    found = by_name(j)
    negative = np.where(j.mask == 0, 0, j.target)
    positive = np.where(j.mask == 0, 1, j.target)
    valid = [j.mask[:, c] == 1 for c in range(4)]

    def macro(truth: np.ndarray, score: np.ndarray) -> float:
        return float(average_precision_score(truth, score, average="macro"))

    assert found["mAP (scikit-learn), difficult as negative"] == pytest.approx(macro(negative, j.logit))
    assert found["mAP (scikit-learn), difficult as positive"] == pytest.approx(macro(positive, j.logit))
    ignoring = [average_precision_score(j.target[v, c], j.logit[v, c]) for c, v in enumerate(valid)]
    assert found["mAP (scikit-learn)"] == pytest.approx(np.mean(ignoring))
    decided = [average_precision_score(j.target[v, c], j.logit[v, c] > 0) for c, v in enumerate(valid)]
    assert found["thresholded scores"] == pytest.approx(np.mean(decided))
    right = [np.mean((j.logit[v, c] > 0) == j.target[v, c]) for c, v in enumerate(valid)]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    rows = positive.any(axis=1)
    samples = average_precision_score(positive[rows], j.logit[rows], average="samples")
    assert found["per-sample AP, difficult as positive"] == pytest.approx(samples)


def test_figures__images_without_a_positive_and_no_ignored_pair() -> None:
    j = joined(mask_share=1.1)
    assert j.mask.all()
    found = by_name(j)
    assert not any("difficult" in name for name in found)
    assert found["per-sample AP, empty = 0"] < found["per-sample AP"] < found["label ranking AP"]
    assert found["label ranking AP"] == pytest.approx(
        label_ranking_average_precision_score(j.target, j.logit)
    )
    rows = [average_precision_score(t, x) if t.any() else 0 for t, x in zip(j.target, j.logit, strict=True)]
    assert found["per-sample AP, empty = 0"] == pytest.approx(np.mean(rows))


def test_figures__a_fixed_tail_with_labels_sorted_apart_says_nothing_of_the_scores() -> None:
    j = joined(mask_share=1.1)
    counts = j.target.sum(axis=0)
    wanted = float(np.mean(np.minimum(counts, 50) / 50))
    assert by_name(j)["fixed top-50 tail, labels sorted apart"] == pytest.approx(wanted)
    turned = Joined(**{f: getattr(j, f) for f in Joined.__slots__} | {"logit": -j.logit})
    assert by_name(turned)["fixed top-50 tail, labels sorted apart"] == pytest.approx(wanted)
    assert by_name(turned)["fixed top-50 tail"] < by_name(j)["fixed top-50 tail"]


@pytest.mark.parametrize(
    ("text", "value", "rounding"),
    [
        ("0.92", 0.92, 0.005),
        ("92.0", 0.92, 0.0005),
        ("92 %", 0.92, 0.005),
        (".9204", 0.9204, 5e-5),
        ("1", 1, 0.5),
    ],
)
def test_parse__what_was_printed(text: str, value: float, rounding: float) -> None:
    found = Published.parse(text)
    assert found.value == pytest.approx(value)
    assert found.rounding == pytest.approx(rounding)


@pytest.mark.parametrize("text", ["", ".", "high", "-0.5", "101", "nan", "0,92"])
def test_parse__no_number(text: str) -> None:
    with pytest.raises(InputError, match="--published must be"):
        Published.parse(text)


def test_explain__nearest_first_and_nothing_claimed_beyond_the_rounding() -> None:
    found = [
        Figure("x", 0.85, "m1"),
        Figure("y", 0.9204, "m2"),
        Figure("z", 0.924, "m3"),
        Figure("n", np.nan, ""),
    ]
    order, said = explain(Published.parse("0.92"), found)
    assert [figure.name for figure in order] == ["y", "z", "x"]
    assert said == "0.92 agrees with y = 0.9204: m2; so do z (0.9240)"
    _, said = explain(Published.parse("0.910"), found)
    assert said == "nothing here rounds to 0.91; the nearest is y = 0.9204: m2"
    assert "no class has a positive" in explain(Published.parse("0.9"), [Figure("n", np.nan, "")])[1]


def test_main__table_verdict_and_json(
    devkit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "doctor.json"
    options = ["--scores", str(score_csv), "--data", str(devkit)]
    assert run(main, [*options, "--json", str(out)]) == 0
    plain = json.loads(out.read_text())
    assert plain["published"] is None
    value = next(f["value"] for f in plain["figures"] if f["name"] == "micro AP")
    assert run(main, [*options, "--published", f"{value:.4f}", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["figures"][0]["name"] == "micro AP"
    assert content["verdict"] in printed.splitlines()
    assert run(main, [*options, "--published", "much"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


SHARED = Path(__file__).parents[3] / "shared" / "reference"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference scores (../shared/reference) are not here")
def test_main__the_reference_authors_meant_per_sample_ap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, labels = SHARED / "resnet18_scores.csv", SHARED / "resnet18_labels.csv"
    out = tmp_path / "d.json"
    options = ["--scores", str(scores), "--labels", str(labels), "--published", "0.92", "--json", str(out)]
    assert run(main, options) == 0
    assert "0.92 agrees with per-sample AP = 0.9204" in capsys.readouterr().out
    values = {figure["name"]: round(figure["value"], 4) for figure in json.loads(out.read_text())["figures"]}
    assert values["mAP (VOC 2010)"] == 0.8459
    assert values["mAP (scikit-learn)"] == 0.8446
    assert values["mAP (VOC 2007, 11-point)"] == 0.8148
