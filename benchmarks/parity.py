"""The same photographs scored three ways: by PyTorch, by ONNX Runtime offline, and through the gRPC service.

    python benchmarks/parity.py --run runs/train/first --model model.onnx --scores scores.parquet --data DEVKIT

Prints the largest |logit difference| of each pair of ways and the mAP (VOC 2010) of each way. With no
arguments: the newest run in runs/train, the model.onnx beside its weights, runs/scores.parquet and the
default devkit; without such a run there is nothing to compare and it says so.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from data.cache import open_cache
from data.cli import run
from data.errors import InputError
from data.scores import read_scores
from data.voc import default_devkit, read_voc
from eval.metrics import average_precision, mean_average_precision
from train.config import TrainConfig
from train.evaluation import predict
from train.onnx_session import logits as ort_logits
from train.onnx_session import open_model
from train.publish import load_best, newest_run


@dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        run: folder of the training run.
        model: the model file exported from it.
        scores: the score file that the service gave for it.
        data: devkit of the scored images.
        split: of them.
    """

    run: Path | None = None
    model: Path | None = None
    scores: Path = Path("runs/scores.parquet")
    data: Path | None = None
    split: str = "val"


def main(arguments: list[str]) -> int:
    """Score, compare, print."""
    options = tyro.cli(Options, args=arguments)
    try:
        folder = options.run or newest_run(Path("runs/train"))
        file = options.model or folder / "model.onnx"
        if not file.is_file():
            raise InputError(f"no model file at {file}; python train/export.py writes one")
        served = read_scores(options.scores)
    except InputError as error:
        if arguments:
            raise
        print(f"nothing to compare: {error}")
        return 0
    labels = read_voc(options.data or default_devkit(), options.split)
    model, state, config = load_best(folder)
    pixels = open_cache(labels, state["size"], TrainConfig().data.cache).pixels
    rows = np.arange(len(labels))
    row_of = {image_id: row for row, image_id in enumerate(served.image_ids)}
    logits = {
        "torch": predict(model.eval(), pixels, rows, torch.device("cpu"), flip=config.flip_test),
        "onnxruntime": ort_logits(open_model(file), pixels),
        "grpc": served.logit[[row_of[image_id] for image_id in labels.image_ids]],
    }
    for (a, first), (b, second) in itertools.combinations(logits.items(), 2):
        print(f"{a:>12} - {b:<12} largest |logit difference| {np.abs(first - second).max():.2e}")
    for name, logit in logits.items():
        ap = average_precision(logit, labels.target, labels.mask, labels.image_ids)
        mean, count = mean_average_precision(ap)
        print(f"{name:>12}   mAP (VOC 2010) {mean:.6f} over {count} classes")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
