"""What Ray Serve's gRPC proxies run of ours: which calls there are, and what a call without an answer becomes.

The proxy would read each message and write it again, and knows of neither its size nor the caller's deadline. Here a
message stays bytes, and goes to the replica as an `Envelope`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from proto.inference.v2 import inference_pb2
from proto.tailacc.v1 import scoring_pb2

# In the trailing metadata of whatever a replica has answered, an error too: which replica it was.
REPLICA_KEY = "tailacc-replica"
METHODS: dict[str, tuple[str, Any]] = {
    method.name: (service.full_name, method)
    for service in (
        scoring_pb2.DESCRIPTOR.services_by_name["Scoring"],
        inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    )
    for method in service.methods
    if not method.client_streaming
}
# Of Ray's own answers these say what they mean. The others (INTERNAL for a replica that died, NOT_FOUND where none is
# known yet) would tell a caller not to try again.
_KEPT = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
    )
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request's message as it came, and the seconds that its deadline leaves; None: there is no deadline."""

    raw: bytes
    seconds_left: float | None


def add_services(_: Any, server: Any) -> None:
    """Add our calls to a proxy's server. Ray names this function's place, and puts its own handlers for ours."""
    for service in dict.fromkeys(service for service, _ in METHODS.values()):
        names = [name for name, (of, _) in METHODS.items() if of == service]
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(_nothing, request_deserializer=_as_it_is)
            for name in names
        }
        generic = grpc.method_handlers_generic_handler(service, handlers)
        server.add_generic_rpc_handlers((generic,))
        routed = generic._method_handlers
        generic._method_handlers = {
            path: handler._replace(unary_unary=_around(handler.unary_unary))
            for path, handler in routed.items()
        }


def _as_it_is(raw: bytes) -> bytes:
    return raw


async def _nothing(raw: bytes, context: Any) -> bytes:
    raise NotImplementedError  # Ray's handler stands here


def _around(route: Callable[[Any, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(raw: bytes, context: Any) -> bytes:
        answer = await route(Envelope(raw, context.time_remaining()), context)
        answered = any(key == REPLICA_KEY for key, _ in context.trailing_metadata() or ())
        if not answered and context.code() not in _KEPT:
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details("no replica has answered: the one that held the request is gone; try again")
        return answer

    return handle
