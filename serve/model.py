"""The model in the server: an ONNX Runtime session that was checked before it may serve.

Shapes: N images, C classes, S the side of the input in pixels.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
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

# The largest batch where none is asked for.
_LARGEST = {"cpu": 8, "cuda": 32}
# CPU time that a batch costs beside the model: from one to the next, through the state machine and the queue.
_HANDOVER_S = 0.0002
# Passes over the batch sizes by which the fastest is found. A model that takes more CPU time for an image than
# `_SLOW_IMAGE_S` is not timed, which would take seconds, and gets batches of up to 4.
_PASSES = 2
_SLOW_IMAGE_S = 0.1
_SLOW_LARGEST = 4


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model gave an answer: registered name and version, SHA-256 of the file."""

    name: str
    version: str
    hash: str


def buckets_up_to(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that are run: powers of two below `max_batch`, and `max_batch` itself."""
    return (*(1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch), max_batch)


def fastest_bucket(seconds: Mapping[int, float]) -> int:
    """The smallest batch size within 2 % of the least CPU time an image, from size -> CPU seconds an image.

    Small ones can be the cheapest, since their activations stay in the CPU's cache: mobilenet_v2 at 224 px took
    7.3 ms an image in batches of 2 and 8.6 in batches of 8, resnet18 36 and 35. And the smaller the batch, the
    sooner its answers.
    """
    cost = {size: an_image + _HANDOVER_S / size for size, an_image in seconds.items()}
    return min(size for size, an_image in cost.items() if an_image <= 1.02 * min(cost.values()))


class OnnxModel:
    """A checked model. `warm` it before it serves.

    A model is for one inference thread at a time: it owns the buffers that its batches are put together in.

    Args:
        source: the file, with its name and version where it comes from the registry.
        device: "auto", "cpu" or "cuda".
        threads: threads of one inference on the CPU.
        max_batch: the largest batch; 0: on CUDA 32, on the CPU what `warm` finds to be fastest, at most 8.

    Attributes:
        info: the metadata of the file.
        ref: name, version and hash.
        device: what it runs on.
        buckets: the batch sizes that are run.
        seconds_an_image: as measured by `warm` with the largest bucket.

    Raises:
        InputError: not a model file of ours, or made with another preprocessing than this server has, or CUDA
            was asked for and does not work.
    """

    device: Device
    info: ModelInfo

    def __init__(self, source: ModelSource, device: str, threads: int, max_batch: int = 1) -> None:
        self._source, self._wanted, self._threads = source, device, threads
        session, self.device = open_session(source.path, device, threads)
        self._session: Any = session
        self.info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, str(source.path))
        digest = hashlib.sha256(source.path.read_bytes()).hexdigest()
        self.ref = ModelRef(source.name or self.info.name, source.version, digest)
        self._check_signature(str(source.path))
        self._check_preprocessing(str(source.path))
        if not self.info.golden_logit:
            raise InputError(f"{source.path} has no golden image to be checked with; export it again")
        self._choose = max_batch == 0 and self.device.name == "cpu"
        self.buckets = buckets_up_to(max_batch or _LARGEST[self.device.name])
        side = self.info.size
        self._buffers = {size: np.zeros((size, side, side, 3), dtype=np.uint8) for size in self.buckets}
        self._bound: dict[int, BoundBatch] = {}
        if self.device.name == "cuda":
            self._bound = {
                size: BoundBatch(session, "cuda", buffer) for size, buffer in self._buffers.items()
            }
        self.seconds_an_image = 0.0

    def fill(self, bucket: int, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Put 1 to `bucket` images uint8[S, S, 3] into the bucket's buffer, which is overwritten by the next call."""
        buffer = self._buffers[bucket]
        for row, pixels in enumerate(images):
            buffer[row] = pixels
        return buffer

    def run(self, images: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Score a batch: uint8[N, S, S, 3] -> logit float32[N, C], score float32[N, C]."""
        bound = self._bound.get(len(images))
        if bound and images is self._buffers[len(images)]:
            return bound.run()
        logit, score = self._session.run([LOGIT_NAME, SCORE_NAME], {INPUT_NAME: images})
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
        began, spent = time.monotonic(), time.process_time()
        self.run(self._buffers[1])
        self.seconds_an_image = time.monotonic() - began
        if self._choose:
            slow = time.process_time() - spent > _SLOW_IMAGE_S
            best = _SLOW_LARGEST if slow else fastest_bucket(self._time_buckets())
            self.buckets = tuple(bucket for bucket in self.buckets if bucket <= best)

    def _time_buckets(self) -> dict[int, float]:
        """CPU seconds an image with each bucket. Not wall time, which other programs on the machine change.

        All buckets score as many images, so that each is as likely to be interrupted.
        """
        images = self.buckets[-1]
        seconds = dict.fromkeys(self.buckets, math.inf)
        for _ in range(_PASSES):
            for bucket in self.buckets:
                began = time.process_time()
                for _ in range(images // bucket):
                    self.run(self._buffers[bucket])
                spent = (time.process_time() - began) / (images // bucket * bucket)
                seconds[bucket] = min(seconds[bucket], spent)
        return seconds

    def check_golden(self) -> None:
        """Score the golden image. Raises `InputError` where its logits differ from those in the file."""
        info = self.info
        logit, score = self.run(self.fill(1, [golden_image(info.size, info.golden_seed)]))
        self._check_outputs(1, (logit, score))
        difference = float(np.abs(logit[0] - np.array(info.golden_logit)).max())
        if not difference <= info.golden_tolerance:
            raise InputError(
                f"{self._source.path}: the golden image's logits differ by {difference:.2e} from those in the file "
                f"(at most {info.golden_tolerance:g} are allowed): the file, ONNX Runtime or the device is broken; "
                "export the model again, or try --device cpu"
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
