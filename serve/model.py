"""The model in the server: an ONNX Runtime session that was checked before it may serve.

Shapes: N images, C classes, S the side of the input in pixels.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from data.golden import golden_image
from data.image import fingerprint
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from serve.device import BoundBatch, Device, Floats, open_session
from serve.registry import ModelSource

# The largest batch where none is asked for. On the CPU, with one thread a batch, its size hardly matters: CPU ms an
# image with decode, of batches of 1, 2, 4, 8: mobilenet_v2 10.2, 9.9, 10.1, 10.4; resnet18 37.1, 36.9, 36.4, 36.6.
# Four halves the hand-overs of two; the answers of eight would come later.
_LARGEST = {"cpu": 4, "cuda": 32}

# Words of an error of ONNX Runtime that another day, or another machine, may not have.
_NOT_THE_FILE = ("lloc", "memory", "CUDA", "CUDNN")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model gave an answer: registered name and version, SHA-256 of the file."""

    name: str
    version: str
    hash: str


def buckets_up_to(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that are run: powers of two below `max_batch`, and `max_batch` itself."""
    return (*(1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch), max_batch)


class OnnxModel:
    """A checked model. `warm` it before it serves.

    On the CPU it runs `runners` batches at once, each on one thread of its own; one image alone may have a second
    session whose threads share the work. The weights are then in memory twice, since ONNX Runtime lays them out for
    each session (resnet18: 45 MB more). On CUDA it is for one thread at a time, and owns a session and a buffer for
    each size of batch (resnet50, six sizes: 3.8 GB of the GPU's memory on an H200, 0.8 of them for the first).

    Args:
        source: the file, with its name and version where it comes from the registry.
        device: "auto", "cpu" or "cuda".
        threads: cores for inference on the CPU.
        max_batch: the largest batch; 0: on CUDA 32, on the CPU 4.

    Attributes:
        info: the metadata of the file.
        ref: name, version and hash.
        device: what it runs on.
        buckets: the batch sizes that are run.
        runners: how many batches may be run at once.
        seconds_an_image: with all runners busy, as estimated by `warm`.

    Raises:
        InputError: not a model file of ours, or made with another preprocessing than this server has, or CUDA
            was asked for and does not work.
    """

    device: Device
    info: ModelInfo

    def __init__(self, source: ModelSource, device: str, threads: int, max_batch: int = 1) -> None:
        self._source, self._wanted, self._threads = source, device, threads
        session, self.device = open_session(source.path, device, 1)
        self._session: Any = session
        try:
            metadata = session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise InputError(f"{source.path} is damaged: its metadata is no text ({error})") from error
        self.info = ModelInfo.from_metadata(metadata, str(source.path))
        digest = hashlib.sha256(source.path.read_bytes()).hexdigest()
        self.ref = ModelRef(source.name or self.info.name, source.version, digest)
        self._check_signature(str(source.path))
        self._check_preprocessing(str(source.path))
        if not self.info.golden_logit:
            raise InputError(f"{source.path} has no golden image to be checked with; export it again")
        self.runners = threads if self.device.name == "cpu" else 1
        self._wide = open_session(source.path, "cpu", threads)[0] if self.runners > 1 else session
        self.buckets = buckets_up_to(max_batch or _LARGEST[self.device.name])
        side = self.info.size
        self._buffers: dict[int, npt.NDArray[np.uint8]] = {}
        self._bound: dict[int, BoundBatch] = {}
        if self.device.name == "cuda":
            self._buffers = {size: np.zeros((size, side, side, 3), dtype=np.uint8) for size in self.buckets}
            # A session for each: its CUDA provider plans every convolution anew whenever the size of the batch is
            # another than the last. (resnet50 on an H200: 8 images 4.9 ms, 139 after a batch of 16; in float16 250.)
            self._bound = {
                size: BoundBatch(
                    session if size == 1 else open_session(source.path, "cuda", 1)[0], "cuda", buffer
                )
                for size, buffer in self._buffers.items()
            }
        self.seconds_an_image = 0.0

    def fill(self, bucket: int, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """1 to `bucket` images uint8[S, S, 3] as a batch. On CUDA in a buffer that the next call overwrites."""
        buffer = self._buffers.get(bucket)
        if buffer is None:
            if len(images) == bucket:
                return images[0][None] if bucket == 1 else np.stack(images)
            buffer = np.zeros((bucket, *images[0].shape), dtype=np.uint8)
        for row, pixels in enumerate(images):
            buffer[row] = pixels
        return buffer

    def run(self, images: npt.NDArray[np.uint8], alone: bool = False) -> tuple[Floats, Floats]:
        """Score a batch: uint8[N, S, S, 3] -> logit float32[N, C], score float32[N, C].

        `alone` says that nothing else wants the cores: on the CPU all of them then work on it.
        """
        bound = self._bound.get(len(images))
        if bound and images is self._buffers[len(images)]:
            return bound.run()
        session = self._wide if alone else self._session
        logit, score = session.run([LOGIT_NAME, SCORE_NAME], {INPUT_NAME: images})
        return logit, score

    def warm(self) -> None:
        """Check the golden image, then run every bucket, so that no caller pays for the first time.

        Raises:
            InputError: the outputs have another shape than the metadata says, or are not finite, or the golden
                image has other logits than it had in the export.
        """
        self.check_golden()
        image = golden_image(self.info.size, self.info.golden_seed)
        for bucket in self.buckets:
            self._check_outputs(bucket, self.run(self.fill(bucket, [image] * bucket)))
        began = time.monotonic()
        self.run(self.fill(1, [image]))
        self.seconds_an_image = (time.monotonic() - began) / self.runners

    def check_golden(self) -> None:
        """Score the golden image. Raises `InputError` where its logits differ from those in the file."""
        info = self.info
        for alone in (False, True):
            image = self.fill(1, [golden_image(info.size, info.golden_seed)])
            try:
                logit, score = self.run(image, alone)
            except Exception as error:  # those of ONNX Runtime have no common base but this
                if any(word in str(error) for word in _NOT_THE_FILE):
                    raise
                words = " ".join(str(error).split())
                raise InputError(
                    f"{self._source.path} is damaged: its golden image cannot be run: {words}"
                ) from error
            self._check_outputs(1, (logit, score))
            difference = float(np.abs(logit[0] - np.array(info.golden_logit)).max())
            if not difference <= info.golden_tolerance:
                raise InputError(
                    f"{self._source.path}: the golden image's logits differ by {difference:.2e} from those in the "
                    f"file (at most {info.golden_tolerance:g} are allowed): the file, ONNX Runtime or the device is "
                    "broken; export the model again, or try --device cpu"
                )

    def reopen(self) -> "OnnxModel":
        """The same model in a new session, warm, with buffers of its own. Raises as `OnnxModel` and `warm`."""
        model = OnnxModel(self._source, self._wanted, self._threads, self.buckets[-1])
        if model.ref != self.ref:
            raise InputError(
                f"{self._source.path} is another file now: {model.ref.hash} in place of {self.ref.hash}"
            )
        model.warm()
        return model

    def _check_outputs(self, count: int, outputs: tuple[Floats, Floats]) -> None:
        classes = len(self.info.classes)
        for name, values in zip((LOGIT_NAME, SCORE_NAME), outputs, strict=True):
            if values.shape != (count, classes) or values.dtype != np.float32:
                raise InputError(
                    f"the model's output '{name}' must be float32[{count}, {classes}], as its "
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
