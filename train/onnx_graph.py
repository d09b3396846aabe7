"""From a trained classifier to a model file whose scores are proven equal.

The parity gate compares torch and ONNX Runtime on the CPU in float32: at batch 1, 2 and 32 no logit may
differ by more than 1e-4. A file that fails is not left behind.
"""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data.errors import InputError
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from train import augment
from train.golden import add_golden
from train.onnx_session import open_model

PARITY_BATCHES = (1, 2, 32)
PARITY_LIMIT = 1e-4
OPSET = 20


class ParityError(InputError):
    """The exported graph does not compute what the trained model computes."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What the gate saw.

    Attributes:
        difference: largest |logit of torch - logit of ONNX Runtime|.
        spread: smallest over the classes of the standard deviation of the logits over the images: a
            comparison of constant outputs would prove nothing.
    """

    difference: float
    spread: float


class ServedModel(nn.Module):
    """The graph that is exported: uint8[N, S, S, 3] -> logit float32[N, C], score float32[N, C].

    With `flip`, the logit is the mean over the image and its mirror image: whoever serves the file gets
    test-time augmentation without knowing of it, and calibration, thresholds and parity are those of it.
    """

    scale: Tensor
    bias: Tensor

    def __init__(
        self, classifier: nn.Module, scale: tuple[float, ...], bias: tuple[float, ...], flip: bool = False
    ) -> None:
        super().__init__()
        self.classifier, self.flip = classifier, flip
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("bias", torch.tensor(bias))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = augment.to_float(image)
        logit = self.classifier(pixels)
        if self.flip:
            logit = (logit + self.classifier(pixels.flip(3))) / 2
        return logit, torch.sigmoid(logit * self.scale + self.bias)


def export_onnx(classifier: nn.Module, info: ModelInfo, images: npt.NDArray[np.uint8], path: Path) -> Parity:
    """Write the model file and prove its parity; it appears under `path` only once the gate is passed.

    Args:
        classifier: pixels float32[N, 3, S, S] in [0, 255] -> logits; moved to the CPU, float32, eval mode.
        info: what the file says of itself.
        images: uint8[at least 32, S, S, 3], real ones, for the gate.
        path: the .onnx file.

    Raises:
        ParityError: a logit differs by more than 1e-4, or the outputs do not vary over the images.
    """
    import onnx

    model = ServedModel(classifier.cpu().float().eval(), info.scale, info.bias, info.flip)
    proto = trace(model, images[:2])
    onnx.helper.set_model_props(proto, info.to_metadata())
    onnx.checker.check_model(proto, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    onnx.save_model(proto, partial)
    try:
        parity = check_parity(model, partial, images)
        add_golden(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return parity


def trace(model: ServedModel, images: npt.NDArray[np.uint8]) -> Any:
    """The ONNX model of that graph, for any number of images; traced with `images`, uint8[2, S, S, 3]."""
    # Tracing must see a contiguous model: channels-last weights would be exported with transposes.
    model.to(memory_format=torch.contiguous_format)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model,
            (torch.from_numpy(images.copy()),),
            input_names=[INPUT_NAME],
            output_names=[LOGIT_NAME, SCORE_NAME],
            dynamic_shapes={"image": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return program.model_proto


@torch.no_grad()
def check_parity(model: nn.Module, path: Path, images: npt.NDArray[np.uint8]) -> Parity:
    """Compare torch and ONNX Runtime on `images`, uint8[at least 32, S, S, 3], at each of the gate's batch sizes."""
    session = open_model(path)
    worst, outputs = 0.0, []
    for batch in PARITY_BATCHES:
        if len(images) < batch:
            raise InputError(
                f"the parity gate needs at least {max(PARITY_BATCHES)} images, got {len(images)}"
            )
        pixels = np.ascontiguousarray(images[:batch])
        wanted = model(torch.from_numpy(pixels))[0].numpy()
        got = session.run([LOGIT_NAME], {INPUT_NAME: pixels})[0]
        worst = max(worst, float(np.abs(wanted - got).max()))
        outputs.append(wanted)
    spread = float(outputs[-1].std(axis=0).min())
    if not worst <= PARITY_LIMIT:
        raise ParityError(
            f"parity: logits may differ by at most {PARITY_LIMIT}, but they differ by {worst:.2e}"
        )
    if spread <= 10 * PARITY_LIMIT:
        raise ParityError(
            f"parity proves nothing: over {max(PARITY_BATCHES)} images a class's logits vary by a standard deviation "
            f"of only {spread:.1e}; train the model first, or give images that differ"
        )
    return Parity(worst, spread)
