import dataclasses
import hashlib
import json
import platform
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.voc import read_voc
from train import checkpoint
from train.config import ModelConfig, ScheduleConfig, TrainConfig
from train.environment import describe_model, versions
from train.loop import Epoch, fit


def environment(out: Path | None) -> dict[str, Any]:
    assert out is not None
    content: dict[str, Any] = json.loads((out / checkpoint.ENVIRONMENT).read_text())
    return content


def test_fit__environment_tells_machine_versions_and_counts(smoke: TrainConfig, devkit: Path) -> None:
    fit(dataclasses.replace(smoke, schedule=ScheduleConfig(epochs=1), seed=3))
    found = environment(smoke.out)
    (session,) = found["sessions"]
    assert session["status"] == "FINISHED"
    assert session["seconds"] > 0
    assert session["started"].endswith("+00:00")
    assert session["seed"] == 3
    assert session["precision"] == "no"
    assert session["processes"] == 1
    assert session["python"] == platform.python_version()
    assert session["versions"]["torch"] == version("torch")
    assert session["hardware"]["cores"] >= 1
    assert session["hardware"]["threads"] == 1
    assert session["hardware"]["gpus"] == (1 if torch.cuda.is_available() else 0)
    assert f'"{socket.gethostname()}' not in json.dumps(found)
    labels = read_voc(devkit, "train")
    data = found["data"]
    assert data["fingerprint"] == labels.fingerprint()
    assert data["train"]["images"] + data["selection"]["images"] == len(labels)
    for key, whole in (("positives", labels.positives()), ("ignored", labels.ignored())):
        for name, count in zip(labels.classes, whole, strict=True):
            assert data["train"][key][name] + data["selection"][key][name] == count
    assert smoke.out is not None
    best = checkpoint.load(smoke.out / checkpoint.BEST)["model"]
    buffers = ("running_mean", "running_var", "num_batches_tracked", ".mean", ".std")
    counted = sum(t.numel() for key, t in best.items() if not key.endswith(buffers))
    assert found["model"] == {"parameters": counted, "weights_sha256": ""}


def test_fit__resumed_run_keeps_both_sessions(smoke: TrainConfig) -> None:
    def interrupt(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(smoke, interrupt)
    assert [s["status"] for s in environment(smoke.out)["sessions"]] == ["KILLED"]
    fit(dataclasses.replace(smoke, resume=True))
    assert [s["status"] for s in environment(smoke.out)["sessions"]] == ["KILLED", "FINISHED"]


def test_describe_model__hash_of_the_starting_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"numbers")
    config = TrainConfig(model=ModelConfig(weights=str(weights)))
    assert describe_model(config, nn.Linear(3, 2)) == {
        "parameters": 8,
        "weights_sha256": hashlib.sha256(b"numbers").hexdigest(),
    }


def test_versions__only_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.environment.PACKAGES", ("torch", "no-such-package"))
    assert set(versions()) - {"cuda"} == {"torch"}
