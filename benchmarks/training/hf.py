"""Times Hugging Face's Trainer; `benchmarks/train.py` starts it in an environment of its own.

Takes one JSON argument (the fields that are read from `settings`) and prints one line of JSON. The model is
torchvision's of the same name, in the same memory layout and precision; the data come from Pillow in workers.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from clock import Enough, StepClock
from photographs import Photographs
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments


class WithLoss(nn.Module):
    """A network that gives the loss with its logits, as the Trainer expects."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        return {"loss": loss, "logits": logits}


def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A batch under the names of `WithLoss.forward`."""
    pixels, targets = zip(*items, strict=True)
    layout = torch.channels_last
    return {
        "pixel_values": torch.stack(pixels).contiguous(memory_format=layout),
        "labels": torch.stack(targets),
    }


def main() -> None:
    """Train until the clock has timed enough steps."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    data = Photographs(Path(settings["listing"]), settings["size"])
    batch_size, workers = settings["batch_size"], settings["workers"]
    net = torchvision.models.get_model(settings["backbone"], weights=None, num_classes=data.targets.shape[1])
    model = WithLoss(net).to(memory_format=torch.channels_last)
    clock = StepClock(settings["warm"], settings["steps"], len(data) // batch_size, settings["started"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=10**6,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-4,
            bf16=settings["precision"] == "bf16",
            fp16=settings["precision"] == "fp16",
            use_cpu=settings["device"] == "cpu",
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            dataloader_drop_last=True,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        try:
            Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
        except Enough:
            print(json.dumps(clock.result(batch_size)))


if __name__ == "__main__":
    main()
