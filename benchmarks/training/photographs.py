"""The usual data set: a JPEG a time, opened and changed by Pillow, as torchvision's ImageFolder gives it.

Random crop, flip, tensor and normalisation are torchvision's own reference recipe. Needs torch and torchvision alone.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms


class Photographs(Dataset[tuple[Tensor, Tensor]]):
    """(float32[3, S, S] normalised, float32[C]) of each image that a JSON file {paths, targets} lists."""

    def __init__(self, listing: Path, size: int) -> None:
        listed = json.loads(listing.read_text())
        self.paths: list[str] = listed["paths"]
        self.targets = torch.tensor(listed["targets"], dtype=torch.float32)
        self.change = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.35, 1.0), ratio=(1 / 1.33, 1.33)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[index]) as image:
            return self.change(image.convert("RGB")), self.targets[index]
