"""The engine: encoded images in, one outcome an image out. It knows nothing of gRPC.

Each image is decoded and checked before it meets others in a batch, so a bad one cannot hurt its neighbours.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from data.image import ImageError
from serve.batcher import Batcher, BatchFailed
from serve.decode import DecodePool
from serve.model import OnnxModel

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Row:
    """The answer of the model for one image: `logit` float32[C] and `score` float32[C], all finite."""

    logit: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]


class Trouble(Enum):
    """Why an image has no row; the same names as `ImageStatus.Code` in scoring.proto."""

    BAD_IMAGE = "bad image"
    TOO_LARGE = "too large"
    INFERENCE_FAILED = "inference failed"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no row, with one line for a person."""

    trouble: Trouble
    message: str


Outcome = Row | Failure


class Engine:
    """Decode pool, batcher and model together. Create it inside a running event loop.

    Args:
        model: a loaded model.
        decode_threads: how many images are decoded at once.
        max_batch: the most images in one batch of the model.
        max_delay: seconds that an image waits for company while the model is idle.
        image_bytes: the most bytes of one encoded image.
    """

    def __init__(
        self, model: OnnxModel, decode_threads: int, max_batch: int, max_delay: float, image_bytes: int
    ) -> None:
        self.model = model
        self.batcher: Batcher[Pixels, Row] = Batcher(self._run_batch, max_batch, max_delay)
        self._decoder = DecodePool(model.info.size, decode_threads)
        self._image_bytes = image_bytes

    async def score(self, contents: Sequence[bytes]) -> list[Outcome]:
        """One outcome for each encoded image, in order. Cancelling it drops all work that has not begun.

        Raises:
            BatcherClosed: the engine stopped first.
        """
        return await asyncio.gather(*(self._score_one(content) for content in contents))

    async def drain(self) -> None:
        """Finish what was taken, then end the threads."""
        await self.batcher.drain()
        self._decoder.close()

    def _run_batch(self, images: list[Pixels]) -> list[Row]:
        logit, score = self.model.run(np.stack(images))
        return [Row(*pair) for pair in zip(logit, score, strict=True)]

    async def _score_one(self, content: bytes) -> Outcome:
        if len(content) > self._image_bytes:
            return Failure(
                Trouble.TOO_LARGE,
                f"{len(content)} bytes are over the limit of {self._image_bytes} for one image "
                "(--limits.image-bytes)",
            )
        try:
            pixels = await self._decoder.load(content)
        except ImageError as error:
            return Failure(Trouble.BAD_IMAGE, str(error))
        except Exception as error:
            # A fault of a decoder on strange bytes (no memory, a bug) is still this image's alone.
            _log.exception("the decoder failed on an image of %d bytes", len(content))
            return Failure(Trouble.BAD_IMAGE, f"the decoder failed: {type(error).__name__}: {error}")
        try:
            row = await self.batcher.submit(pixels)
        except BatchFailed as error:
            return Failure(Trouble.INFERENCE_FAILED, str(error))
        if not (np.isfinite(row.logit).all() and np.isfinite(row.score).all()):
            return Failure(Trouble.INFERENCE_FAILED, "the model gave a value that is not finite")
        return row
