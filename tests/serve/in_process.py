"""A server in the test's own process, and what its callers do and see."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import ServerConfig
from serve.lifecycle import ScoringServer


@asynccontextmanager
async def running(model: object, started: bool = True, **options: Any) -> AsyncIterator[ScoringServer]:
    """A server on a free port, one thread unless `options` say more; `started`: with its model."""
    server = ScoringServer(
        ServerConfig(**{"threads": 1} | options, model=str(model), listen="127.0.0.1:0", device="cpu")
    )
    await server.bind()
    try:
        if started:
            await server.start()
        yield server
    finally:
        await server.stop(5)


@asynccontextmanager
async def serving(model: object, **options: Any) -> AsyncIterator[tuple[ScoringServer, grpc.aio.Channel]]:
    """A server as `running` has it, and a channel to it."""
    async with running(model, **options) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield server, channel


def score_request(*images: bytes, **fields: Any) -> pb.ScoreRequest:
    """These images, with the ids i0, i1 ..."""
    return pb.ScoreRequest(
        images=[pb.Image(id=f"i{n}", content=image) for n, image in enumerate(images)], **fields
    )


async def ask(channel: grpc.aio.Channel, *images: bytes, **options: Any) -> pb.ScoreResponse:
    """The answer to these images."""
    return await scoring_pb2_grpc.ScoringStub(channel).Score(score_request(*images), **options)


async def fails(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """The error of a call that must have one."""
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await call
    return info.value


async def code_of(call: Awaitable[object]) -> str:
    """The name of the call's status."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def until(condition: Callable[[], object]) -> None:
    """Wait; the limit of `run_async` ends what waits in vain."""
    while not condition():
        await asyncio.sleep(0.002)
