"""The model in the server: an ONNX Runtime session that was checked before it may serve.

Shapes: N images, C classes, S the side of the input in pixels.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from data.image import fingerprint
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from serve.device import Device, open_session
from serve.registry import ModelSource

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model gave an answer: registered name and version, SHA-256 of the file."""

    name: str
    version: str
    hash: str


class OnnxModel:
    """A checked model: `run` takes uint8[N, S, S, 3] and gives logit and score, float32[N, C] each.

    Args:
        source: the file, with its name and version where it comes from the registry.
        device: "auto", "cpu" or "cuda".
        threads: threads of one inference on the CPU.

    Raises:
        InputError: not a model file of ours, or made with another preprocessing than this server has, or CUDA
            was asked for and does not work.
    """

    def __init__(self, source: ModelSource, device: str, threads: int) -> None:
        session, self.device = open_session(source.path, device, threads)
        self._session: Any = session
        self.info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, str(source.path))
        digest = hashlib.sha256(source.path.read_bytes()).hexdigest()
        self.ref = ModelRef(source.name or self.info.name, source.version, digest)
        self._check_signature(str(source.path))
        self._check_preprocessing(str(source.path))

    device: Device
    info: ModelInfo

    def run(self, images: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Score a batch: uint8[N, S, S, 3] -> logit float32[N, C], score float32[N, C]. Thread-safe."""
        logit, score = self._session.run([LOGIT_NAME, SCORE_NAME], {INPUT_NAME: images})
        return logit, score

    def warm(self, max_batch: int) -> None:
        """Run batches of 1 and of `max_batch`, so that the first caller does not pay, and check the answers.

        Raises:
            InputError: the outputs have another shape than the metadata says, or are not finite.
        """
        size, classes = self.info.size, len(self.info.classes)
        noise = np.random.default_rng(0).integers(0, 256, (max_batch, size, size, 3), dtype=np.uint8)
        for images in (noise[:1], noise):
            for name, values in zip((LOGIT_NAME, SCORE_NAME), self.run(images), strict=True):
                if values.shape != (len(images), classes) or values.dtype != np.float32:
                    raise InputError(
                        f"the model's output '{name}' must be float32[{len(images)}, {classes}], as its "
                        f"metadata says, got {values.dtype}{list(values.shape)}"
                    )
                if not np.isfinite(values).all():
                    raise InputError(
                        f"the model's output '{name}' is not finite on a test image; export it again"
                    )

    def _check_signature(self, path: str) -> None:
        size = self.info.size
        inputs = {item.name: (item.type, item.shape) for item in self._session.get_inputs()}
        kind, shape = inputs.get(INPUT_NAME, ("nothing", []))
        if len(inputs) != 1 or kind != "tensor(uint8)" or shape[1:] != [size, size, 3]:
            raise InputError(
                f"{path}: its one input must be '{INPUT_NAME}' uint8[N, {size}, {size}, 3], got "
                + ", ".join(f"'{name}' {kind}{shape}" for name, (kind, shape) in inputs.items())
            )
        if isinstance(shape[0], int):
            raise InputError(f"{path}: its batch dimension must be dynamic, got {shape[0]}; export it again")
        outputs = [item.name for item in self._session.get_outputs()]
        for name in (LOGIT_NAME, SCORE_NAME):
            if name not in outputs:
                raise InputError(f"{path}: output '{name}' is missing; it has: {', '.join(outputs)}")

    def _check_preprocessing(self, path: str) -> None:
        here = fingerprint(self.info.size)
        if here != self.info.preprocessing:
            raise InputError(
                f"{path} was trained with preprocessing {self.info.preprocessing}, this server has {here} at "
                f"{self.info.size} px: the pixels would differ and so would the scores; install the image "
                "libraries of the lock file, or export the model again here"
            )
