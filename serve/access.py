"""Who may call what: an interceptor that answers a call without the right token before its message is read.

Only where there are tokens; without them gRPC does not even ask here.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from serve.calls import Calls
from serve.faults import NotAuthenticated, NotPermitted
from serve.tokens import TokenBook

_INFERENCE = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/"
_BEARER = "bearer "

# What orchestrators and load balancers ask, which carry no token: it says whether a model is ready, and nothing more.
OPEN = frozenset(
    (
        *(_HEALTH + name for name in ("Check", "Watch")),
        *(_INFERENCE + name for name in ("ServerLive", "ServerReady", "ModelReady")),
    )
)
# Whatever is not here, one that does not exist among them, needs "admin": a new call is closed until it is listed.
GROUP_OF = {
    "/tailacc.v1.Scoring/Score": "score",
    "/tailacc.v1.Scoring/GetModel": "metadata",
    **dict.fromkeys((_INFERENCE + name for name in ("ModelInfer", "ModelStreamInfer")), "score"),
    **dict.fromkeys(
        (
            _INFERENCE + name
            for name in (
                "ServerMetadata",
                "ModelMetadata",
                "ModelConfig",
                "ModelStatistics",
                "RepositoryIndex",
            )
        ),
        "metadata",
    ),
    _HEALTH + "List": "metadata",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "metadata",
}
ADMIN = "admin"
# A caller without a token may send any name as a method, and each would be another row of the counts.
_OTHER = "other"


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """UNAUTHENTICATED without a token of `book`, PERMISSION_DENIED for a group that it does not open.

    Args:
        book: the tokens.
        calls: counts those that are refused here.
    """

    def __init__(self, book: TokenBook, calls: Calls) -> None:
        self._book, self._calls = book, calls

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler of a call, or one that refuses it."""
        method = handler_call_details.method
        if method in OPEN:
            return await continuation(handler_call_details)
        fault = self._fault(method, handler_call_details.invocation_metadata)
        if fault is None:
            return await continuation(handler_call_details)
        counted = method[1:] if method in GROUP_OF else _OTHER
        # As a stream, since only then the message is not taken first. The caller cannot see the difference.
        return grpc.stream_stream_rpc_method_handler(self._calls.refuser(counted, fault))

    def _fault(self, method: str, metadata: Any) -> NotAuthenticated | NotPermitted | None:
        told = next((value for key, value in metadata or () if key == "authorization"), None)
        if told is None:
            return NotAuthenticated(
                "this server asks for a token: metadata 'authorization: Bearer TOKEN' (serve/client.py: --token-file "
                "FILE, or the variable TAILACC_TOKEN)"
            )
        if told[: len(_BEARER)].lower() != _BEARER:
            return NotAuthenticated("the metadata 'authorization' must be 'Bearer TOKEN'")
        token = self._book.find(told[len(_BEARER) :].strip().encode())
        if token is None:
            return NotAuthenticated("the token is none of this server's")
        group = GROUP_OF.get(method, ADMIN)
        if group in token.groups:
            return None
        return NotPermitted(
            f"the token '{token.name}' is not for calls of the group {group}; it has: "
            f"{', '.join(sorted(token.groups))}"
        )
