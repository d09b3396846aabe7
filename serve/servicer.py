"""The servicer of tailacc.v1.Scoring: messages to the domain and back, nothing else."""

import asyncio
from importlib.metadata import version
from typing import Any

from data.errors import InputError
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.admission import Admission, NotAccepting
from serve.config import Limits
from serve.engine import Engine, Failure, Outcome, Trouble
from serve.errors import abort

SERVICE = "tailacc.v1.Scoring"
_ID_CHARACTERS = 1024

_CODES = {
    Trouble.BAD_IMAGE: pb.ImageStatus.CODE_BAD_IMAGE,
    Trouble.TOO_LARGE: pb.ImageStatus.CODE_TOO_LARGE,
    Trouble.INFERENCE_FAILED: pb.ImageStatus.CODE_INFERENCE_FAILED,
}


class ScoringServicer(scoring_pb2_grpc.ScoringServicer):
    """Answers from `engine`, which is None until the model is warm."""

    def __init__(self, admission: Admission, limits: Limits) -> None:
        self.engine: Engine | None = None
        self._admission, self._limits = admission, limits

    async def Score(self, request: Any, context: Any) -> Any:
        """See scoring.proto."""
        try:
            return await self._score(request, context.time_remaining())
        except Exception as error:
            await abort(context, error)

    async def GetModel(self, request: Any, context: Any) -> Any:
        """See scoring.proto."""
        if self.engine is None:
            await abort(context, NotAccepting(self._admission.closed))
        model, limits = self.engine.model, self._limits
        return pb.GetModelResponse(
            model=_ref(self.engine),
            classes=model.info.classes,
            image_size=model.info.size,
            preprocessing=model.info.preprocessing,
            thresholds=model.info.thresholds,
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
            description=model.info.name,
        )

    async def _score(self, request: Any, seconds_left: float | None) -> Any:
        size = request.ByteSize()
        check_request([image.id for image in request.images], size, self._limits)
        with self._admission.admit(len(request.images), size):
            engine = self.engine
            if engine is None:
                raise NotAccepting(self._admission.closed)
            try:
                async with asyncio.timeout(seconds_left):
                    outcomes = await engine.score([image.content for image in request.images])
            except TimeoutError as error:
                raise TimeoutError(f"the deadline of {seconds_left:.3f} s passed") from error
            results = [
                _result(image.id, outcome) for image, outcome in zip(request.images, outcomes, strict=True)
            ]
            return pb.ScoreResponse(results=results, model=_ref(engine))


def check_request(ids: list[str], size: int, limits: Limits) -> None:
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


def _ref(engine: Engine) -> Any:
    ref = engine.model.ref
    return pb.ModelRef(name=ref.name, version=ref.version, hash=ref.hash)


def _result(name: str, outcome: Outcome) -> Any:
    if isinstance(outcome, Failure):
        return pb.ImageResult(
            id=name, status=pb.ImageStatus(code=_CODES[outcome.trouble], message=outcome.message)
        )
    return pb.ImageResult(
        id=name,
        status=pb.ImageStatus(code=pb.ImageStatus.CODE_OK),
        logits=outcome.logit,
        scores=outcome.score,
    )
