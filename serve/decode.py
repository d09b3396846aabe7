"""The decode pool: encoded images to pixels, in threads, since `data.image.load` releases the GIL."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from data.image import load


class DecodePool:
    """Decodes with `threads` threads to uint8[size, size, 3]. For one event loop."""

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def load(self, content: bytes) -> npt.NDArray[np.uint8]:
        """Decode one image; cancelling the wait drops the work if no thread has begun it.

        Raises:
            ImageError: the bytes are not an image that can be decoded.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, load, content, self.size)

    def close(self) -> None:
        """Drop what has not begun and end the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
