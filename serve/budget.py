"""A bound on the bytes in flight."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """Lets work in, first come first served, while its bytes together are at most `limit`. For one event loop.

    Attributes:
        limit: bytes.
        held: bytes in flight.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Wait for room and hold `size` bytes. What is larger than the limit goes alone."""
        # The lock is fair: a large one is not passed for ever by small ones.
        async with self._turn:
            while self.held and self.held + size > self.limit:
                self._freed.clear()
                await self._freed.wait()
            self.held += size
        try:
            yield
        finally:
            self.held -= size
            self._freed.set()
