"""One stream with many requests at the same time: read, answer, write in the order of the requests. No gRPC here.

Triton writes the answers of a model with one answer a request in that order too, so a caller need not match ids.
Only the writing waits for its turn: a request is worked on as soon as it is read.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


async def answer_in_order(
    requests: AsyncIterable[In],
    answer: Callable[[In], Coroutine[Any, Any, Out]],
    write: Callable[[Out], Awaitable[None]],
    inflight: int,
) -> None:
    """Write one answer for each request, in order, until `requests` ends.

    At most `inflight` are read and not yet written: beyond that the stream is not read, and the caller's writes
    wait in the transport. Cancelling this cancels all that is in flight, and returns when it has ended.
    """
    places = asyncio.Semaphore(inflight)
    answers: asyncio.Queue[asyncio.Task[Out] | None] = asyncio.Queue()

    async def read() -> None:
        await places.acquire()
        async for request in requests:
            answers.put_nowait(group.create_task(answer(request)))
            await places.acquire()
        answers.put_nowait(None)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        while task := await answers.get():
            await write(await task)
            places.release()
