"""Logits of many images in the model's own framework."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from train import augment

EVALUATION_BATCH = 64


@torch.no_grad()
def predict(
    model: nn.Module,
    pixels: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int64],
    device: torch.device,
    batch_size: int = EVALUATION_BATCH,
    flip: bool = False,
) -> npt.NDArray[np.float32]:
    """Logits float32[n, C] of the rows `index` of `pixels` uint8[*, S, S, 3], in the model's present mode.

    With `flip`, each is the mean of the logits of the image and of its mirror image.
    """
    parts: list[Tensor] = []
    for start in range(0, len(index), batch_size):
        images = augment.to_float(torch.from_numpy(pixels[index[start : start + batch_size]]).to(device))
        logit = model(images).float()
        if flip:
            logit = (logit + model(images.flip(3)).float()) / 2
        parts.append(logit.cpu())
    return torch.cat(parts).numpy() if parts else np.empty((0, 0), dtype=np.float32)
