"""Errors of the domain to gRPC status, in this one place."""

import logging
from typing import Any, NoReturn

import grpc

from data.errors import InputError
from serve.faults import (
    InferenceFailed,
    ModelDown,
    ModelNotFound,
    NotAccepting,
    NotAuthenticated,
    NotPermitted,
    NotSupported,
    ServerFull,
)

_log = logging.getLogger(__name__)

PUSHBACK_KEY = "grpc-retry-pushback-ms"

_STATUS: dict[type[Exception], grpc.StatusCode] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    ServerFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotAccepting: grpc.StatusCode.UNAVAILABLE,
    ModelDown: grpc.StatusCode.UNAVAILABLE,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    InferenceFailed: grpc.StatusCode.INTERNAL,
    NotSupported: grpc.StatusCode.UNIMPLEMENTED,
    TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
}


# A message travels in a header, of which callers take 8 KiB in all, and one character may need 12 bytes there.
_LONGEST = 600


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Status and message of `error`; what is not listed is logged, and INTERNAL."""
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status, str(error)[:_LONGEST]
    _log.error("a call failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"[:_LONGEST]


def code_of(error: Exception) -> grpc.StatusCode:
    """The status of `error` alone, of which nothing is logged."""
    return next(
        (status for kind, status in _STATUS.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL
    )


async def abort(context: Any, error: Exception) -> NoReturn:
    """End the call of `context` with the status that belongs to `error`."""
    # What is given here takes the place of what was set before.
    trailing = tuple(context.trailing_metadata() or ())
    if isinstance(error, ServerFull):
        trailing += ((PUSHBACK_KEY, str(error.retry_ms)),)
    await context.abort(*status_of(error), trailing)
    raise error  # never reached: `abort` raises, which its types do not say
