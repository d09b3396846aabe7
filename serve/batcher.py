"""Micro-batching across requests: single items in, one result an item out, in batches of what waits.

Two parts, neither of which knows gRPC or ONNX:

- `BatchQueue`: what waits and when a batch is due. It has no clock, thread or future: time is an argument.
- `Batcher`: drives it on an event loop and runs the batch function in one thread.

An item is waiting, then running, then answered; a cancelled item goes from waiting to answered at once and
never runs. Whatever happens, every item is answered exactly once: with its result, with `BatchFailed`
where the batch function raised, with `BatcherClosed` where the batcher stopped, or by its own cancellation.
A deadline is a cancellation by the caller (`asyncio.timeout`).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from data.errors import InputError

In = TypeVar("In")
Out = TypeVar("Out")
Entry = TypeVar("Entry")


class BatchFailed(RuntimeError):
    """The batch function raised on the batch that held this item. Trying again may help."""


class BatcherClosed(RuntimeError):
    """The batcher takes nothing more: it is draining, or its worker has ended."""


class BatchQueue(Generic[Entry]):
    """What waits, oldest first, and when the next batch is due.

    A batch is due at once when `max_batch` entries wait or when draining, otherwise when the oldest has
    waited `max_delay` seconds.
    """

    def __init__(self, max_batch: int, max_delay: float) -> None:
        if max_batch < 1:
            raise InputError(f"max_batch must be at least 1, got {max_batch}")
        if not 0 <= max_delay < 60:
            raise InputError(f"max_delay must be from 0 to 60 s, got {max_delay}")
        self.max_batch, self.max_delay = max_batch, max_delay
        self.draining = False
        # A dict keeps the order of arrival and drops a cancelled entry in constant time.
        self._waiting: dict[Entry, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, entry: Entry, now: float) -> None:
        """Let `entry` wait. Raises `BatcherClosed` when draining."""
        if self.draining:
            raise BatcherClosed("the batcher is draining and takes nothing more")
        self._waiting[entry] = now

    def discard(self, entry: Entry) -> None:
        """Forget `entry` where it still waits."""
        self._waiting.pop(entry, None)

    def due_at(self) -> float | None:
        """The time from which `take` gives a batch; None when nothing waits."""
        if not self._waiting:
            return None
        oldest = next(iter(self._waiting.values()))
        return oldest if self.draining or len(self) >= self.max_batch else oldest + self.max_delay

    def take(self) -> list[Entry]:
        """Remove and return the oldest entries, at most `max_batch`."""
        batch = [entry for entry, _ in zip(self._waiting, range(self.max_batch), strict=False)]
        for entry in batch:
            del self._waiting[entry]
        return batch

    def drain(self) -> None:
        """Refuse what is new; what waits is due at once."""
        self.draining = True


@dataclass(eq=False, slots=True)
class _Member(Generic[In, Out]):
    payload: In
    future: "asyncio.Future[Out]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher(Generic[In, Out]):
    """Gathers items from many callers into batches and runs them one batch at a time.

    Args:
        run_batch: takes 1 to `max_batch` items, returns one result an item, in order. Called in one thread
            of its own, so it may block; it should release the GIL.
        max_batch: the most items in a batch.
        max_delay: seconds that the oldest item waits for company while the thread is idle.

    Create it inside a running event loop. All methods are for that loop's thread.
    """

    def __init__(
        self, run_batch: Callable[[list[In]], Sequence[Out]], max_batch: int, max_delay: float
    ) -> None:
        self._run_batch = run_batch
        self._queue: BatchQueue[_Member[In, Out]] = BatchQueue(max_batch, max_delay)
        self._running: list[_Member[In, Out]] = []
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._worker = asyncio.create_task(self._work(), name="batcher")
        self._worker.add_done_callback(self._end)

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Items of the batch that runs now."""
        return len(self._running)

    async def submit(self, payload: In) -> Out:
        """Wait for the result of one item; cancelling the wait drops the item if it does not run yet.

        Raises:
            BatchFailed: the batch function raised.
            BatcherClosed: the batcher stopped before the item had its result.
        """
        member: _Member[In, Out] = _Member(payload)
        self._queue.add(member, time.monotonic())
        self._changed.set()
        try:
            return await member.future
        finally:
            self._queue.discard(member)

    async def drain(self) -> None:
        """Refuse new items, answer all that were taken, and end the thread."""
        self._queue.drain()
        self._changed.set()
        await asyncio.wait([self._worker])

    async def wait_ended(self) -> BaseException | None:
        """Wait until the worker has ended; the error that ended it, or None after a drain."""
        await asyncio.wait([self._worker])
        return asyncio.CancelledError() if self._worker.cancelled() else self._worker.exception()

    async def _work(self) -> None:
        while batch := await self._next_batch():
            self._running = batch
            await self._answer(batch)
            self._running = []

    def _end(self, worker: "asyncio.Task[None]") -> None:
        """Runs when the worker has ended, in whatever way; nobody may wait for an answer that cannot come.

        A callback and not a `finally` in `_work`: a task cancelled before its first step runs no line of it.
        """
        self._queue.drain()
        left, self._running = self._running, []
        while waiting := self._queue.take():
            left += waiting
        for member in left:
            _fail(member, BatcherClosed("the inference worker has ended"))
        self._thread.shutdown(wait=False)

    async def _next_batch(self) -> list[_Member[In, Out]]:
        """The next batch once it is due; empty when drained."""
        while True:
            due = self._queue.due_at()
            if due is None and self._queue.draining:
                return []
            delay = None if due is None else due - time.monotonic()
            if delay is not None and delay <= 0:
                return self._queue.take()
            self._changed.clear()
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _answer(self, batch: list[_Member[In, Out]]) -> None:
        """Run one batch and answer every member."""
        loop = asyncio.get_running_loop()
        payloads = [member.payload for member in batch]
        results, error = await loop.run_in_executor(self._thread, self._guarded, payloads)
        if error is not None:
            for member in batch:
                # One exception object each: a traceback grows every time that one is raised.
                _fail(member, BatchFailed(error))
            return
        for member, result in zip(batch, results, strict=True):
            if not member.future.done():
                member.future.set_result(result)

    def _guarded(self, payloads: list[In]) -> tuple[Sequence[Out], str | None]:
        """Run in the thread: the results, or why there are none. Never raises, whatever the function does."""
        try:
            results = self._run_batch(payloads)
            if len(results) != len(payloads):
                return (), f"the model gave {len(results)} results for {len(payloads)} items"
        except BaseException as error:  # SystemExit too: raised through the loop it would end the server
            return (), f"{type(error).__name__}: {error}"
        return results, None


def _fail(member: _Member[In, Out], error: Exception) -> None:
    if not member.future.done():
        member.future.set_exception(error)
