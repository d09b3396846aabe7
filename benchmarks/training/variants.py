"""Times one way of training in a process of its own, for `benchmarks/train.py`.

Takes one JSON argument and prints one line of JSON. `bare`: the step alone on a batch that lies on the device.
`ours`: `train.loop.fit`. `plain`: PyTorch's own step fed by a DataLoader with Pillow in workers. `loader`: that
feeding our faster step. `prepare`: opens the
decoded cache, which is made once for all runs.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from clock import Enough, StepClock
from photographs import Photographs
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from data.cache import open_cache
from data.split import stratified_split
from data.voc import read_voc
from train.allocator import keep_memory
from train.config import DataConfig, ModelConfig, TrackingConfig, TrainConfig
from train.depthwise import speed_up_depthwise
from train.heads import make_model
from train.loop import fit
from train.precision import choose_precision

CLASSES = 20
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def bare(settings: dict[str, Any]) -> dict[str, float]:
    """The limit: no data, no augmentation, no average of the weights, no clipping, no look at the loss."""
    count, size = settings["batch_size"], settings["size"]
    device = torch.device(settings["device"])
    pixels = torch.rand(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(count, CLASSES, device=device) < 0.1).float()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield pixels, targets

    return _train(settings, batches(), per_epoch=0)


def plain(settings: dict[str, Any]) -> dict[str, float]:
    """A DataLoader that decodes, crops and flips with Pillow in worker processes."""
    data = Photographs(Path(settings["listing"]), settings["size"])
    loader = DataLoader(
        data,
        batch_size=settings["batch_size"],
        shuffle=True,
        num_workers=settings["workers"],
        drop_last=True,
        pin_memory=settings["device"] == "cuda",
        persistent_workers=True,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for pixels, targets in loader:
                yield (
                    pixels.to(settings["device"], non_blocking=True, memory_format=torch.channels_last),
                    targets.to(settings["device"], non_blocking=True),
                )

    return _train(settings, batches(), per_epoch=len(loader))


def _train(
    settings: dict[str, Any], batches: Iterator[tuple[Tensor, Tensor]], per_epoch: int
) -> dict[str, float]:
    """One model, one step, whatever feeds it.

    `bare` and `loader` have what our loop does for the step itself on a CPU (memory kept, fast depthwise gradient),
    so that one is the limit and the other differs in the feeding alone; `plain` is PyTorch as it comes.
    """
    device, name = settings["device"], settings["precision"]
    config = ModelConfig(backbone=settings["backbone"], weights="none", dropout=0.0)
    model = make_model(config, CLASSES, settings["size"])
    if device == "cpu" and settings["variant"] != "plain":
        keep_memory()
        speed_up_depthwise(model)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=name == "fp16")
    clock = StepClock(settings["warm"], settings["steps"], per_epoch, settings["started"])
    try:
        for pixels, targets in batches:
            with torch.autocast(device, _TYPES.get(name), enabled=name in _TYPES):
                logit = model.head(model.backbone(pixels))
            loss = binary_cross_entropy_with_logits(logit.float(), targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    except Enough:
        pass
    return clock.result(settings["batch_size"])


def ours(settings: dict[str, Any]) -> dict[str, float]:
    """`train.loop.fit` as a user runs it: cache, augmentation, average of the weights, clipping, progress."""
    config = TrainConfig(
        data=_data(settings),
        model=ModelConfig(backbone=settings["backbone"], weights="none"),
        tracking=TrackingConfig(enabled=False),
        out=Path(settings["out"]),
        overwrite=True,
        batch_size=settings["batch_size"],
        precision=settings["wanted_precision"],
    )
    labels = read_voc(Path(settings["devkit"]), config.data.split)
    train, _ = stratified_split(labels.target, labels.mask, config.data.selection, config.seed)
    per_epoch = len(train) // config.batch_size
    clock = StepClock(settings["warm"], settings["steps"], per_epoch, settings["started"])
    with contextlib.suppress(Enough):
        fit(config)
    return clock.result(config.batch_size)


def prepare(settings: dict[str, Any]) -> dict[str, float | str]:
    """Make the decoded cache where it is missing; also says which precision the machine gets."""
    config = _data(settings)
    cache = open_cache(read_voc(Path(settings["devkit"]), config.split), config.size, config.cache)
    return {
        "cache_seconds": cache.seconds,
        "built": float(cache.built),
        "precision": choose_precision(settings["wanted_precision"])[0],
        "cuda": float(torch.cuda.is_available()),
    }


def _data(settings: dict[str, Any]) -> DataConfig:
    return DataConfig(root=Path(settings["devkit"]), size=settings["size"], cache=Path(settings["cache"]))


VARIANTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": bare,
    "ours": ours,
    "plain": plain,
    "loader": plain,
    "prepare": prepare,
}


def main() -> None:
    """Run the variant that the argument names."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    print(json.dumps(VARIANTS[settings["variant"]](settings)))


if __name__ == "__main__":
    main()
