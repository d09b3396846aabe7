"""Admission: how much work the server takes at once, by its own counters.

gRPC's `maximum_concurrent_rpcs` counts calls only and sheds health checks with the rest; this counts
requests, images and bytes, and guards scoring alone.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve.config import Limits
from serve.faults import NotAccepting, ServerFull


class Admission:
    """Counts what is in flight and refuses what does not fit. For one event loop's thread.

    Attributes:
        requests, images, size: what is in flight; `size` in bytes.
        admitted: requests let in since the start.
        closed: why nothing is let in, or "" when open.
        resident: bytes of memory that the process held when it was last looked at; 0 without --limits.memory.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = self.images = self.size = self.admitted = self.resident = 0
        self.closed = "the model is loading; try again in a few seconds"
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self) -> None:
        """Let requests in."""
        self.closed = ""

    def close(self, reason: str) -> None:
        """Let nothing more in; what is in flight goes on."""
        self.closed = reason

    def refusal(self, images: int, bytes: int) -> NotAccepting | ServerFull | None:
        """Why a request of `images` images and `bytes` bytes cannot be let in; None where it can."""
        if self.closed:
            return NotAccepting(self.closed)
        limits = self._limits
        for what, held, more, limit in (
            ("requests", self.requests, 1, limits.inflight_requests),
            ("images", self.images, images, limits.inflight_images),
            ("bytes", self.size, bytes, limits.inflight_bytes),
        ):
            if held + more > limit:
                return ServerFull(
                    f"the server is full: {held} {what} in flight and {more} more would pass the limit of "
                    f"{limit} (--limits.inflight-{what}); try again in {limits.pushback_ms} ms",
                    limits.pushback_ms,
                    what,
                )
        if self.resident > limits.memory > 0:
            return ServerFull(
                f"the server is full: it holds {self.resident} bytes of memory, and the limit is {limits.memory} "
                f"(--limits.memory); try again in {limits.pushback_ms} ms",
                limits.pushback_ms,
                "memory",
            )
        return None

    @contextmanager
    def admit(self, images: int, bytes: int) -> Iterator[None]:
        """Hold a place for one request of `images` images and `bytes` bytes.

        Raises:
            NotAccepting: the server is loading or stopping.
            ServerFull: the request does not fit beside what is in flight.
        """
        refusal = self.refusal(images, bytes)
        if refusal:
            raise refusal
        self.requests += 1
        self.images += images
        self.size += bytes
        self.admitted += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.requests -= 1
            self.images -= images
            self.size -= bytes
            if not self.requests:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()
