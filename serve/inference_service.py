"""The Open Inference Protocol (v2) over gRPC: the service that Triton's and KServe's clients call.

inference.proto beside the generated code says what each call does; this file converts and calls, nothing else.

    client = tritonclient.grpc.InferenceServerClient("127.0.0.1:8001")
    photo = tritonclient.grpc.InferInput("jpeg", [1], "BYTES")
    photo.set_data_from_numpy(numpy.array([open("photo.jpg", "rb").read()], dtype=object))
    scores = client.infer("tailacc", [photo]).as_numpy("score")
"""

import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, NoReturn

import grpc

from proto.inference.v2 import inference_pb2 as pb
from serve.admission import Admission
from serve.call import CURRENT
from serve.calls import Calls
from serve.config import Limits
from serve.errors import PUSHBACK_KEY, status_of
from serve.faults import NotAccepting, NotSupported, ServerFull
from serve.gate import GatedHandlers
from serve.inference_codec import decode_request, encode_response
from serve.inference_describe import model_config, model_metadata, model_statistics, repository_index
from serve.inference_stream import answer_in_order
from serve.received import Received, reader
from serve.service import Models, ServedModel

INFERENCE_SERVICE = "inference.GRPCInferenceService"

# Requests of one stream that are read and not yet answered. Enough to keep the batcher full from one caller (four
# batches of 16); the caller's next writes wait in the transport, and one stream cannot take the whole server.
_STREAM_INFLIGHT = 64

_EXTENSIONS = ("model_configuration", "model_repository", "statistics")

# The other calls of the published service, refused in words: gRPC itself would say "Method not found!".
_SHARED_MEMORY = "shared memory is not supported; send the bytes in raw_input_contents"
_CONTROL = "models are chosen when the server starts (--model), not over this protocol"
_NOT_SUPPORTED = {
    "SystemSharedMemoryStatus": _SHARED_MEMORY,
    "SystemSharedMemoryRegister": _SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _SHARED_MEMORY,
    "CudaSharedMemoryStatus": _SHARED_MEMORY,
    "CudaSharedMemoryRegister": _SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _SHARED_MEMORY,
    "RepositoryModelLoad": _CONTROL,
    "RepositoryModelUnload": _CONTROL,
    "TraceSetting": "trace settings are not supported",
    "LogSettings": "log settings are not supported",
}


def add_inference_service(
    server: Any, models: Models, admission: Admission, limits: Limits, calls: Calls
) -> None:
    """Add the service to a `grpc.aio.Server`, before it starts."""
    servicer = InferenceServicer(models, admission, limits, calls)
    handlers = {}
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        answer = getattr(servicer, method.name)
        make = (
            grpc.stream_stream_rpc_method_handler
            if method.client_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        handlers[method.name] = make(
            answer if method.client_streaming else calls.unary(_full(method.name), answer),
            reader(getattr(pb, method.input_type.name)),
            getattr(pb, method.output_type.name).SerializeToString,
        )
    for name, reason in _NOT_SUPPORTED.items():
        handlers[name] = grpc.unary_unary_rpc_method_handler(
            calls.unary(_full(name), _refuser(name, reason)), lambda raw: Received(raw, len(raw))
        )
    gated = GatedHandlers(INFERENCE_SERVICE, handlers, ("ModelInfer",), admission, calls)
    server.add_generic_rpc_handlers((gated,))


class InferenceServicer:
    """The calls, each from a request message to an answer; an error of the domain is raised."""

    def __init__(self, models: Models, admission: Admission, limits: Limits, calls: Calls) -> None:
        self._models, self._admission, self._limits, self._calls = models, admission, limits, calls
        self._about = pb.ServerMetadataResponse(
            name="tailacc", version=version("tailacc"), extensions=_EXTENSIONS
        )

    async def ServerLive(self, request: Received, context: Any) -> Any:
        """True."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Received, context: Any) -> Any:
        """Whether requests for any of the models would be taken."""
        return pb.ServerReadyResponse(ready=not self._admission.closed and self._models.ready)

    async def ModelReady(self, request: Received, context: Any) -> Any:
        """Whether requests for the model would be taken."""
        wanted = request.message
        try:
            model = self._models.get(wanted.name, wanted.version)
        except LookupError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._admission.closed and model.ready)

    async def ServerMetadata(self, request: Received, context: Any) -> Any:
        """Name, version and extensions."""
        return self._about

    async def ModelMetadata(self, request: Received, context: Any) -> Any:
        """The tensors of a model."""
        return model_metadata(self._model(request.message))

    async def ModelConfig(self, request: Received, context: Any) -> Any:
        """How a model is run."""
        return model_config(self._model(request.message), self._limits)

    async def ModelStatistics(self, request: Received, context: Any) -> Any:
        """What one model did, or all of them."""
        wanted = request.message
        return model_statistics([self._model(wanted)] if wanted.name else self._models.all())

    async def RepositoryIndex(self, request: Received, context: Any) -> Any:
        """The models with their state."""
        return repository_index(self._models, request.message.ready)

    async def ModelInfer(self, request: Received, context: Any) -> Any:
        """Score the images of one request."""
        return await self._infer(request, context.time_remaining())

    async def ModelStreamInfer(self, requests: Any, context: Any) -> None:
        """Score the requests of one stream; see `answer_in_order`."""

        async def answer(request: Received) -> Any:
            work = self._infer(request, context.time_remaining())
            try:
                response = await self._calls.one(_full("ModelStreamInfer"), request, context, work)
            except Exception as error:
                return _stream_error(request.message.id, error)
            response.parameters["triton_final_response"].bool_param = True
            return pb.ModelStreamInferResponse(infer_response=response)

        await answer_in_order(requests, answer, context.write, _STREAM_INFLIGHT)

    def _model(self, wanted: Any) -> ServedModel:
        if not self._models.all():
            raise NotAccepting(self._admission.closed)
        return self._models.get(wanted.name, wanted.version)

    async def _infer(self, received: Received, seconds_left: float | None) -> Any:
        """`seconds_left` until gRPC's deadline, None for none."""
        arrived = time.monotonic()
        received.check()
        request = received.message
        if self._admission.closed:
            raise NotAccepting(self._admission.closed)
        model = self._models.get(request.model_name, request.model_version)
        work = decode_request(request, received.size, model.info, self._limits)
        if call := CURRENT.get():
            call.images = len(work.images)
        limits = [limit for limit in (seconds_left, work.timeout) if limit is not None]
        deadline = arrived + min(limits) if limits else None
        with self._admission.admit(len(work.images), work.size):
            outcomes = await model.score(work.images, deadline, work.priority)
        response = encode_response(work.outputs, outcomes, len(model.info.classes))
        response.model_name, response.model_version, response.id = model.name, model.version, request.id
        response.parameters["model_hash"].string_param = model.ref.hash
        return response


def _full(method: str) -> str:
    return f"{INFERENCE_SERVICE}/{method}"


def _refuser(name: str, reason: str) -> Callable[[Received, Any], Awaitable[Any]]:
    async def refuse(request: Received, context: Any) -> NoReturn:
        raise NotSupported(f"{name}: {reason}")

    return refuse


def _stream_error(identity: str, error: Exception) -> Any:
    """The answer on a stream for a request that failed: the message, and the code where programs find it."""
    status, message = status_of(error)
    response = pb.ModelInferResponse(id=identity)
    response.parameters["status"].string_param = status.name
    if isinstance(error, ServerFull):
        response.parameters[PUSHBACK_KEY].int64_param = error.retry_ms
    # Never empty: an empty message means success.
    return pb.ModelStreamInferResponse(error_message=message or status.name, infer_response=response)
