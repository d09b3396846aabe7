"""What a run writes beside its weights, and the check before it is taken up again."""

import csv
import json
import os
from pathlib import Path

from data.errors import InputError
from train.config import TrainConfig
from train.config_files import flatten, to_dict
from train.divergence import Diverged
from train.examples import Examples


def check_same(path: Path, config: TrainConfig) -> None:
    """Refuse to resume with settings that would not continue the same run."""
    saved = flatten(json.loads(path.read_text(encoding="utf-8")))
    free = {"out", "overwrite", "resume", "data.cache", "threads", "checkpoint_minutes", "compile"}
    free.add("tracking.wait")
    now = flatten(to_dict(config))
    for key, value in now.items():
        if key not in free and saved.get(key) != value:
            raise InputError(
                f"--resume: {key} was {saved.get(key)} in {path.parent} but is now {value}; resume with the same "
                f"settings (--config {path}), or start another run"
            )


def write_selection(path: Path, examples: Examples) -> None:
    """The image ids of the selection part, one a line under a header."""
    lines = ["image_id"] + [examples.labels.image_ids[i] for i in examples.selection]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_diverged(path: Path, epoch: int, error: Diverged) -> None:
    """What stopped the run: the message, epoch (from 1), step (from 0 over the run), and the batch's image ids."""
    content = {"message": str(error), "epoch": epoch, "step": error.step, "image_ids": error.image_ids}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """The metrics of every epoch as CSV, written by an atomic rename."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["epoch", *history[0]])
        writer.writeheader()
        writer.writerows({"epoch": number, **row} for number, row in enumerate(history, start=1))
    os.replace(partial, path)
