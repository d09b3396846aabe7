"""The servers as a client sees them: channels, the model behind them, calls with retries."""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc

from data.errors import InputError
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import Connection
from serve.errors import PUSHBACK_KEY

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
# A wait for the first answer that is longer than this is said.
_QUIET_S = 1.0
# How often one image is sent again where the model failed on its batch.
_INFERENCE_TRIES = 3
# CANCELLED from outside is a server that was stopped in the middle of the call.
_RETRYABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


class CallFailed(RuntimeError):
    """A call did not succeed and trying again is of no use, or went on for too long."""


class ModelChanged(RuntimeError):
    """An answer came from another model than the first one."""


class Servers:
    """Channels to one or several servers of the same model. An async context manager.

    Args:
        connection: addresses and patience.
        channels: connections to each server.

    Attributes:
        model: the `GetModelResponse` of the servers, once entered.
        addresses: the servers that answered.
    """

    def __init__(self, connection: Connection, channels: int = 1) -> None:
        self._connection = connection
        self._channels_each = channels
        self._channels: list[Any] = []
        self._stubs: list[tuple[str, Any]] = []
        self._random = random.Random()
        self.model: Any = None
        self.addresses: list[str] = []

    async def __aenter__(self) -> "Servers":
        try:
            await self._connect()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def score(self, first: int, images: Sequence[tuple[str, bytes]]) -> list[Any]:
        """Score a batch: one `ImageResult` for each (id, bytes), in order.

        A call that a server refuses or loses goes to the next channel after a pause: the one that the server
        asks for, else doubling from 0.1 s. Images whose batch failed in the model are sent again a few times.

        Args:
            first: which channel to begin with.
            images: within the servers' limits.

        Raises:
            CallFailed: the error is final, or no call succeeded within `give_up_s`.
            ModelChanged: another model answered.
        """
        results: dict[str, Any] = {}
        left = list(images)
        for _ in range(_INFERENCE_TRIES):
            request = pb.ScoreRequest(images=[pb.Image(id=name, content=content) for name, content in left])
            response = await self._call(first, request)
            if [result.id for result in response.results] != [name for name, _ in left]:
                raise CallFailed("the answer does not hold the images of the request in their order")
            results.update((result.id, result) for result in response.results)
            failed = {
                result.id
                for result in response.results
                if result.status.code == pb.ImageStatus.CODE_INFERENCE_FAILED
            }
            left = [image for image in left if image[0] in failed]
            if not left:
                break
        return [results[name] for name, _ in images]

    async def _call(self, first: int, request: Any) -> Any:
        start = time.monotonic()
        attempt = 0
        while True:
            address, stub = self._stubs[(first + attempt) % len(self._stubs)]
            try:
                response = await stub.Score(request, timeout=self._connection.call_s)
            except grpc.aio.AioRpcError as error:
                pause = self._pause(error, attempt)
                text = f"{address}: {error.code().name}: {error.details()}"
                if pause is None:
                    raise CallFailed(text) from error
                waited = time.monotonic() - start
                if waited + pause > self._connection.give_up_s:
                    raise CallFailed(
                        f"gave up after {waited:.0f} s (--give-up-s); the last answer: {text}"
                    ) from error
                attempt += 1
                await asyncio.sleep(pause)
                continue
            if response.model.hash != self.model.model.hash:
                raise ModelChanged(
                    f"the model changed: {address} answers with {_named(response.model)}, the first answer "
                    f"came from {_named(self.model.model)}"
                )
            return response

    def _pause(self, error: Any, attempt: int) -> float | None:
        """Seconds to wait before the next attempt; None where another is of no use."""
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Without a pushback it is gRPC's own word for a message that is too long: it would never pass.
            told = dict(error.trailing_metadata() or ()).get(PUSHBACK_KEY)
            # Spread by half, or all refused callers would be back at the same moment.
            return int(told) / 1000 * self._random.uniform(1, 1.5) if told is not None else None
        if error.code() in _RETRYABLE:
            longest: float = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(attempt, 16))
            return self._random.uniform(0.5, 1) * longest
        return None

    async def _connect(self) -> None:
        addresses = self._connection.addresses()
        note = f"waiting for {', '.join(addresses)}, at most {self._connection.connect_s:g} s ..."
        waiting = asyncio.get_running_loop().call_later(
            _QUIET_S, lambda: print(note, file=sys.stderr, flush=True)
        )
        answers = await asyncio.gather(*(self._first_contact(address) for address in addresses))
        waiting.cancel()
        present = [(address, answer) for address, answer in zip(addresses, answers, strict=True) if answer[0]]
        if not present:
            reasons = "; ".join(
                f"{address} {answer[1]}" for address, answer in zip(addresses, answers, strict=True)
            )
            raise InputError(
                f"no server is ready after {self._connection.connect_s:g} s: {reasons}. Start one: "
                f"python serve/server.py --listen {addresses[0]}, or name another: --server HOST:PORT"
            )
        for address, (answer, reason) in zip(addresses, answers, strict=True):
            if answer is None:
                print(f"warning: going on without {address}: it {reason}", file=sys.stderr)
        self.model = present[0][1][0]
        for address, (answer, _) in present[1:]:
            if answer.model.hash != self.model.model.hash:
                raise InputError(
                    f"the servers have different models: {present[0][0]} has {_named(self.model.model)}, "
                    f"{address} has {_named(answer.model)}; score with servers of one model"
                )
        self.addresses = [address for address, _ in present]
        # Neighbouring stubs belong to different servers, so that a retry goes to another one.
        for _ in range(self._channels_each):
            for address in self.addresses:
                self._stubs.append((address, self._stub(address)))

    async def _first_contact(self, address: str) -> tuple[Any, str]:
        """The server's model, or None and why there is none."""
        stub = self._stub(address)
        end = time.monotonic() + self._connection.connect_s
        while True:
            left = max(0.05, end - time.monotonic())
            try:
                return await stub.GetModel(pb.GetModelRequest(), timeout=left, wait_for_ready=True), ""
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    return None, "does not answer"
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + 0.2 > end:
                    return None, f"answers {error.code().name}: {error.details()}"
                await asyncio.sleep(0.2)

    def _stub(self, address: str) -> Any:
        """A stub on a connection of its own."""
        channel = grpc.aio.insecure_channel(
            address,
            options=[
                # Without a pool of its own a second channel would share the first one's connection.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                # A server that restarts is found again within 2 s rather than 2 minutes.
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )
        self._channels.append(channel)
        return scoring_pb2_grpc.ScoringStub(channel)  # type: ignore[no-untyped-call]

    async def _close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))


def _named(ref: Any) -> str:
    return f"{ref.name} version {ref.version} ({ref.hash[:16]})"
