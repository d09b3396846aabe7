"""The gate: a call for which there is no room is answered before its message is read.

gRPC's Python server takes a call's message before it asks a unary handler. A refused photograph would be received,
copied and parsed for nothing, in the thread that all others wait for: under 10x overload that is most of its work.
"""

from collections.abc import Collection, Mapping
from typing import Any

import grpc

from serve.admission import Admission
from serve.calls import Calls


class GatedHandlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The handlers of one service, of which some are asked only while there is room for one more image.

    Whether a message of its size fits is for the handler to find out: here only the headers have come.

    Args:
        service: its full name.
        handlers: method -> handler.
        guarded: the methods that need room.
        admission: the counters.
        calls: counts those that are refused here.
    """

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, Any],
        guarded: Collection[str],
        admission: Admission,
        calls: Calls,
    ) -> None:
        self._handlers = {f"/{service}/{name}": handler for name, handler in handlers.items()}
        self._guarded = {f"/{service}/{name}" for name in guarded}
        self._admission, self._calls = admission, calls

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, or one that refuses it; None for a method that is not there."""
        method = handler_call_details.method
        if method in self._guarded and (refusal := self._admission.refusal(1, 1)):
            # As a stream, since only then the message is not taken first. The caller cannot see the difference.
            return grpc.stream_stream_rpc_method_handler(self._calls.refuser(method[1:], refusal))
        return self._handlers.get(method)
