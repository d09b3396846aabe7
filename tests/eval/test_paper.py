"""The paper itself: it is set, it says what is known and what is not, and its commands are right."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from data.scores import Scores, read_scores
from data.voc import read_voc
from eval.commands import score_commands, train_command
from eval.facts import Facts, Search, Trial, collect_facts
from eval.joining import join
from eval.judge import Judgement, judge
from eval.paper import paper_content, write_pdf
from eval.paper_run import MAX_TRIALS, UNKNOWN, augmentation
from train.config import DataConfig, ModelConfig, OptimizerConfig, TrackingConfig, TrainConfig
from train.config_files import flatten, to_dict
from train.options import parse_train


@pytest.fixture
def judged(devkit: Path, score_csv: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """(judgement, facts of a run folder, facts of the score file alone)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plain = read_scores(score_csv)
    metadata = {"model_name": "toy_net *64*", "model_version": "2", "model_hash": "cd" * 32}
    scores = Scores(plain.classes, plain.image_ids, plain.logit, plain.score, metadata=metadata)
    labels = read_voc(devkit, "val")
    found = judge(join(scores, labels), replicates=20)
    return found, collect_facts(scores, labels, run_folder), collect_facts(scores, labels)


Judged = tuple[Judgement, Facts, Facts]


def pages(pdf: bytes) -> int:
    return pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page/") + pdf.count(b"/Type/Page/")


def test_write_pdf__two_to_five_pages_and_the_same_bytes_again(judged: Judged, tmp_path: Path) -> None:
    judgement, known, unknown = judged
    for name, facts in (("known", known), ("unknown", unknown)):
        paths = [tmp_path / f"{name}{i}.pdf" for i in (1, 2)]
        for path in paths:
            write_pdf(path, judgement.joined, judgement, facts)
        first, second = (path.read_bytes() for path in paths)
        assert first == second
        assert first.startswith(b"%PDF")
        assert 2 <= pages(first) <= 5


def test_paper_content__tells_the_run(judged: Judged) -> None:
    judgement, facts, _ = judged
    content = paper_content(judgement.joined, judgement, facts)
    assert content["title"] == "toy_net *64* version 2 on VOC2012 val"
    assert content["map"] == f"{100 * judgement.headline.map['voc2010']:.2f}"
    assert content["date"] == "2026-01-02"
    rows = content["data"]["rows"]
    assert [row[:3] for row in rows] == [
        ["training", "VOC2012 train", "30"],
        ["selection", "VOC2012 train", "5"],
        ["test", "VOC2012 val", "12"],
    ]
    text = json.dumps(content, ensure_ascii=False)
    assert "not recorded" not in json.dumps(
        {k: v for k, v in content.items() if k not in ("published", "model")}
    )
    for wanted in (
        "Test CPU",
        "torch 9.9",
        "epoch 2, selection mAP 50.00 %",
        "binary cross-entropy",
        "12,345",
    ):
        assert wanted in text
    assert not content["published"]["comparable"]
    assert "12 images where val has 5,823" in content["published"]["sentence"]
    bicycle = content["classes"]["rows"][1]
    assert bicycle["cells"][:5] == ["bicycle", "3", "1", "4", "0"]
    assert content["classes"]["rows"][9]["bar"] is None


def test_paper_content__unknown_is_said_and_not_invented(judged: Judged) -> None:
    judgement, _, facts = judged
    content = paper_content(judgement.joined, judgement, facts)
    assert content["loss"] is None
    assert content["training"] == []
    assert content["search"] is None
    assert content["versions"] == UNKNOWN
    assert dict(content["model"])["backbone"] == UNKNOWN
    assert content["published"]["own"][2] == UNKNOWN
    assert "How the model was trained is not recorded" in content["summary"]
    (command,) = content["commands"]
    assert command.startswith("python eval/report.py --scores")
    assert "--run" not in command


def test_paper_content__search_shows_what_differs_and_the_chosen_one(judged: Judged) -> None:
    judgement, facts, _ = judged
    trials = tuple(
        Trial(
            f"t{i}",
            "completed",
            {"optimizer.lr": f"{1e-3 * (i + 1)}", "ema": "0.9", "out": f"o{i}"},
            3,
            0.5,
            i == 1,
        )
        for i in range(MAX_TRIALS + 2)
    )
    settings = {"search.sampler": "tpe", "search.asha": "False", "seed": "4"}
    search = paper_content(judgement.joined, judgement, replace(facts, search=Search(settings, trials)))[
        "search"
    ]
    assert search["columns"] == ["selection mAP, %", "state", "epochs", "optimizer.lr"]
    assert search["rows"][1] == ["50.00", "completed", "3", "0.002"]
    assert search["chosen"].index(True) == 1
    assert len(search["rows"]) == MAX_TRIALS
    assert search["more"].startswith("2 more trials")
    assert "sampler tpe, none pruned, seed 4" in search["text"]


def test_write_pdf__chosen_classes_search_and_no_photographs(judged: Judged, tmp_path: Path) -> None:
    judgement, facts, _ = judged
    joined = replace(judgement.joined, paths=())
    trial = Trial("t", "completed", {"optimizer.lr": "0.1"}, None, None, True)
    path = tmp_path / "a.pdf"
    two = judge(joined, [0, 1], 20)
    # A mean over chosen classes is no published figure's equal: the row beside those is over all.
    own = paper_content(joined, two, facts)["published"]["own"]
    assert own[1].startswith(f"{100 * two.overall.map['voc2010']:.2f} (")
    write_pdf(path, joined, two, replace(facts, search=Search({}, (trial,))))
    assert 2 <= pages(path.read_bytes()) <= 5


def test_train_command__gives_the_same_configuration(tmp_path: Path) -> None:
    config = TrainConfig(
        data=DataConfig(root=tmp_path / "kit", size=96, selection=0.2),
        model=ModelConfig(backbone="resnet18", weights=str(tmp_path / "w.pth")),
        optimizer=OptimizerConfig(lr=0.0021363345286867326),
        tracking=TrackingConfig(enabled=False),
        out=tmp_path / "run",
        channels_last=False,
        batch_size=7,
    )
    words = shlex.split(train_command(flatten(to_dict(config)), 2))
    assert words[:6] == ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "train/main.py"]
    assert str(tmp_path) not in " ".join(words)
    again = parse_train(words[6:])
    expected = replace(
        config,
        data=replace(config.data, root=Path("DEVKIT")),
        model=replace(config.model, weights="w.pth"),
        out=Path("RUN"),
    )
    assert again == expected


def test_score_commands__devkit_or_csv() -> None:
    assert (
        "--data DEVKIT --split val --run RUN --pdf --seed 3 --replicates 50"
        in score_commands("VOC2012 val", 3, 50)[-1]
    )
    assert "--labels LABELS.csv" in score_commands("labels.csv", 0, 1000)[-1]
    assert len(score_commands("VOC2007 test", 0, 1)) == 4


def test_augmentation__names_what_is_on() -> None:
    base = {"augment.min_area": 0.35, "augment.aspect": 1.33, "augment.flip": 0.5, "augment.brightness": 0.2}
    assert augmentation(base) == (
        "crop of 35 to 100 % of the area, aspect ratio within 1/1.33 to 1.33; left-right flip with probability 0.5; "
        "brightness ± 20 %"
    )
    more = {"augment.crop": "none", "augment.cutmix": 1.0, "augment.mix_probability": 0.3}
    said = augmentation(base | more)
    assert said.startswith("the whole image; ")
    assert said.endswith("CutMix with alpha 1; mixed with probability 0.3")
