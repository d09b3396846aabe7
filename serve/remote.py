"""The servers as a client sees them: channels, the model behind them, calls with retries."""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc

from data.errors import InputError
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.channel import Channels
from serve.config import Connection
from serve.retry import DEADLINE_TRIES, metadata_of, pause

# A wait for the first answer that is longer than this is said.
_QUIET_S = 1.0
# How often one image is sent again where the model failed on its batch.
_INFERENCE_TRIES = 3
# A fifth of the limit of a request's bytes is left for ids and framing.
_USABLE = 4 / 5


class CallFailed(RuntimeError):
    """A call did not succeed and trying again is of no use, or went on for too long."""


class ModelChanged(RuntimeError):
    """An answer came from another model than the first one."""


@dataclass
class _Server:
    """One server. `model` is what it said of itself; None: to be asked before it gets (more) images."""

    address: str
    stubs: list[Any] = field(default_factory=list)
    model: Any = None
    calls: int = 0
    turn: int = 0
    failures: int = 0
    rests_until: float = 0.0
    rested_at: float = 0.0
    answered_calls: int = 0
    answered_images: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The `ImageResult` of one image, and which of `Servers.models` gave it."""

    result: Any
    model: int


class Servers:
    """Channels to one or several servers of the same model. An async context manager.

    Each call goes to the server with the fewest calls in flight among those that work, in turn where these are
    equal. One that fails is left alone for a while, then gets a single call; one that is full, for as long as it
    says. One that comes back is first asked for its model.

    Args:
        connection: addresses and patience.
        channels: connections to each server.
        allow_model_change: go on where another model of the same classes answers.
        pixels: images are sent as pixels, so that every model must have the same preprocessing.

    Attributes:
        models: the `GetModelResponse` of each model that has answered; the first is that of the start.
        addresses: the servers that answered at the start.
        retries: how many calls ended with which status and were tried again.
        request_images, request_bytes, image_bytes: what every server takes in one request, and as one image.
    """

    def __init__(
        self,
        connection: Connection,
        channels: int = 1,
        allow_model_change: bool = False,
        pixels: bool = False,
    ) -> None:
        self._connection, self._channels_each = connection, channels
        self._open = Channels(connection)
        self._allow_model_change, self._pixels = allow_model_change, pixels
        self._channels: list[Any] = []
        self._servers: list[_Server] = []
        self._random = random.Random()
        self._turn = 0
        self._changed = asyncio.Event()
        self.models: list[Any] = []
        self.addresses: list[str] = []
        self.retries: Counter[str] = Counter()
        self.request_images = self.request_bytes = self.image_bytes = 0

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

    @property
    def model(self) -> Any:
        """The `GetModelResponse` of the start."""
        return self.models[0]

    def account(self) -> list[dict[str, Any]]:
        """For each server its address, and how many calls and images it has answered."""
        return [
            {"address": server.address, "calls": server.answered_calls, "images": server.answered_images}
            for server in self._servers
        ]

    async def score(self, images: Sequence[Any]) -> list[Answer]:
        """Score a batch of `pb.Image`: one answer each, in order.

        A call that a server refuses or loses goes to another one, or to the same after a pause: the one that the
        server asks for, else doubling from 0.1 s. Images whose batch failed in the model are sent again a few
        times.

        Args:
            images: within `request_images` and `request_bytes`.

        Raises:
            CallFailed: the error is final, or no call succeeded within `give_up_s`.
            ModelChanged: another model answered.
        """
        answers: dict[int, Answer] = {}
        left = list(range(len(images)))
        for _ in range(_INFERENCE_TRIES):
            preprocessing = self.model.preprocessing if self._pixels else ""
            request = pb.ScoreRequest(
                images=[images[n] for n in left],
                preprocessing=preprocessing,
                model=self._connection.model,
            )
            response, model = await self._call(request)
            if [result.id for result in response.results] != [images[n].id for n in left]:
                raise CallFailed("the answer does not hold the images of the request in their order")
            answers.update(
                (n, Answer(result, model)) for n, result in zip(left, response.results, strict=True)
            )
            left = [n for n in left if answers[n].result.status.code == pb.ImageStatus.CODE_INFERENCE_FAILED]
            if not left:
                break
        return [answers[n] for n in range(len(images))]

    async def _call(self, request: Any) -> tuple[Any, int]:
        """The response, and which of `models` gave it."""
        begin = time.monotonic()
        deadlines = 0
        while True:
            server = await self._pick()
            start = time.monotonic()
            sent = False
            server.calls += 1
            try:
                if server.model is None:
                    await self._join(server)
                stub = server.stubs[server.turn % len(server.stubs)]
                server.turn += 1
                sent = True
                response = await stub.Score(
                    request, timeout=self._connection.call_s, metadata=self._open.scoring_metadata()
                )
                model = await self._model_of(server, response.model)
            except grpc.aio.AioRpcError as error:
                text = f"{server.address}: {error.code().name}: {error.details()}"
                seconds = self._rest(server, error, start)
                if seconds is None:
                    raise CallFailed(text) from error
                self.retries[error.code().name] += 1
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    deadlines += sent
                if deadlines == DEADLINE_TRIES:
                    raise CallFailed(
                        f"{deadlines} times no answer within {self._connection.call_s:g} s (--call-s) to a call "
                        f"of {len(request.images)} images; the last was {text}"
                    ) from error
                waited = time.monotonic() - begin
                if waited + seconds > self._connection.give_up_s:
                    raise CallFailed(
                        f"gave up after {waited:.0f} s, the limit is {self._connection.give_up_s:g} s "
                        f"(--give-up-s); the last answer: {text}"
                    ) from error
                continue
            finally:
                server.calls -= 1
                self._changed.set()
                self._changed = asyncio.Event()
            server.failures = 0
            server.answered_calls += 1
            server.answered_images += len(request.images)
            return response, model

    async def _pick(self) -> _Server:
        """The server for the next call; waits until one may have it."""
        count = len(self._servers)
        while True:
            now = time.monotonic()
            # After a failure one call at a time is the probe.
            free = [
                (server.calls, (place - self._turn) % count, place)
                for place, server in enumerate(self._servers)
                if server.rests_until <= now and not (server.failures and server.calls)
            ]
            if free:
                place = min(free)[2]
                self._turn = place + 1
                return self._servers[place]
            waits = [server.rests_until - now for server in self._servers if server.rests_until > now]
            try:
                async with asyncio.timeout(min(waits, default=None)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _rest(self, server: _Server, error: Any, start: float) -> float | None:
        """Leave `server` alone for as long as the error of a call begun at `start` asks for; None: it is final."""
        seconds = pause(error.code(), metadata_of(error), server.failures, self._random)
        if seconds is None:
            return None
        # The calls that were in flight when it fell fail with it: that is one failure, not many.
        if start >= server.rested_at:
            server.rested_at = time.monotonic()
            server.rests_until = server.rested_at + seconds
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                server.failures += 1
                server.model = None
        return seconds

    async def _join(self, server: _Server) -> None:
        """Ask a server that was away for its model, before it gets images."""
        answer = await self._ask(server)
        await self._model_of(server, answer.model, answer)
        limits = answer.limits
        if limits.request_images < self.request_images or limits.request_bytes * _USABLE < self.request_bytes:
            raise CallFailed(
                f"{server.address} has smaller limits than the servers of the start: it takes "
                f"{limits.request_images} images (--limits.request-images) and {limits.request_bytes} bytes "
                "(--limits.request-bytes) in one request; start the client again"
            )
        server.model = answer

    async def _model_of(self, server: _Server, ref: Any, said: Any = None) -> int:
        """Which of `models` has `ref`; `said` is the GetModelResponse with it, asked for where a new one needs it.

        Raises:
            ModelChanged: none has it, and that is not allowed or cannot be.
        """
        for place, known in enumerate(self.models):
            if known.model == ref:
                return place
        first = self.models[0]
        if not self._allow_model_change:
            raise ModelChanged(
                f"the model changed: {server.address} answers with {named(ref)}, the first answer came from "
                f"{named(first.model)}; --allow-model-change goes on and lists both in the manifest"
            )
        if said is None:
            said = await self._ask(server)
        if said.model != ref:
            raise ModelChanged(f"the model of {server.address} changes faster than it can be asked for")
        self._require_alike(server.address, said)
        for place, known in enumerate(self.models):  # another call may have been faster
            if known.model == ref:
                return place
        self.models.append(said)
        print(f"warning: {server.address} now has {named(ref)}", file=sys.stderr, flush=True)
        return len(self.models) - 1

    async def _ask(self, server: _Server) -> Any:
        seconds = min(self._connection.connect_s, self._connection.call_s)
        return await self._get_model(server, seconds)

    async def _get_model(self, server: _Server, seconds: float, wait: bool = False) -> Any:
        """`wait` for a connection; else a failure to connect is an error at once."""
        return await server.stubs[0].GetModel(
            pb.GetModelRequest(model=self._connection.model),
            timeout=seconds,
            wait_for_ready=wait,
            metadata=self._open.metadata,
        )

    def _require_alike(self, address: str, said: Any) -> None:
        """Raise `ModelChanged` where the answers of `said` cannot stand beside those of the first model."""
        first = self.models[0]
        if list(said.classes) != list(first.classes):
            raise ModelChanged(
                f"{address} now has {named(said.model)} with other classes ({len(said.classes)}, before "
                f"{len(first.classes)}); one score file holds one set of classes: choose another --out"
            )
        if self._pixels and said.preprocessing != first.preprocessing:
            raise ModelChanged(
                f"{address} now has {named(said.model)} with preprocessing {said.preprocessing}, the pixels are "
                f"made by {first.preprocessing}: use --send file"
            )

    async def _connect(self) -> None:
        addresses = self._connection.addresses()
        self._servers = [
            _Server(address, [self._stub(address) for _ in range(self._channels_each)])
            for address in addresses
        ]
        note = f"waiting for {', '.join(addresses)}, at most {self._connection.connect_s:g} s ..."
        waiting = asyncio.get_running_loop().call_later(
            _QUIET_S, lambda: print(note, file=sys.stderr, flush=True)
        )
        try:
            reasons = await asyncio.gather(*(self._first_contact(server) for server in self._servers))
        finally:
            waiting.cancel()
        present = [server for server in self._servers if server.model]
        if not present:
            listed = "; ".join(
                f"{address} {reason}" for address, reason in zip(addresses, reasons, strict=True)
            )
            raise InputError(
                f"no server is ready after {self._connection.connect_s:g} s: {listed}. Start one: "
                f"python serve/server.py --listen {addresses[0]}, or name another: --server HOST:PORT"
            )
        for server, reason in zip(self._servers, reasons, strict=True):
            if server.model is None:
                server.failures = 1
                print(
                    f"warning: going on without {server.address}: it {reason}; it gets work once it does",
                    file=sys.stderr,
                )
        self.models = [present[0].model]
        for server in present[1:]:
            if server.model.model != self.model.model and not self._allow_model_change:
                raise InputError(
                    f"the servers have different models: {present[0].address} has {named(self.model.model)}, "
                    f"{server.address} has {named(server.model.model)}; score with servers of one model, or "
                    "with --allow-model-change"
                )
            try:
                await self._model_of(server, server.model.model, server.model)
            except ModelChanged as error:
                raise InputError(str(error)) from error
        self.addresses = [server.address for server in present]
        limits = [server.model.limits for server in present]
        self.request_images = min(limit.request_images for limit in limits)
        self.request_bytes = min(int(limit.request_bytes * _USABLE) for limit in limits)
        self.image_bytes = min(limit.image_bytes for limit in limits)

    async def _first_contact(self, server: _Server) -> str:
        """Fill in the server's model; "" or why there is none."""
        end = time.monotonic() + self._connection.connect_s
        # The first try does not wait for a connection: only then gRPC tells why there is none.
        wait, silence = False, "does not answer"
        while True:
            left = max(0.05, end - time.monotonic())
            try:
                server.model = await self._get_model(server, left, wait)
                return ""
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    raise InputError(f"{server.address}: {error.details()} (--model)") from error
                if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    raise InputError(f"{server.address}: {error.code().name}: {error.details()}") from error
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    return silence
                if not wait:
                    wait, silence = True, self._silence(server.address, error) or silence
                    continue
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + 0.2 > end:
                    return f"answers {error.code().name}: {error.details()}"
                await asyncio.sleep(0.2)

    def _silence(self, address: str, error: grpc.aio.AioRpcError) -> str:
        """What a server does that cannot be connected to, or ""; raises `InputError` where it never could be."""
        try:
            return self._open.check(error.details() or "")
        except InputError as trouble:
            raise InputError(f"no connection to {address}: {trouble}") from error

    def _stub(self, address: str) -> Any:
        """A stub on a connection of its own."""
        channel = self._open.open(address)
        self._channels.append(channel)
        return scoring_pb2_grpc.ScoringStub(channel)  # type: ignore[no-untyped-call]

    async def _close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))


def named(ref: Any) -> str:
    """A model in words."""
    return f"{ref.name} version {ref.version} ({ref.hash[:16]})"
