"""The codec of the Open Inference Protocol: ModelInferRequest to images, outcomes to ModelInferResponse.

No gRPC and no model here. inference.proto says what the tensors are. N images, S x S pixels, C classes.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from proto.inference.v2 import inference_pb2 as pb
from serve.config import Limits, option
from serve.faults import InferenceFailed
from serve.outcome import Failure, Outcome, Row, Trouble

JPEG_NAME = "jpeg"
STATUS_NAME = "status"
MESSAGE_NAME = "message"
DATATYPES = {
    INPUT_NAME: "UINT8",
    JPEG_NAME: "BYTES",
    LOGIT_NAME: "FP32",
    SCORE_NAME: "FP32",
    STATUS_NAME: "BYTES",
    MESSAGE_NAME: "BYTES",
}
INPUTS = (INPUT_NAME, JPEG_NAME)
OUTPUTS = (LOGIT_NAME, SCORE_NAME, STATUS_NAME, MESSAGE_NAME)
_DEFAULT_OUTPUTS = (LOGIT_NAME, SCORE_NAME)
_CONTENTS = {INPUT_NAME: "uint_contents", JPEG_NAME: "bytes_contents"}
_LENGTH = struct.Struct("<I")

# Parameters that ask for something this server does not do, with what to do instead. To overlook one would change
# what the caller gets, so they are refused; a name that neither we nor Triton give a meaning has no effect.
_NO_MEMORY = "shared memory is not supported; send the bytes in raw_input_contents"
_NO_SEQUENCE = "sequences are not supported; each request stands by itself"
_REFUSED = {
    "classification": f"not supported; ask for output '{SCORE_NAME}' and take the highest",
    "shared_memory_region": _NO_MEMORY,
    "shared_memory_byte_size": _NO_MEMORY,
    "shared_memory_offset": _NO_MEMORY,
    "sequence_id": _NO_SEQUENCE,
    "sequence_start": _NO_SEQUENCE,
    "sequence_end": _NO_SEQUENCE,
}


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for.

    Attributes:
        images: N encoded images, or N arrays uint8[S, S, 3].
        size: bytes of the request.
        outputs: the names of the answer's outputs, in order.
        timeout: seconds that the request may take, None for no limit.
        priority: 0 for the default, else 1 for the most urgent and upwards.
    """

    images: Sequence[bytes] | Sequence[npt.NDArray[np.uint8]]
    size: int
    outputs: tuple[str, ...]
    timeout: float | None
    priority: int


def decode_request(request: Any, size: int, info: ModelInfo, limits: Limits) -> Work:
    """Read a ModelInferRequest of `size` bytes for the model of `info`.

    Raises:
        InputError: it breaks a rule of inference.proto, or a limit; one line with the tensor, the rule and the value.
    """
    if size > limits.request_bytes:
        raise InputError(
            f"{size} bytes are over the limit of {limits.request_bytes} for one request "
            f"({option('request_bytes')})"
        )
    _refuse(request.parameters, "the request")
    micros = _whole_number(request.parameters, "timeout", "microseconds")
    priority = _whole_number(request.parameters, "priority", "0 for the default, 1 for the most urgent")
    outputs = _outputs(request.outputs)
    return Work(_images(request, info, limits), size, outputs, micros / 1e6 if micros else None, priority)


def encode_response(outputs: tuple[str, ...], outcomes: Sequence[Outcome], classes: int) -> Any:
    """A ModelInferResponse with the tensors of `outputs`, in order, for N outcomes of `classes` numbers each.

    Raises:
        InputError: an image is bad, and neither status nor message of each image is asked for.
        InferenceFailed: the same where the model failed.
    """
    if STATUS_NAME not in outputs and MESSAGE_NAME not in outputs:
        _check_all(outcomes)
    response = pb.ModelInferResponse()
    for name in outputs:
        shape, raw = _tensor(name, outcomes, classes)
        response.outputs.add(name=name, datatype=DATATYPES[name], shape=shape)
        response.raw_output_contents.append(raw)
    return response


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """A BYTES tensor: each element's length as 4 bytes, the lowest first, then its bytes."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def split_bytes(raw: bytes, count: int, name: str) -> list[bytes]:
    """The `count` elements of a BYTES tensor. Raises `InputError` naming input `name` where they do not fit."""
    elements, at = [], 0
    for number in range(count):
        left = len(raw) - at
        if left < _LENGTH.size:
            raise InputError(
                f"input '{name}': element {number} of {count} must begin with its length in 4 bytes, but {left} "
                f"of {len(raw)} bytes are left"
            )
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length > len(raw) - at:
            raise InputError(
                f"input '{name}': element {number} of {count} says that it has {length} bytes, but "
                f"{len(raw) - at} of {len(raw)} are left"
            )
        elements.append(raw[at : at + length])
        at += length
    if at != len(raw):
        raise InputError(
            f"input '{name}': {len(raw) - at} of {len(raw)} bytes are left over after the {count} elements that its "
            "shape says"
        )
    return elements


def _quote(text: str) -> str:
    """A caller's text for a message: short and on one line."""
    return repr(text if len(text) <= 64 else text[:64] + "...")


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else None


def _refuse(parameters: Mapping[str, Any], where: str) -> None:
    for name, reason in _REFUSED.items():
        if name in parameters and _value(parameters[name]):
            raise InputError(f"parameter '{name}' of {where}: {reason}")


def _whole_number(parameters: Mapping[str, Any], name: str, meaning: str) -> int:
    """A parameter that is an int64 or uint64 from 0; 0 where it is not there."""
    if name not in parameters:
        return 0
    kind, value = parameters[name].WhichOneof("parameter_choice"), _value(parameters[name])
    if kind not in ("int64_param", "uint64_param"):
        raise InputError(
            f"parameter '{name}' must be int64 or uint64 ({meaning}), got {kind} {_quote(str(value))}"
        )
    if value < 0:
        raise InputError(f"parameter '{name}' must be at least 0 ({meaning}), got {value}")
    return int(value)


def _outputs(wanted: Sequence[Any]) -> tuple[str, ...]:
    names = []
    for output in wanted:
        _refuse(output.parameters, f"output {_quote(output.name)}")
        if output.name not in OUTPUTS:
            raise InputError(f"unknown output {_quote(output.name)}; the model has: {', '.join(OUTPUTS)}")
        if output.name in names:
            raise InputError(f"output '{output.name}' is asked for twice; each may be asked for once")
        names.append(output.name)
    return tuple(names) or _DEFAULT_OUTPUTS


def _images(
    request: Any, info: ModelInfo, limits: Limits
) -> Sequence[bytes] | Sequence[npt.NDArray[np.uint8]]:
    choices = f"'{INPUT_NAME}' (UINT8 [N, {info.size}, {info.size}, 3]) or '{JPEG_NAME}' (BYTES [N])"
    if len(request.inputs) != 1:
        names = ", ".join(_quote(tensor.name) for tensor in request.inputs[:4])
        raise InputError(
            f"a request gives one input, {choices}; got {len(request.inputs)}: {names or 'none'}"
        )
    tensor = request.inputs[0]
    if tensor.name not in INPUTS:
        raise InputError(f"unknown input {_quote(tensor.name)}; a request gives {choices}")
    _refuse(tensor.parameters, f"input '{tensor.name}'")
    if tensor.datatype != DATATYPES[tensor.name]:
        raise InputError(
            f"input '{tensor.name}' must have datatype {DATATYPES[tensor.name]}, got {_quote(tensor.datatype)}; a "
            f"request gives {choices}"
        )
    # More dimensions than any tensor here has are not worth a tuple, or a place in a message.
    shape = tuple(tensor.shape[:8])
    _check_shape(tensor.name, shape, info.size, limits)
    raw, elements = _elements(request, math.prod(shape))
    if tensor.name == JPEG_NAME:
        return elements if raw is None else split_bytes(raw, shape[0], JPEG_NAME)
    if raw is None:
        levels = np.array(elements, np.uint32)
        if levels.max() > 255:
            raise InputError(f"input '{INPUT_NAME}': UINT8 is from 0 to 255, got {levels.max()}")
        return list(levels.astype(np.uint8).reshape(shape))
    if len(raw) != math.prod(shape):
        raise InputError(
            f"input '{INPUT_NAME}' of shape {list(shape)} must have {math.prod(shape)} bytes, got {len(raw)}"
        )
    return list(np.frombuffer(raw, np.uint8).reshape(shape))


def _check_shape(name: str, shape: tuple[int, ...], side: int, limits: Limits) -> None:
    """Raise `InputError` where input `name` may not have `shape`; N is from 1 to the limit."""
    allowed = ((side, side, 3),) if name == INPUT_NAME else ((), (1,))
    if not shape or shape[0] < 1 or shape[1:] not in allowed:
        rule = " or ".join(str(["N", *rest]).replace("'", "") for rest in allowed)
        raise InputError(
            f"input '{name}' must have shape {rule} with N at least 1, got {list(shape)}"
            + ("; encoded images are input 'jpeg'" if name == INPUT_NAME else "")
        )
    if shape[0] > limits.request_images:
        raise InputError(
            f"{shape[0]} images are over the limit of {limits.request_images} in one request "
            f"({option('request_images')})"
        )


def _elements(request: Any, count: int) -> tuple[bytes | None, Sequence[Any]]:
    """The raw bytes of the one input, or None and the `count` elements of its contents."""
    tensor, raws = request.inputs[0], len(request.raw_input_contents)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if raws:
        if raws != 1:
            raise InputError(f"raw_input_contents must have one entry for each of 1 inputs, got {raws}")
        if filled:
            raise InputError(
                f"input '{tensor.name}': its elements stand in raw_input_contents and in contents "
                f"({', '.join(filled)}); they may stand in one"
            )
        return request.raw_input_contents[0], ()
    field = _CONTENTS[tensor.name]
    wrong = [name for name in filled if name != field]
    if wrong:
        raise InputError(
            f"input '{tensor.name}' is {tensor.datatype}: its contents must be in {field}, got {', '.join(wrong)}"
        )
    elements = getattr(tensor.contents, field)
    if len(elements) != count:
        raise InputError(
            f"input '{tensor.name}' of shape {list(tensor.shape)} must have {count} elements in raw_input_contents "
            f"or {field}, got {len(elements)}"
        )
    return None, elements


def _check_all(outcomes: Sequence[Outcome]) -> None:
    """Raise for the first bad image, or else for the first that the model failed on."""
    failed = [(place, outcome) for place, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
    if not failed:
        return
    bad = [item for item in failed if item[1].trouble is not Trouble.INFERENCE_FAILED]
    place, failure = (bad or failed)[0]
    message = (
        f"image {place} (counted from 0): {failure.trouble.name}: {failure.message}; {len(failed)} of "
        f"{len(outcomes)} images failed; ask for output '{STATUS_NAME}' to have the others"
    )
    raise InputError(message) if bad else InferenceFailed(message)


def _tensor(name: str, outcomes: Sequence[Outcome], classes: int) -> tuple[list[int], bytes]:
    """Shape and raw bytes of output `name`."""
    if name == STATUS_NAME:
        texts = [outcome.trouble.name if isinstance(outcome, Failure) else "OK" for outcome in outcomes]
        return [len(texts)], join_bytes([text.encode() for text in texts])
    if name == MESSAGE_NAME:
        texts = [outcome.message if isinstance(outcome, Failure) else "" for outcome in outcomes]
        return [len(texts)], join_bytes([text.encode() for text in texts])
    # NaN and not 0 for an image without scores: a caller who forgets the status cannot take it for an answer.
    values = np.full((len(outcomes), classes), np.nan, "<f4")
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, Row):
            values[place] = outcome.logit if name == LOGIT_NAME else outcome.score
    return list(values.shape), values.tobytes()
