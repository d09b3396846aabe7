"""The server's log on stderr: lines for a person, or one JSON object a line with time, level, logger and message."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]


def set_up(form: LogFormat) -> None:
    """Send what the process logs to stderr: warnings of all, and what the server has to say.

    In place of an earlier call.
    """
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
    handler = _Handler(sys.stderr)
    handler.addFilter(_not_of_a_caller_that_left)
    handler.setFormatter(_JsonLines() if form == "json" else _TextLines())
    root.addHandler(handler)
    logging.getLogger("serve").setLevel(logging.INFO)


def stamp(seconds: float) -> str:
    """Seconds since the epoch as 2026-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_line(seconds: float, level: str, logger: str, message: str, fields: dict[str, Any]) -> str:
    """One line of the log in JSON; `fields` come after what every line has."""
    head = {"time": stamp(seconds), "level": level, "logger": logger, "message": message}
    return json.dumps(head | fields, ensure_ascii=True, separators=(",", ":"))


def _not_of_a_caller_that_left(record: logging.LogRecord) -> bool:
    """False for gRPC's own traceback for each caller that is gone before its answer is: that is no error here."""
    return not (
        record.name == "grpc._cython.cygrpc" and "ExecuteBatchError raised in core" in record.getMessage()
    )


class _Handler(logging.StreamHandler[Any]):
    """Known by its class."""


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {}
        if record.exc_info and record.exc_info[0]:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json_line(record.created, record.levelname, record.name, record.getMessage(), fields)


class _TextLines(logging.Formatter):
    """The banner and the like as they are; from warnings on with time, level and logger."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{stamp(record.created)} {record.levelname} {record.name}: {text}"
