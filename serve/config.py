"""The settings of the server and of the client, with units and defaults. Nothing heavy is imported here.

Each has `check`, which raises `InputError` for a value that breaks a rule. It is not `__post_init__`, since
tyro would show that error as a box of several lines.
"""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data.errors import InputError
from serve.security_config import ClientTls, ServerTls

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_MODEL = "models:/tailacc@champion"
_MIB = 1 << 20


def cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Limits:
    """What the server takes at most. Each limit of a request must fit into the one of all in flight."""

    request_images: int = 64
    """images in one request"""
    request_bytes: int = 64 * _MIB
    """bytes of one request, all images with their ids"""
    image_bytes: int = 32 * _MIB
    """bytes of one encoded image"""
    inflight_requests: int = 256
    """requests in flight at once"""
    inflight_images: int = 1024
    """images in flight at once"""
    inflight_bytes: int = 256 * _MIB
    """bytes of encoded images in flight at once"""
    memory: int = 0
    """bytes of memory that the process may hold, decoded pixels and the models among them, before it refuses more work
    until it holds less; looked at twice a second. 0: no such limit"""
    streams: int = 1024
    """calls in flight on one connection; further ones wait at the caller's end, or get UNAVAILABLE"""
    connections: int = 512
    """connections at once; a further one is closed"""
    pushback_ms: int = 200
    """milliseconds after which a refused caller is told to try again"""

    def check(self) -> None:
        """Raise `InputError` naming the option, its rule and the value."""
        for item in fields(self):
            least = 0 if item.name == "memory" else 1
            if getattr(self, item.name) < least:
                raise InputError(
                    f"{option(item.name)} must be at least {least}, got {getattr(self, item.name)}"
                )
        for small, large in (
            ("image_bytes", "request_bytes"),
            ("request_images", "inflight_images"),
            ("request_bytes", "inflight_bytes"),
        ):
            if getattr(self, small) > getattr(self, large):
                raise InputError(
                    f"{option(small)} ({getattr(self, small)}) must not be above "
                    f"{option(large)} ({getattr(self, large)})"
                )


def option(limit: str) -> str:
    """The command-line option of a field of `Limits`, for messages."""
    return "--limits." + limit.replace("_", "-")


@dataclass(frozen=True)
class Telemetry:
    """What the server shows of itself outside gRPC. All of it is off until asked for."""

    metrics: str = ""
    """HOST:PORT, or a port of the loopback, to answer GET /metrics for Prometheus on; port 0 takes any free one"""
    otlp: str = ""
    """HOST:PORT of an OpenTelemetry collector (gRPC, no TLS) to send traces to; with TLS or a token by
    OTEL_EXPORTER_OTLP_ENDPOINT and its kin"""
    trace_share: float = 0.01
    """which share of the requests to trace, from 0 to 1, of those whose caller leaves it open (no traceparent)"""
    access_log: bool = False
    """write a line on stderr for each request, and return its x-request-id"""
    log_format: Literal["text", "json"] = "text"
    """of what is written on stderr; json: one object a line"""

    def check(self) -> None:
        """Raise `InputError` naming the option, its rule and the value."""
        if self.metrics:
            parse_address(self.metrics_address(), "--metrics")
        if self.otlp and not parse_address(self.otlp, "--otlp")[1]:
            raise InputError(f"--otlp needs a port from 1 to 65535, got '{self.otlp}'")
        if not 0 <= self.trace_share <= 1:
            raise InputError(f"--trace-share must be from 0 to 1, got {self.trace_share}")

    def metrics_address(self) -> str:
        """`metrics` with its host."""
        return f"127.0.0.1:{self.metrics}" if self.metrics.isdigit() else self.metrics


@dataclass(frozen=True)
class ServerConfig:
    """Serve one ONNX model, or several, over gRPC."""

    model: str = DEFAULT_MODEL
    """model.onnx, or models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID in MLflow (MLFLOW_TRACKING_URI). Several:
    NAME=A,NAME2=B; a call that names none gets the first"""
    listen: str = DEFAULT_ADDRESS
    """HOST:PORT; port 0 takes any free one"""
    tls: ServerTls = field(default_factory=ServerTls)
    tokens: str = ""
    """file of the callers' tokens, a line each: NAME GROUPS SECRET, with groups of score,metadata,admin; read again
    when it changes. The variable TAILACC_TOKENS may hold the lines instead. "": whoever connects may call"""
    compress_answers: bool = False
    """gzip the answers; what callers send may be compressed in any case"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where it works, else the CPU, said in the banner; cuda: an error where it does not work"""
    threads: int = 0
    """on the CPU: how many batches run at once, each on one thread; an image that is alone has them all. 0: as many
    as cores"""
    decode_threads: int = 0
    """how many images are decoded at once; 0: as many as cores. On the CPU by the threads that run the batches"""
    max_batch: int = 0
    """the most images in one batch of the model; batches have 1, 2, 4 ... images, up to this. 0: 32 on CUDA, 4 on the
    CPU"""
    max_delay_ms: float = 5.0
    """milliseconds that an image waits, while the model is idle, for others that are being decoded; on the CPU no
    core is idle for that: it decodes them"""
    stall_s: float = 20.0
    """seconds without progress of a batch after which the inference worker counts as hung and is replaced"""
    follow_s: float = 30.0
    """seconds between two looks at which version the alias of models:/NAME@ALIAS names; another one then takes over
    without a pause. 0: never"""
    grace_s: float = 20.0
    """seconds that SIGTERM leaves for what was accepted"""
    limits: Limits = field(default_factory=Limits)
    telemetry: Annotated[Telemetry, tyro.conf.arg(name="")] = field(default_factory=Telemetry)

    def check(self) -> None:
        """Raise `InputError` naming the option, its rule and the value."""
        self.limits.check()
        self.telemetry.check()
        self.tls.check()
        parse_address(self.listen, "--listen")
        for name, value in (("threads", self.threads), ("decode-threads", self.decode_threads)):
            if not 0 <= value <= 1024:
                raise InputError(f"--{name} must be from 0 to 1024, got {value}")
        if not 0 <= self.max_batch <= 4096:
            raise InputError(f"--max-batch must be from 0 to 4096, got {self.max_batch}")
        if not 0 <= self.max_delay_ms <= 1000:
            raise InputError(f"--max-delay-ms must be from 0 to 1000, got {self.max_delay_ms}")
        if not self.stall_s > 0:
            raise InputError(f"--stall-s must be above 0, got {self.stall_s}")
        if not 0 <= self.follow_s <= 86400:
            raise InputError(f"--follow-s must be from 0 (never) to 86400, got {self.follow_s}")
        if self.grace_s < 0:
            raise InputError(f"--grace-s must be at least 0, got {self.grace_s}")


@dataclass(frozen=True)
class Connection:
    """Where the servers are and how patient the client is."""

    server: str = DEFAULT_ADDRESS
    """HOST:PORT[,HOST:PORT...]; each call goes to the least busy one that works"""
    model: str = ""
    """name of the model in the servers, where they have several; "": their first one"""
    tls: ClientTls = field(default_factory=ClientTls)
    token_file: str = ""
    """file that holds the token for the servers, where they ask for one; or in the variable TAILACC_TOKEN"""
    connect_s: float = 10.0
    """seconds to wait for a server that does not answer yet"""
    call_s: float = 60.0
    """deadline of one call, in seconds"""
    silence_s: float = 15.0
    """seconds without a sign of life of a server (TCP, or its answer to a ping) after which its calls are given up and
    tried again"""
    give_up_s: float = 120.0
    """seconds that a call is tried again while servers are full or away"""
    trace: bool = False
    """ask servers with --otlp to trace each call, whatever their --trace-share, and give each an x-request-id that
    starts with the run's, which is printed"""

    def check(self) -> None:
        """Raise `InputError` naming the option, its rule and the value."""
        self.addresses()
        self.tls.check()
        for name in ("connect_s", "call_s", "silence_s", "give_up_s"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")

    def addresses(self) -> tuple[str, ...]:
        """The servers' addresses, each once."""
        listed = [text.strip() for text in self.server.split(",")]
        for text in listed:
            if not parse_address(text, "--server")[1]:
                raise InputError(f"--server needs a port from 1 to 65535, got '{text}'")
        return tuple(dict.fromkeys(listed))


@dataclass(frozen=True)
class ScoreConfig:
    """Score a set of images through the server into a score file."""

    connection: Annotated[Connection, tyro.conf.arg(name="")] = field(default_factory=Connection)
    images: str = ""
    """a folder of .jpg and .png files, a .txt list (a path a line) or a VOC devkit; "": the default devkit"""
    split: str = "val"
    """which images of a devkit"""
    out: Path = Path("runs/scores.parquet")
    """the score file; finished parts stand in OUT.parts until it is complete"""
    batch: int = 16
    """images in one call"""
    calls: int = 4
    """calls in flight at each server; images in flight are at most calls x batch x servers"""
    inflight_bytes: int = 64 * _MIB
    """bytes of images in flight, as files and as pixels; one image above it goes alone"""
    channels: int = 2
    """connections to each server"""
    send: Literal["file", "pixels"] = "file"
    """file: JPEG or PNG as it is; pixels: decoded and resized here, which the servers then need not do. Same
    scores"""
    restart: bool = False
    """forget the parts of an earlier run instead of going on from them"""
    allow_model_change: bool = False
    """go on where the servers' model changes; the manifest then lists the models, with the images of each"""

    def check(self) -> None:
        """Raise `InputError` naming the option, its rule and the value."""
        self.connection.check()
        for name, value in (("batch", self.batch), ("calls", self.calls), ("channels", self.channels)):
            if not 1 <= value <= 1024:
                raise InputError(f"--{name} must be from 1 to 1024, got {value}")
        if self.inflight_bytes < 1:
            raise InputError(f"--inflight-bytes must be at least 1, got {self.inflight_bytes}")


@dataclass(frozen=True)
class ClassifyConfig:
    """Print the labels of a few images, for a person."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files, JPEG or PNG"""
    connection: Annotated[Connection, tyro.conf.arg(name="")] = field(default_factory=Connection)

    def check(self) -> None:
        """Raise `InputError` naming the option, its rule and the value."""
        self.connection.check()
        if not self.images:
            raise InputError(
                "classify needs at least one image file: python serve/client.py classify photo.jpg"
            )


def parse_address(text: str, name: str) -> tuple[str, int]:
    """Split HOST:PORT. Raises `InputError` that names the option `name`."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InputError(f"{name} must be HOST:PORT such as {DEFAULT_ADDRESS}, got '{text}'")
    return host, int(port)
