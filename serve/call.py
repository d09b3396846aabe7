"""The record of one request: where it came from, how it ended, and when it was decoded and run. Free of gRPC.

There is one only where somebody wants it: for the access log, or for a trace (then with stages).
"""

import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from serve.batcher import Request

# From one step to the next it takes about 10 µs, which is no wait.
_SHORTEST_WAIT_S = 1e-4


@dataclass(frozen=True, slots=True)
class Execution:
    """One batch. `began` and `ended` as `time.monotonic()`; `bucket` and `images` are rows with and without padding.

    `sharers`: the stages of all traced requests with an image in it.
    """

    began: float
    ended: float
    bucket: int
    images: int
    sharers: tuple["Stages", ...]


@dataclass(eq=False, slots=True)
class Stages:
    """What happened to the images of one request. Written by the engine's threads while they work, read on the event
    loop once the request has its answer.

    Attributes:
        identity: of the request, for those who shared a batch with it.
        decodes: (began, ended) of each image that was decoded, or was found to be none.
        executions: the batches that held an image of it.
    """

    identity: Any = None
    decodes: list[tuple[float, float]] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)

    def waits(self, began: float, ended: float) -> list[tuple[float, float]]:
        """The times between `began` and `ended` in which no image of it was decoded or run, shortest ones apart."""
        out = []
        busy = [*self.decodes, *((run.began, run.ended) for run in self.executions)]
        for start, stop in [*sorted(busy), (ended, ended)]:
            if min(start, ended) - began >= _SHORTEST_WAIT_S:
                out.append((began, min(start, ended)))
            began = max(began, stop)
        return out


def note_execution(traced: Iterable[Stages], began: float, bucket: int, images: int) -> None:
    """Note a batch that has just ended with the requests in it that are traced, some of them once for each image."""
    sharers = tuple(dict.fromkeys(traced))
    execution = Execution(began, time.monotonic(), bucket, images, sharers)
    for stages in sharers:
        stages.executions.append(execution)


@dataclass(eq=False, slots=True)
class Call:
    """One request, as an access log or a trace shows it.

    Attributes:
        method: "tailacc.v1.Scoring/Score".
        peer: the caller's address as gRPC writes it: "ipv4:127.0.0.1:50000".
        size: bytes of its message; 0 where it was refused before that was read.
        began, ended: `time.monotonic()`.
        request_id: the caller's `x-request-id`, or ours.
        code: the name of its gRPC status.
        model, version: which one scored it; "" where none did.
        images: how many it holds, as far as that was found out.
        request: its life in the batcher; None where it never came there.
        trace_id: 32 hexadecimal digits, or "".
        stages: only where it is traced.
        span: of the tracer.
    """

    method: str
    peer: str
    size: int
    began: float
    request_id: str
    ended: float = 0.0
    code: str = ""
    model: str = ""
    version: str = ""
    images: int = 0
    request: Request | None = None
    trace_id: str = ""
    stages: Stages | None = None
    span: Any = None


# The request that the running task works on.
CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)
