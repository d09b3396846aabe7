"""The access log: one line on stderr for each request, written by a thread of its own.

    2026-01-31T12:00:00.000Z access id=4f-1 method=tailacc.v1.Scoring/Score peer=ipv4:127.0.0.1:50000 model=tailacc ...

Neither images nor anything else that a caller sends is in it, but for the request id.
"""

import json
import re
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any, TextIO

from serve.call import Call
from serve.log_lines import LogFormat, json_line, stamp

# Lines that may wait for a reader of stderr. Beyond that they are dropped and counted: no request waits for a log.
_WAITING = 10_000
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_PLAIN = re.compile(r"[\w./:@+\[\]-]+", re.ASCII)


class AccessLog:
    """A `serve.calls.Watcher` that writes to `stream`.

    Attributes:
        dropped: lines that were not written, since the stream did not take those before them.
    """

    def __init__(self, stream: TextIO, form: LogFormat) -> None:
        self.dropped = 0
        self._stream, self._form = stream, form
        self._lines: SimpleQueue[tuple[float, dict[str, Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def begin(self, call: Call, metadata: Mapping[str, str]) -> None:
        """Take over the caller's trace, where no tracer has said which it is."""
        if not call.trace_id and (found := _TRACEPARENT.fullmatch(metadata.get("traceparent", ""))):
            call.trace_id = found[1]

    def end(self, call: Call) -> None:
        """Have the line written."""
        if self._lines.qsize() >= _WAITING:
            self.dropped += 1
            return
        self._lines.put((time.time(), fields_of(call)))

    def close(self, wait_s: float) -> None:
        """Write what waits, for at most `wait_s` seconds."""
        self._lines.put(None)
        self._thread.join(wait_s)

    def _write(self) -> None:
        while line := self._lines.get():
            try:
                self._stream.write(_text(*line) if self._form == "text" else _json(*line))
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # whoever read it has gone
                self.dropped += 1


def fields_of(call: Call) -> dict[str, Any]:
    """What a line says. Times in milliseconds: of the whole call; of its wait; the sum of its decodes; its batches."""
    request = call.request
    out = {
        "id": call.request_id,
        "method": call.method,
        "peer": call.peer,
        "model": call.model,
        "version": call.version,
        "images": call.images,
        "bytes": call.size,
        "code": call.code,
        "ms": _ms(call.ended - call.began),
        "queue_ms": 0.0,
        "decode_ms": 0.0,
        "inference_ms": 0.0,
        "trace": call.trace_id,
    }
    if request:
        total = (request.finished or call.ended) - request.arrived
        out["queue_ms"] = _ms(max(0.0, total - request.decode_s - request.infer_s))
        out["decode_ms"], out["inference_ms"] = _ms(request.decode_s), _ms(request.infer_s)
    return out


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _json(now: float, fields: dict[str, Any]) -> str:
    return json_line(now, "INFO", "serve.access", "request", fields) + "\n"


def _text(now: float, fields: dict[str, Any]) -> str:
    # In quotes what could be taken for more than one value, or more than one line.
    said = ((name, value if isinstance(value, str) else f"{value:g}") for name, value in fields.items())
    pairs = (f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text or '-')}" for name, text in said)
    return f"{stamp(now)} access {' '.join(pairs)}\n"
