"""What a run says while it works: the banner and a line an epoch."""

import sys
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from train.config import TrainConfig
from train.examples import Examples


def run_name(config: TrainConfig) -> str:
    """What a person reads in the list of runs."""
    return f"{config.model.backbone} {config.loss.name} lr {config.optimizer.lr:.2g}"


def epoch_line(number: int, epochs: int, metrics: Mapping[str, float], best: bool) -> str:
    """One line for a finished epoch; `*` marks the best so far."""
    loss, mean, seconds, rate = (
        metrics[key] for key in ("train/loss", "val/map", "time/seconds", "time/images_per_second")
    )
    return (
        f"epoch {number}/{epochs}  loss {loss:.4f}  selection mAP {mean:.4f}{' *' if best else '  '}  "
        f"{seconds:.1f} s  {rate:.0f} images/s"
    )


def banner(config: TrainConfig, accelerator: Accelerator, examples: Examples, reason: str) -> None:
    """Say what is trained, on what, and on which device, before the first step."""
    labels, device = examples.labels, accelerator.device
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    lines = (
        f"data       {labels.name}: {len(examples.train)} to train on, {len(examples.selection)} to select on, "
        f"{len(labels.classes)} classes, fingerprint {labels.fingerprint()}",
        f"model      {config.model.backbone}, weights {config.model.weights}, {config.data.size} px",
        f"loss       {config.loss.name}",
        f"device     {device.type} ({name}), {accelerator.num_processes} process(es), "
        f"{config.batch_size} images a step over all of them: {config.batch_size // accelerator.num_processes} each "
        "(the learning rates are for the whole, whatever the number of processes)",
        f"precision  {accelerator.mixed_precision}: {reason}",
        f"out        {config.out}",
    )
    print("\n".join(lines), file=sys.stderr, flush=True)
