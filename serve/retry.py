"""When a call is tried again, and after which pause. Pure: no channel, no clock.

The rules are those of gRPC's retry design (gRFC A6): exponential backoff with jitter on the retryable codes, and
`grpc-retry-pushback-ms` of the server in place of it; a pushback that is negative or no number means "do not".
"""

import random
from collections.abc import Mapping

import grpc

from serve.errors import PUSHBACK_KEY

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
# How often one call may pass its deadline: images on which a server hangs must not hold a run for ever.
DEADLINE_TRIES = 3
# CANCELLED from outside is a server that was stopped in the middle of the call.
RETRYABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def pause(
    code: grpc.StatusCode, metadata: Mapping[str, str], failures: int, draw: random.Random
) -> float | None:
    """Seconds that the server is left alone; None where trying again is of no use.

    Args:
        code: how the call ended.
        metadata: what the server sent with it (initial and trailing).
        failures: calls in a row that this server has failed before.
        draw: for the jitter: up to half more than a pushback, up to half less than a backoff, or all refused
            callers would be back at the same moment.
    """
    told = metadata.get(PUSHBACK_KEY)
    if told is not None and (code in RETRYABLE or code is grpc.StatusCode.RESOURCE_EXHAUSTED):
        if not (told.isascii() and told.isdigit()):
            return None
        return int(told) / 1000 * draw.uniform(1, 1.5)
    # RESOURCE_EXHAUSTED without a pushback is gRPC's own word for a message that is too long: it never passes.
    if code in RETRYABLE:
        return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures, 16)) * draw.uniform(0.5, 1)
    return None


def metadata_of(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """The text metadata of a failed call, initial and trailing together."""
    parts = (error.initial_metadata(), error.trailing_metadata())
    return {key: value for part in parts for key, value in part or () if isinstance(value, str)}
