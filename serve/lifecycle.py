"""The life of the server: bind, load, warm, serve, drain, stop.

NOT_SERVING until the model is warm and from the first moment of the drain; SERVING between the two.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from data.errors import InputError
from serve.admission import Admission
from serve.calls import Calls
from serve.config import ServerConfig, cores, parse_address
from serve.decode import DecodePool
from serve.follow import Follower, Following
from serve.inference_reflection import ReflectionPool
from serve.inference_service import INFERENCE_SERVICE, add_inference_service
from serve.keepalive import server_keepalive
from serve.loading import LoadedModel, Loader, load_model
from serve.log_lines import set_up
from serve.memory import MemoryGuard
from serve.registry import follows_alias, is_fetched, split_models
from serve.security import Security, channel_limits
from serve.service import Models
from serve.servicer import SERVICE, add_scoring_service
from serve.standard import CarefulServer, HealthServicer
from serve.telemetry import TelemetryOutputs
from serve.worker import InferenceWorker

_log = logging.getLogger(__name__)

# After the last answer new calls are still refused in words (UNAVAILABLE) for this long. Once gRPC's own stop
# begins, a call that is on its way gets a bare CANCELLED, which a caller would not try again.
_REFUSING_S = 0.2
# Once all accepted work is answered, what is left are streams that never end by themselves (health Watch).
_STREAMS_GRACE_S = 0.5
# What a thread in the middle of a batch or of a decode gets to come back, when the server stops.
_THREADS_GRACE_S = 0.2
# How often the worker is looked after. What a caller or a load balancer sees of a death is at most this late.
_TICK_S = 0.5
_STATUS = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class ScoringServer:
    """The gRPC server with its engine. Create it inside a running event loop.

    Attributes:
        address: HOST:PORT with the real port, once bound.
        admission: the counters.
        models: empty until started.
        calls: what became of the calls.
        telemetry: metrics, traces and the access log.
        security: TLS and tokens.
        following: changes models whose alias has moved.
        worker: the inference worker of all models.
        ended: whether all threads had ended at the end of `stop`; one in the middle of a batch can't be ended.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.admission = Admission(config.limits)
        self.models = Models()
        self.calls = Calls()
        self.telemetry = TelemetryOutputs(config.telemetry, self.calls)
        self.security = Security(config, self.calls)
        self._memory = MemoryGuard(config.limits.memory, self.admission)
        self.address = ""
        self.worker = InferenceWorker(config.stall_s)
        self.ended = False
        self._pool = DecodePool(config.decode_threads or cores())
        self._loader = Loader()
        # Of models from MLflow, each in a folder of its own. One for all, to be removed even where SIGTERM comes in the
        # middle of a download.
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._health: Any = HealthServicer()
        self._shown: dict[str, Any] = {}
        self._watch: asyncio.Task[None] | None = None
        self.following = Follower(self.models, self._loader, self._load, self._serve)
        self._follow: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=self.security.interceptors,
            compression=grpc.Compression.Gzip if config.compress_answers else None,
            options=[
                # With SO_REUSEPORT a second server on the same port would start and take half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_send_message_length", -1),
                *channel_limits(config.limits),
                *server_keepalive(),
            ],
        )
        add_scoring_service(self._server, self.models, self.admission, config.limits, self.calls)
        add_inference_service(self._server, self.models, self.admission, config.limits, self.calls)
        standard = CarefulServer(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, standard)
        names = (SERVICE, INFERENCE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(names, pool=ReflectionPool()), standard
        )

    async def bind(self) -> str:
        """Take the port and answer health checks with NOT_SERVING. Raises `InputError` for a port in use."""
        host, port = parse_address(self.config.listen, "--listen")
        await self._show_health()
        try:
            _try_port(host, port)
            bound = self.security.add_port(self._server, f"{host}:{port}")
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(
                f"cannot listen on {self.config.listen}: {reason}; choose another with --listen HOST:PORT "
                "(port 0 takes any free one)"
            ) from error
        self.telemetry.open(self)
        await self._server.start()
        self.address = f"{host}:{bound}"
        return self.address

    async def start(self) -> None:
        """Load and warm the models, then serve. Raises `InputError` as `OnnxModel` does."""
        wanted = split_models(self.config.model)
        if any(is_fetched(source) for _, source in wanted):
            self._folder = tempfile.TemporaryDirectory(prefix="tailacc-models-", ignore_cleanup_errors=True)
        for loaded in await self._loader.run(lambda: [self._load(name, source) for name, source in wanted]):
            self._serve(loaded)
        self.models.following = tuple(
            Following(name, source, self.models.get(name).ref.version)
            for name, source in wanted
            if self.config.follow_s and follows_alias(source)
        )
        self._memory.check()
        self.admission.open()
        await self._show_health()
        self._watch = asyncio.create_task(self._watch_worker(), name="watch")
        if self.models.following:
            self._follow = asyncio.create_task(self.following.run(self.config.follow_s), name="follow")

    async def stop(self, grace: float) -> int:
        """Refuse what is new, answer what was accepted within `grace` seconds, and end.

        Returns the number of accepted requests that were cut off.
        """
        self.admission.close("the server is stopping; try another, or again later")
        for task in (self._watch, self._follow):
            if task:
                task.cancel()
        await self._health.enter_graceful_shutdown()
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
        # What still runs has no caller left, and threads that hang could not be waited for.
        if not lost:
            await asyncio.gather(self.following.close_old(), *(model.close() for model in self.models.all()))
        self.ended = all(
            (
                self._pool.close(_THREADS_GRACE_S),
                self.worker.close(_THREADS_GRACE_S),
                await self._loader.ended(_THREADS_GRACE_S),
            )
        )
        if self._folder:
            self._folder.cleanup()
        self.telemetry.close()
        return lost

    def _load(self, name: str, source: str) -> LoadedModel:
        """In a thread of the loader."""
        return load_model(name, source, self.config, self._folder.name if self._folder else None)

    def _serve(self, loaded: LoadedModel) -> None:
        """Begin to serve a model, in place of one of its name."""
        self.models.add(loaded.served(self._pool, self.worker, self.config))

    async def _watch_worker(self) -> None:
        """Look after the inference worker, and say in the health service what is so."""
        while True:
            await asyncio.sleep(_TICK_S)
            self.worker.check(_TICK_S)
            self._memory.refresh()
            self.security.refresh()
            await self._show_health()

    async def _show_health(self) -> None:
        """Set the status of the server ("" and each service) and of each model, where it has changed."""
        ready = not self.admission.closed and self.models.ready
        wanted = dict.fromkeys(("", SERVICE, INFERENCE_SERVICE), ready)
        wanted |= {model.name: not self.admission.closed and model.ready for model in self.models.all()}
        for name, serving in wanted.items():
            if self._shown.get(name) is not serving:
                self._shown[name] = serving
                await self._health.set(name, _STATUS[serving])


def _try_port(host: str, port: int) -> None:
    """Bind for a moment, for the reason in an OSError: gRPC gives none, and logs lines of its own."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


def banner(server: ScoringServer) -> str:
    """What serves and on what, for a person."""
    config, limits = server.config, server.config.limits
    runners = max(served.runners for served in server.models.all())
    threads = f"inference {runners}, decode {config.decode_threads or cores()}"
    mib = 1 << 20
    lines = []
    for served in server.models.all():
        info, ref = served.info, served.ref
        lines += [
            f"model    {served.name}: {ref.name} version {ref.version}, sha256 {ref.hash[:16]}, "
            f"{len(info.classes)} classes, {info.size} px ({info.name})",
            f"device   {served.device.name} ({served.device.reason}); the golden image has its logits; batches of "
            f"{', '.join(str(size) for size in served.buckets)}",
        ]
    return "\n".join(
        (
            *lines,
            f"threads  {threads}; images wait at most {config.max_delay_ms:g} ms for others that are being decoded",
            *(
                f"follow   {one.name}: {one.source}, looked at every {config.follow_s:g} s"
                for one in server.models.following
            ),
            f"limits   request: {limits.request_images} images, {limits.request_bytes / mib:g} MiB; image: "
            f"{limits.image_bytes / mib:g} MiB; in flight: {limits.inflight_requests} requests, "
            f"{limits.inflight_images} images, {limits.inflight_bytes / mib:g} MiB",
            *server.security.lines(),
            *server.telemetry.lines(),
        )
    )


async def serve(config: ServerConfig, say_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; a second one stops at once. Returns the exit code.

    `say_ready` gets HOST:PORT once the server serves.
    """
    config.check()
    set_up(config.telemetry.log_format)
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
        return _leave(0, ended=False)
    try:
        await starting
    except BaseException:
        await server.stop(0)
        raise
    # What is there now stays: a full collection would look through all of it, 0.1 s in which no request moves.
    gc.freeze()
    _say(banner(server))
    say_ready(server.address)
    await signalled
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
    return _leave(1 if lost else 0, server.ended)


def _leave(code: int, ended: bool) -> int:
    """The exit code; where threads are still in ONNX Runtime the process ends here.

    Python's own end would take the interpreter from under them, and the process would abort.
    """
    if not ended:
        sys.stdout.flush()
        os._exit(code)
    return code


def _say(text: str) -> None:
    _log.info("%s", text)
