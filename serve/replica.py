"""One replica of the Ray Serve deployment: the servicers of the plain server with an engine of their own."""

import asyncio
from typing import Any

import grpc
from ray import serve

from proto.inference.v2 import inference_pb2
from proto.tailacc.v1 import scoring_pb2
from serve.admission import Admission
from serve.calls import Calls
from serve.config import ServerConfig
from serve.decode import DecodePool
from serve.inference_service import InferenceServicer
from serve.loading import load_model
from serve.ray_proxy import METHODS, REPLICA_KEY, Envelope
from serve.received import reader
from serve.service import Models
from serve.servicer import ScoringServicer
from serve.worker import InferenceWorker

_TICK_S = 0.5


class _Ended(Exception):
    """The call has its status."""


class ReplicaContext:
    """Ray's context of a call as our servicers know gRPC's: with a deadline, and with `abort`.

    Args:
        context: `RayServegRPCContext`; what is set on it goes back to the caller with the answer.
        seconds_left: until the deadline, when the proxy got the call; None: there is none.
    """

    def __init__(self, context: Any, seconds_left: float | None, replica: str) -> None:
        self._context = context
        now = asyncio.get_running_loop().time()
        self._deadline = None if seconds_left is None else now + seconds_left
        self.invocation_metadata, self.peer = context.invocation_metadata, context.peer
        self.trailing_metadata = context.trailing_metadata
        context.set_trailing_metadata([(REPLICA_KEY, replica)])

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, below 0 after it; None: there is none."""
        return None if self._deadline is None else self._deadline - asyncio.get_running_loop().time()

    async def abort(self, code: grpc.StatusCode, details: str, trailing: tuple[Any, ...] = ()) -> None:
        """End the call with a status. An exception of a replica would lose the trailing metadata in the proxy."""
        self._context.set_code(code)
        self._context.set_details(details)
        # Ray keeps its own request_id and adds it again.
        self._context.set_trailing_metadata([pair for pair in trailing if pair[0] != "request_id"])
        raise _Ended


class Replica:
    """Answers the calls of `METHODS`, each a method of this class, on the event loop that Ray made it on."""

    async def __init__(self, name: str, source: str, config: ServerConfig) -> None:  # type: ignore[misc]
        self._name = serve.get_replica_context().replica_id.unique_id
        self._admission, self._calls, self._models = Admission(config.limits), Calls(), Models()
        self._worker = InferenceWorker(config.stall_s)
        loaded = load_model(name, source, config, None)
        self._models.add(loaded.served(DecodePool(config.decode_threads), self._worker, config))
        self._admission.open()
        scoring = ScoringServicer(self._models, self._admission, config.limits)
        inference = InferenceServicer(self._models, self._admission, config.limits, self._calls)
        self._answers, self._readers, self._empty = {}, {}, {}
        for method, (service, told) in METHODS.items():
            ours = service == "tailacc.v1.Scoring"
            messages = scoring_pb2 if ours else inference_pb2
            answer = getattr(scoring if ours else inference, method)
            self._answers[method] = self._calls.unary(f"{service}/{method}", answer)
            self._readers[method] = reader(getattr(messages, told.input_type.name))
            self._empty[method] = getattr(messages, told.output_type.name)
        self._watch = asyncio.create_task(self._watch_worker(), name="watch")

    async def _answer(self, method: str, envelope: Envelope, context: Any) -> Any:
        told = ReplicaContext(context, envelope.seconds_left, self._name)
        try:
            return await self._answers[method](self._readers[method](envelope.raw), told)
        except _Ended:
            return self._empty[method]()

    async def _watch_worker(self) -> None:
        """A hung or dead worker is replaced, and its model opened again, within the replica."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._worker.check(_TICK_S)

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises here three times in a row."""
        if self._watch.done() or not self._models.ready:
            raise RuntimeError("the inference worker is down, and its model is not open again yet")


def _route(method: str) -> Any:
    async def call(self: Replica, envelope: Envelope, grpc_context: Any) -> Any:
        return await self._answer(method, envelope, grpc_context)

    call.__name__ = call.__qualname__ = method
    return call


# Ray calls by name, and looks at the parameters for `grpc_context`.
for _method in METHODS:
    setattr(Replica, _method, _route(_method))
