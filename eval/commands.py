"""The commands that make the judged result again, from the saved configuration: every setting is spelled out."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

# Places of the machine that the model was made on: the reader has others.
_PLACES = ("out", "overwrite", "resume", "data.cache")
DEVKIT = "DEVKIT"
_DEVKIT_NAME = re.compile(r"VOC20\d\d (\w+)")


def train_command(config: Mapping[str, Any], processes: int) -> str:
    """`accelerate launch train/main.py` with each setting of the flat configuration as a flag.

    A devkit stands as DEVKIT, and a file (labels, weights) by its name without its folder.
    """
    launch = ["accelerate", "launch"]
    if processes > 1:
        launch += ["--multi_gpu", "--num_processes", str(processes)]
    words = [*launch, "train/main.py"]
    for key, value in config.items():
        if key not in _PLACES and not (key == "data.root" and config.get("data.labels")):
            words += _flag(key, value)
    return shlex.join([*words, "--out", "RUN"])


def _flag(key: str, value: Any) -> list[str]:
    name = key.replace("_", "-")
    if key == "data.root":
        return [f"--{name}", DEVKIT]
    if value is None or value == "":
        return []
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        return [f"--{group + '.' if group else ''}{'' if value else 'no-'}{last}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    text = str(value)
    return [f"--{name}", text.rpartition("/")[2] if key in ("data.labels", "model.weights") else text]


def score_commands(labels: str, seed: int, replicates: int) -> list[str]:
    """Export, serve, score and report, for labels of that name ("VOC2012 val", or a CSV's)."""
    found = _DEVKIT_NAME.fullmatch(labels)
    images = f"--images {DEVKIT} --split {found[1]}" if found else "--images IMAGES"
    data = f"--data {DEVKIT} --split {found[1]}" if found else "--labels LABELS.csv"
    return [
        "python train/export.py --run RUN --out model.onnx",
        "python serve/server.py --model model.onnx --listen 127.0.0.1:50051",
        f"python serve/client.py score --server 127.0.0.1:50051 {images} --out scores.parquet",
        f"python eval/report.py --scores scores.parquet {data} --run RUN --pdf --seed {seed} "
        f"--replicates {replicates} --out REPORT",
    ]
