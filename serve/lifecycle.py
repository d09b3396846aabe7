"""The life of the server: bind, load, warm, serve, drain, stop.

NOT_SERVING until the model is warm and from the first moment of the drain; SERVING between the two.
"""

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from data.errors import InputError
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.admission import Admission
from serve.config import ServerConfig, cores, parse_address
from serve.engine import Engine
from serve.model import OnnxModel
from serve.registry import open_source
from serve.servicer import SERVICE, ScoringServicer

# After the last answer new calls are still refused in words (UNAVAILABLE) for this long. Once gRPC's own stop
# begins, a call that is on its way gets a bare CANCELLED, which a caller would not try again.
_REFUSING_S = 0.2
# Once all accepted work is answered, what is left are streams that never end by themselves (health Watch).
_STREAMS_GRACE_S = 0.5


class ScoringServer:
    """The gRPC server with its engine. Create it inside a running event loop.

    Attributes:
        address: HOST:PORT with the real port, once bound.
        admission: the counters.
        engine: None until started.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.admission = Admission(config.limits)
        self.engine: Engine | None = None
        self.address = ""
        self._servicer = ScoringServicer(self.admission, config.limits)
        self._health: Any = health.aio.HealthServicer()
        # Twice the limit, so that a message just above it is refused in our words, with the option to change;
        # further above gRPC refuses it before it is in memory.
        longest = min(2 * config.limits.request_bytes, 2**31 - 1)
        self._server = grpc.aio.server(
            options=[
                # With SO_REUSEPORT a second server on the same port would start and take half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", longest),
                ("grpc.max_send_message_length", -1),
            ]
        )
        scoring_pb2_grpc.add_ScoringServicer_to_server(self._servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def bind(self) -> str:
        """Take the port and answer health checks with NOT_SERVING. Raises `InputError` for a port in use."""
        host, port = parse_address(self.config.listen, "--listen")
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            _try_port(host, port)
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(
                f"cannot listen on {self.config.listen}: {reason}; choose another with --listen HOST:PORT "
                "(port 0 takes any free one)"
            ) from error
        await self._server.start()
        self.address = f"{host}:{bound}"
        return self.address

    async def start(self) -> None:
        """Load and warm the model, then serve. Raises `InputError` as `OnnxModel` does."""
        config = self.config
        model = await _load_in_thread(config)
        self.engine = Engine(
            model,
            decode_threads=config.decode_threads or cores(),
            max_batch=config.max_batch,
            max_delay=config.max_delay_ms / 1000,
            image_bytes=config.limits.image_bytes,
        )
        self._servicer.engine = self.engine
        self.admission.open()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def wait_broken(self) -> str:
        """Wait until the inference worker has ended by itself, which it should never; says why."""
        if self.engine is None:
            raise RuntimeError("wait_broken is for a started server")
        error = await self.engine.batcher.wait_ended()
        return f"the inference worker has ended: {error!r}"

    async def stop(self, grace: float) -> int:
        """Refuse what is new, answer what was accepted within `grace` seconds, and end.

        Returns the number of accepted requests that were cut off.
        """
        await self._health.enter_graceful_shutdown()
        self.admission.close("the server is stopping; try another, or again later")
        try:
            async with asyncio.timeout(grace):
                await self.admission.wait_idle()
                await asyncio.sleep(_REFUSING_S)
        except TimeoutError:
            lost = self.admission.requests
            await self._server.stop(0)
        else:
            lost = 0
            await self._server.stop(_STREAMS_GRACE_S)
        if self.engine:
            await self.engine.drain()
        return lost

    async def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _try_port(host: str, port: int) -> None:
    """Bind for a moment, for the reason in an OSError: gRPC gives none, and logs lines of its own."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


async def _load_in_thread(config: ServerConfig) -> OnnxModel:
    """`_load` in a daemon thread, which does not hold up the end of the process as a pool's thread would.

    A registry that does not answer can take minutes, and SIGTERM must not wait for it.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[OnnxModel] = loop.create_future()

    def settle(model: OnnxModel | None, error: Exception | None) -> None:
        if loaded.done():  # cancelled meanwhile
            return
        if model is None:
            loaded.set_exception(error or RuntimeError("no model"))
        else:
            loaded.set_result(model)

    def work() -> None:
        outcome: tuple[OnnxModel | None, Exception | None]
        try:
            outcome = _load(config), None
        except Exception as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, name="load", daemon=True).start()
    return await loaded


def _load(config: ServerConfig) -> OnnxModel:
    with open_source(config.model) as source:
        model = OnnxModel(source, config.device, config.threads or cores())
    model.warm(config.max_batch)
    return model


def banner(server: ScoringServer) -> str:
    """What serves and on what, for a person."""
    if server.engine is None:
        raise RuntimeError("the banner is for a started server")
    config, model, limits = server.config, server.engine.model, server.config.limits
    threads = f"inference {config.threads or cores()}, decode {config.decode_threads or cores()}"
    mib = 1 << 20
    return "\n".join(
        (
            f"model    {model.ref.name} version {model.ref.version}, sha256 {model.ref.hash[:16]}, "
            f"{len(model.info.classes)} classes, {model.info.size} px ({model.info.name})",
            f"device   {model.device.name} ({model.device.reason})",
            f"threads  {threads}; batches of at most {config.max_batch} images, waiting at most "
            f"{config.max_delay_ms:g} ms",
            f"limits   request: {limits.request_images} images, {limits.request_bytes / mib:g} MiB; image: "
            f"{limits.image_bytes / mib:g} MiB; in flight: {limits.inflight_requests} requests, "
            f"{limits.inflight_images} images, {limits.inflight_bytes / mib:g} MiB",
        )
    )


async def serve(config: ServerConfig, say_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; a second one stops at once. Returns the exit code.

    `say_ready` gets HOST:PORT once the server serves.
    """
    config.check()
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = ScoringServer(config)
    await server.bind()
    signalled = asyncio.create_task(signals.get())
    starting = asyncio.create_task(server.start())
    await asyncio.wait((signalled, starting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await server.stop(0)
        return 0
    try:
        await starting
    except BaseException:
        await server.stop(0)
        raise
    _say(banner(server))
    say_ready(server.address)
    broken = asyncio.create_task(server.wait_broken())
    await asyncio.wait((signalled, broken), return_when=asyncio.FIRST_COMPLETED)
    if broken.done():
        _say(f"error: {broken.result()}; stopping")
        await server.stop(0)
        return 1
    _say(f"{signalled.result().name}: answering what was accepted, for at most {config.grace_s:g} s")
    hurry = asyncio.create_task(signals.get())
    stopping = asyncio.create_task(server.stop(config.grace_s))
    await asyncio.wait((stopping, hurry), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
        lost = server.admission.requests
        await server.stop(0)
    else:
        lost = await stopping
    hurry.cancel()
    _say(f"stopped: {server.admission.admitted} requests accepted, {lost} cut off")
    return 1 if lost else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
