"""The servicer of tailacc.v1.Scoring: messages to the domain and back, nothing else."""

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import grpc
import numpy as np

from data.errors import InputError
from proto.tailacc.v1 import scoring_pb2 as pb
from serve.admission import Admission
from serve.call import CURRENT
from serve.calls import Calls
from serve.config import Limits
from serve.faults import NotAccepting
from serve.gate import GatedHandlers
from serve.received import Received, reader
from serve.service import Failure, Models, Outcome, ServedModel, Trouble

SERVICE = "tailacc.v1.Scoring"
_ID_CHARACTERS = 1024

_CODES = {
    Trouble.BAD_IMAGE: pb.ImageStatus.CODE_BAD_IMAGE,
    Trouble.TOO_LARGE: pb.ImageStatus.CODE_TOO_LARGE,
    Trouble.INFERENCE_FAILED: pb.ImageStatus.CODE_INFERENCE_FAILED,
}
_OK = pb.ImageStatus(code=pb.ImageStatus.CODE_OK)


def add_scoring_service(
    server: Any, models: Models, admission: Admission, limits: Limits, calls: Calls
) -> None:
    """Add the service to a `grpc.aio.Server`, before it starts."""
    servicer = ScoringServicer(models, admission, limits)
    handlers = {
        "Score": grpc.unary_unary_rpc_method_handler(
            calls.unary(f"{SERVICE}/Score", servicer.Score),
            reader(pb.ScoreRequest),
            pb.ScoreResponse.SerializeToString,
        ),
        "GetModel": grpc.unary_unary_rpc_method_handler(
            calls.unary(f"{SERVICE}/GetModel", servicer.GetModel),
            reader(pb.GetModelRequest),
            pb.GetModelResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((GatedHandlers(SERVICE, handlers, ("Score",), admission, calls),))


class ScoringServicer:
    """Answers from `models`, which is empty until they are warm."""

    def __init__(self, models: Models, admission: Admission, limits: Limits) -> None:
        self._models, self._admission, self._limits = models, admission, limits

    async def Score(self, received: Received, context: Any) -> Any:
        """See scoring.proto."""
        return await self._score(received.message, received.size, context.time_remaining())

    async def GetModel(self, received: Received, context: Any) -> Any:
        """See scoring.proto."""
        if not self._models.all():
            raise NotAccepting(self._admission.closed)
        return _describe(self._models.get(received.message.model), self._limits)

    async def _score(self, request: Any, size: int, seconds_left: float | None) -> Any:
        """`size` in bytes; `seconds_left` until the deadline, None for none."""
        arrived = time.monotonic()
        images = request.images
        if call := CURRENT.get():
            call.images = len(images)
        check_request([image.id for image in images], size, self._limits)
        with self._admission.admit(len(images), size):
            model = self._models.get(request.model)
            side = model.info.size
            wrong: dict[int, Failure] = {}
            contents = []
            for index, image in enumerate(images):
                if image.WhichOneof("payload") != "pixels":
                    contents.append(image.content)
                    continue
                _check_preprocessing(request.preprocessing, model)
                if len(image.pixels) == side * side * 3:
                    contents.append(np.frombuffer(image.pixels, np.uint8).reshape(side, side, 3))
                else:
                    wrong[index] = _wrong_length(len(image.pixels), side)
            deadline = None if seconds_left is None else arrived + seconds_left
            scored = iter(await model.score(contents, deadline))
            outcomes = [wrong[index] if index in wrong else next(scored) for index in range(len(images))]
            return pb.ScoreResponse(
                results=[_result(image.id, outcome) for image, outcome in zip(images, outcomes, strict=True)],
                model=_ref(model),
            )


def check_request(ids: Sequence[str], size: int, limits: Limits) -> None:
    """Raise `InputError` where a request of `size` bytes breaks a rule of scoring.proto."""
    if not ids:
        raise InputError("a request must hold at least 1 image, got 0")
    if len(ids) > limits.request_images:
        raise InputError(
            f"{len(ids)} images are over the limit of {limits.request_images} in one request "
            "(--limits.request-images)"
        )
    if size > limits.request_bytes:
        raise InputError(
            f"{size} bytes are over the limit of {limits.request_bytes} for one request "
            "(--limits.request-bytes)"
        )
    seen: set[str] = set()
    for position, name in enumerate(ids):
        if not 1 <= len(name) <= _ID_CHARACTERS:
            raise InputError(
                f"an image id must have 1 to {_ID_CHARACTERS} characters, got {len(name)} at position "
                f"{position}"
            )
        if name in seen:
            raise InputError(f"image id '{name}' stands twice in the request; each may stand once")
        seen.add(name)


def _check_preprocessing(told: str, model: ServedModel) -> None:
    if told != model.info.preprocessing:
        raise InputError(
            f"the pixels were made with preprocessing '{told}', the model has '{model.info.preprocessing}': their "
            "scores would differ; send the files instead, or use the image libraries of the lock file"
        )


def _wrong_length(length: int, side: int) -> Failure:
    return Failure(
        Trouble.BAD_IMAGE, f"pixels must be {side} x {side} x 3 = {side * side * 3} bytes, got {length}"
    )


def _describe(model: ServedModel, limits: Limits) -> Any:
    info = model.info
    return pb.GetModelResponse(
        model=_ref(model),
        classes=info.classes,
        image_size=info.size,
        preprocessing=info.preprocessing,
        thresholds=info.thresholds,
        limits=pb.Limits(
            request_images=limits.request_images,
            request_bytes=limits.request_bytes,
            image_bytes=limits.image_bytes,
            inflight_requests=limits.inflight_requests,
            inflight_images=limits.inflight_images,
            inflight_bytes=limits.inflight_bytes,
        ),
        server_version=version("tailacc"),
        device=model.device.name,
        description=info.name,
        precision_thresholds=info.precision_thresholds,
        wished_precision=info.wished_precision,
        gate=json.dumps(info.gate) if info.gate else "",
    )


def _ref(model: ServedModel) -> Any:
    ref = model.ref
    return pb.ModelRef(name=ref.name, version=ref.version, hash=ref.hash)


def _result(name: str, outcome: Outcome) -> Any:
    if isinstance(outcome, Failure):
        return pb.ImageResult(
            id=name, status=pb.ImageStatus(code=_CODES[outcome.trouble], message=outcome.message)
        )
    # As lists: protobuf takes numpy's numbers one by one, at five times the cost.
    return pb.ImageResult(id=name, status=_OK, logits=outcome.logit.tolist(), scores=outcome.score.tolist())
