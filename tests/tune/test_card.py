import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.model_file import Gate
from train.publish import Exported, sha256
from tune.card import model_card, write_card

ENVIRONMENT = {
    "model": {"weights_sha256": "beef"},
    "sessions": [
        {
            "hardware": {"cpu": "A CPU", "cores": 2, "gpu": "", "gpus": 0},
            "processes": 2,
            "python": "3.11.9",
            "versions": {"torch": "2.15.0", "mlflow": "3.17.2"},
        }
    ],
}


@pytest.fixture
def exported(tiny: Callable[..., Exported], tmp_path: Path) -> Exported:
    return tiny(tmp_path / "m.onnx", 1.0, run_id="f" * 32)


def test_write_card__lies_beside_the_model_with_its_figures(exported: Exported, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT))
    path = write_card(exported, run, "The best of 12 trials.")
    assert path == tmp_path / "card.md"
    assert {item.name for item in tmp_path.iterdir()} == {"m.onnx", "card.md", "run"}
    text = path.read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == [
        *("Intended use", "Figures", "Classes", "Calibration and thresholds", "Data", "Limits", "The file"),
        *("Licence and origin", "How to reproduce"),
    ]
    assert sha256(exported.path) in text
    assert "optimistic.** The best of 12 trials. The same images chose" in text
    assert f"Fingerprint of the labels `{exported.info.data_fingerprint}`" in text
    assert "Trained on 2 cores of A CPU, 2 process(es), Python 3.11.9, torch 2.15.0." in text
    assert "accelerate launch --num_processes 2 train/main.py --config config.json --out again" in text
    assert "git checkout abc   # and changes that were not committed" in text
    assert f"--run-id {'f' * 32} --artifact-path config.json" in text
    assert "who somebody is" in text  # there is a class person


def test_model_card__classes_have_counts_intervals_and_a_mark_where_few(exported: Exported) -> None:
    scores = exported.scores
    text = model_card(exported, {})
    rows = re.findall(r"^\| (person|cat|dog|rare)( \*)? \|(.*)\|$", text, flags=re.MULTILINE)
    assert [row[0] for row in rows] == list(scores.classes)
    positives = (scores.target * scores.mask).sum(axis=0)
    assert [bool(row[1]) for row in rows] == [bool(count < 10) for count in positives] == [False] * 3 + [True]
    for c, (_, _, cells) in enumerate(rows):
        trained, selected, ap, interval, *_ = (cell.strip() for cell in cells.split("|"))
        assert int(selected) == positives[c]
        assert int(trained) + int(selected) == exported.examples.labels.positives()[c]
        assert ap == f"{100 * scores.ap()[c]:.1f}"
        low, high = map(float, interval.split(" to "))
        assert low <= float(ap) <= high
    assert "Fewer than 10 positives in the selection part (1 of 4 classes)" in text
    mean = np.mean(scores.ap()[:3])
    assert f"mAP over the 3 with 10 positives or more | {100 * mean:.1f} |" in text


def test_model_card__without_a_run_and_with_a_gate(exported: Exported) -> None:
    gate = Gate("int8", "a", 80, 0.9, 0.898, 3, 0.95, 0.94, 0.003, 100.0, 250.0, 9, 3, 10, 1)
    config = json.loads(exported.info.config)
    config["model"] |= {"weights": "/somewhere/w.pth"}
    config |= {"resume": True}
    info = dataclasses.replace(
        exported.info,
        run_id="",
        precision="int8",
        gate=dataclasses.asdict(gate),
        data_fingerprint="0123",
        config=json.dumps(config),
    )
    text = model_card(dataclasses.replace(exported, info=info), ENVIRONMENT)
    assert "| MLflow run | not tracked |" in text
    assert "mlflow artifacts" not in text
    assert (
        "int8: mAP on the selection part 89.8 % instead of 90.0 % in float32, at 250 instead of 100" in text
    )
    assert "**The data have changed since the training**" in text
    assert "the file `w.pth`, SHA-256 `beef`; its licence is not recorded" in text
    assert "/somewhere" not in text
    assert "--config config.json --no-resume --out again" in text
    assert "--precision int8" in text
