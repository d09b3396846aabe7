"""The services that come with gRPC, health and reflection, as this server adds them.

Their generated readers raise where the bytes are no such message: gRPC would log a traceback for each, and answer
UNKNOWN. Here it is INVALID_ARGUMENT, as in our own services.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from data.errors import InputError
from serve.errors import abort

_WORDS = "the request is not a message of this method: {}"


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]
    """Health with its list, which gRPC's own one lacks: each call of it would be a traceback in the log."""

    async def List(self, request: Any, context: Any) -> Any:
        """The status of the server (""), of each service and of each model."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status)
            for name, status in self._server_status.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)


class CarefulServer:
    """Stands for `server` in a generated `add_..._to_server`."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Add the handlers, with careful readers."""
        self._server.add_generic_rpc_handlers(tuple(_CarefulHandlers(handler) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Nothing: what is not registered is looked for among the generic ones."""


class _CarefulHandlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handlers: Any) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; None for a method that is not there."""
        handler = self._handlers.service(handler_call_details)
        return handler and _careful(handler)


def _careful(handler: Any) -> Any:
    """`handler` with a reader that does not raise. For the kinds of calls that the two services have."""
    read, write = _reader(handler.request_deserializer), handler.response_serializer
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(_streamed(handler.stream_stream), read, write)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_single(handler.unary_stream), read, write)
    return grpc.unary_unary_rpc_method_handler(_single(handler.unary_unary), read, write)


def _reader(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`read`, which gives the error in place of the message."""

    def carefully(raw: bytes) -> Any:
        try:
            return read(raw)
        except DecodeError as error:
            return InputError(_WORDS.format(error))

    return carefully


def _single(answer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def handle(message: Any, context: Any) -> Any:
        if isinstance(message, InputError):
            await abort(context, message)
        return await answer(message, context)

    return handle


def _streamed(answer: Callable[[Any, Any], AsyncIterable[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def handle(messages: AsyncIterable[Any], context: Any) -> AsyncIterator[Any]:
        async def checked() -> AsyncIterator[Any]:
            async for message in messages:
                if isinstance(message, InputError):
                    await abort(context, message)
                yield message

        async for response in answer(checked(), context):
            yield response

    return handle
