"""The codec of the Open Inference Protocol: every rule, with the words of its refusal."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from data.model_file import ModelInfo
from proto.inference.v2 import inference_pb2 as pb
from serve.config import Limits
from serve.faults import InferenceFailed
from serve.inference_codec import decode_request, encode_response, join_bytes, split_bytes
from serve.outcome import Failure, Row, Trouble

SIDE = 4
PIXELS = SIDE * SIDE * 3
INFO = ModelInfo(
    name="test",
    classes=("cat", "dog", "person"),
    size=SIDE,
    preprocessing="test",
    scale=(1.0,) * 3,
    bias=(0.0,) * 3,
    thresholds=(0.5,) * 3,
)


TWO = (join_bytes([b"abc", b""]),)


def _request(name="jpeg", datatype="BYTES", shape=(2,), raw=TWO, outputs=(), **contents):
    request = pb.ModelInferRequest(
        inputs=[pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=output) for output in outputs],
        raw_input_contents=raw,
    )
    for field, values in contents.items():
        getattr(request.inputs[0].contents, field).extend(values)
    return request


def _pixels(count=2, **changes):
    values = np.arange(count * PIXELS, dtype=np.uint8)
    changes = {"shape": (count, SIDE, SIDE, 3), "raw": (values.tobytes(),)} | changes
    return _request("image", "UINT8", **changes)


def _with_parameters(request):
    request.parameters["timeout"].int64_param = 5
    request.parameters["priority"].uint64_param = 2
    return request


_SEEDS = [
    request.SerializeToString()
    for request in (
        _request(),
        _with_parameters(_request(outputs=("score", "status"))),
        _request(raw=(), bytes_contents=[b"abc", b""]),
        _pixels(),
        _pixels(raw=(), uint_contents=range(96)),
    )
]


def _read(request, **limits):
    return decode_request(request, request.ByteSize(), INFO, Limits(**limits))


def _refusal(request, **limits) -> str:
    with pytest.raises(InputError) as info:
        _read(request, **limits)
    assert "\n" not in str(info.value)
    return str(info.value)


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_split_bytes__undoes_join_bytes(elements):
    assert split_bytes(join_bytes(elements), len(elements), "jpeg") == elements


@given(st.binary(max_size=60), st.integers(0, 6))
def test_split_bytes__any_bytes_are_split_or_refused(raw, count):
    try:
        elements = split_bytes(raw, count, "jpeg")
    except InputError:
        return
    assert join_bytes(elements) == raw
    assert len(elements) == count


def test_join_bytes__is_a_length_of_4_bytes_the_lowest_first():
    assert join_bytes([b"ab", b""]) == b"\x02\0\0\0ab\0\0\0\0"
    assert join_bytes([b"x" * 258])[:4] == b"\x02\x01\0\0"


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("raw", [True, False])
def test_decode_request__encoded_images(shape, raw):
    request = _request(shape=shape) if raw else _request(shape=shape, raw=(), bytes_contents=[b"abc", b""])
    work = _read(request)
    assert list(work.images) == [b"abc", b""]
    assert work.size == request.ByteSize()
    assert (work.outputs, work.timeout, work.priority) == (("logit", "score"), None, 0)


@pytest.mark.parametrize("raw", [True, False])
def test_decode_request__pixels(raw):
    values = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    request = (
        _pixels(raw=(values.tobytes(),)) if raw else _pixels(raw=(), uint_contents=values.flatten().tolist())
    )
    images = _read(request).images
    assert [image.dtype for image in images] == [np.uint8, np.uint8]
    np.testing.assert_array_equal(np.stack(images), values)


@given(st.data())
def test_decode_request__any_message_is_read_or_refused(data):
    """Bytes of real requests, changed here and there: no error but `InputError`."""
    number = st.integers(0, 255)
    raw = bytearray(data.draw(st.sampled_from(_SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(("change", "drop", "double"))):
            case "change":
                raw[place] = data.draw(number)
            case "drop" if len(raw) > 1:
                del raw[place]
            case _:
                raw[place:place] = raw[place : place + data.draw(number)]
    try:
        request = pb.ModelInferRequest.FromString(bytes(raw))
        work = _read(request)
    except (DecodeError, InputError):
        return
    assert 1 <= len(work.images) <= 64
    assert all(isinstance(image, bytes) or image.shape == (SIDE, SIDE, 3) for image in work.images)
    assert set(work.outputs) <= {"logit", "score", "status", "message"}


def _two_inputs():
    request = _request()
    request.inputs.append(_pixels().inputs[0])
    return request


def _no_inputs():
    return pb.ModelInferRequest()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            _no_inputs(),
            "a request gives one input, 'image' (UINT8 [N, 4, 4, 3]) or 'jpeg' (BYTES [N]); got 0: none",
        ),
        (
            _two_inputs(),
            "a request gives one input, 'image' (UINT8 [N, 4, 4, 3]) or 'jpeg' (BYTES [N]); got 2: 'jpeg', 'image'",
        ),
        (_request(name="picture"), "unknown input 'picture'; a request gives 'image' (UINT8"),
        (_request(name="a\n" + "b" * 9999), "unknown input 'a\\n" + "b" * 62 + "...'; a request gives"),
        (_request(shape=[1] * 99999), "with N at least 1, got [1, 1, 1, 1, 1, 1, 1, 1]"),
        (_request(datatype="UINT8"), "input 'jpeg' must have datatype BYTES, got 'UINT8'"),
        (
            _pixels(shape=(2, 3, 4, 4)),
            "input 'image' must have shape [N, 4, 4, 3] with N at least 1, got [2, 3",
        ),
        (_pixels(shape=(0, 4, 4, 3), raw=(b"",)), "with N at least 1, got [0, 4, 4, 3]"),
        (_pixels(shape=(-1, 4, 4, 3)), "with N at least 1, got [-1, 4, 4, 3]"),
        (_pixels(shape=(4, 4, 3)), "got [4, 4, 3]; encoded images are input 'jpeg'"),
        (_request(shape=()), "input 'jpeg' must have shape [N] or [N, 1] with N at least 1, got []"),
        (_request(shape=(1, 2)), "input 'jpeg' must have shape [N] or [N, 1] with N at least 1, got [1, 2]"),
        (
            _request(shape=(65,)),
            "65 images are over the limit of 64 in one request (--limits.request-images)",
        ),
        (_request(shape=(2**62,)), "are over the limit of 64 in one request (--limits.request-images)"),
        (_pixels(raw=(b"123",)), "input 'image' of shape [2, 4, 4, 3] must have 96 bytes, got 3"),
        (
            _request(raw=(b"\x03\0\0\0abc\0\0",)),
            "input 'jpeg': element 1 of 2 must begin with its length in 4 bytes, but 2 of 9 bytes are left",
        ),
        (
            _request(raw=(b"\xff\xff\xff\xffabc",)),
            "input 'jpeg': element 0 of 2 says that it has 4294967295 bytes, but 3 of 7 are left",
        ),
        (
            _request(raw=(join_bytes([b"a", b"b", b"c"]),)),
            "input 'jpeg': 5 of 15 bytes are left over after the 2 elements that its shape says",
        ),
        (_request(raw=(b"", b"")), "raw_input_contents must have one entry for each of 1 inputs, got 2"),
        (
            _request(bytes_contents=[b"a", b"b"]),
            "stand in raw_input_contents and in contents (bytes_contents)",
        ),
        (
            _request(raw=(), uint_contents=[1]),
            "input 'jpeg' is BYTES: its contents must be in bytes_contents, got uint_contents",
        ),
        (_pixels(raw=(), int_contents=[1]), "its contents must be in uint_contents, got int_contents"),
        (
            _request(raw=(), bytes_contents=[b"a"]),
            "input 'jpeg' of shape [2] must have 2 elements in raw_input_contents or bytes_contents, got 1",
        ),
        (_request(raw=()), "must have 2 elements in raw_input_contents or bytes_contents, got 0"),
        (_pixels(raw=(), uint_contents=[256] * 96), "input 'image': UINT8 is from 0 to 255, got 256"),
        (
            _request(outputs=("logit", "label")),
            "unknown output 'label'; the model has: logit, score, status, message",
        ),
        (_request(outputs=("score", "score")), "output 'score' is asked for twice"),
    ],
)
def test_decode_request__refuses_in_words(request_, words):
    assert words in _refusal(request_)


def test_decode_request__too_many_bytes():
    request = _request(raw=(join_bytes([b"x" * 100, b""]),))
    size = request.ByteSize()
    assert _read(request, request_bytes=size).size == size
    assert (
        _refusal(request, request_bytes=size - 1)
        == f"{size} bytes are over the limit of {size - 1} for one request (--limits.request-bytes)"
    )


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_decode_request__timeout_and_priority(kind):
    request = _request()
    setattr(request.parameters["timeout"], kind, 1_500_000)
    setattr(request.parameters["priority"], kind, 3)
    work = _read(request)
    assert (work.timeout, work.priority) == (1.5, 3)
    setattr(request.parameters["timeout"], kind, 0)
    assert _read(request).timeout is None


@pytest.mark.parametrize(
    ("name", "kind", "value", "words"),
    [
        ("timeout", "string_param", "5", "must be int64 or uint64 (microseconds), got string_param '5'"),
        ("timeout", "int64_param", -1, "parameter 'timeout' must be at least 0 (microseconds), got -1"),
        ("priority", "double_param", 0.5, "parameter 'priority' must be int64 or uint64"),
        (
            "sequence_id",
            "int64_param",
            7,
            "parameter 'sequence_id' of the request: sequences are not supported",
        ),
        ("sequence_id", "string_param", "a", "sequences are not supported"),
        ("sequence_end", "bool_param", True, "parameter 'sequence_end' of the request: sequences"),
    ],
)
def test_decode_request__refuses_parameters(name, kind, value, words):
    request = _request()
    setattr(request.parameters[name], kind, value)
    assert words in _refusal(request)


def test_decode_request__refuses_parameters_of_tensors():
    request = _request()
    request.inputs[0].parameters["shared_memory_region"].string_param = "pool"
    assert "parameter 'shared_memory_region' of input 'jpeg': shared memory is not supported" in _refusal(
        request
    )
    request = _request(outputs=("score",))
    request.outputs[0].parameters["classification"].int64_param = 3
    assert "parameter 'classification' of output 'score': not supported; ask for output" in _refusal(request)
    request.outputs[0].parameters["classification"].int64_param = 0  # what it is without
    assert _read(request).outputs == ("score",)


def test_decode_request__tolerates_what_has_no_effect():
    request = _request(outputs=("score",))
    request.outputs[0].parameters["binary_data"].bool_param = True
    request.inputs[0].parameters["content_type"].string_param = "raw"
    request.parameters["binary_data_output"].bool_param = True
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["sequence_start"].bool_param = False
    assert list(_read(request).images) == [b"abc", b""]


ROW = Row(np.array([1, -2, 3], np.float32), np.array([0.5, 0.25, 1], np.float32))
BAD = Failure(Trouble.BAD_IMAGE, "not an image")
BROKEN = Failure(Trouble.INFERENCE_FAILED, "the model raised")


def test_encode_response__the_outputs_in_the_order_of_the_request():
    response = encode_response(("score", "logit"), [ROW, ROW], 3)
    assert [(out.name, out.datatype, list(out.shape)) for out in response.outputs] == [
        ("score", "FP32", [2, 3]),
        ("logit", "FP32", [2, 3]),
    ]
    score, logit = (np.frombuffer(raw, "<f4").reshape(2, 3) for raw in response.raw_output_contents)
    np.testing.assert_array_equal(score, [ROW.score] * 2)
    np.testing.assert_array_equal(logit, [ROW.logit] * 2)
    assert not any(out.HasField("contents") for out in response.outputs)


def test_encode_response__a_failed_image_has_its_status_and_no_number():
    response = encode_response(("status", "logit", "message"), [ROW, BAD, BROKEN], 3)
    status, logit, message = response.raw_output_contents
    assert split_bytes(status, 3, "status") == [b"OK", b"BAD_IMAGE", b"INFERENCE_FAILED"]
    assert split_bytes(message, 3, "message") == [b"", b"not an image", b"the model raised"]
    rows = np.frombuffer(logit, "<f4").reshape(3, 3)
    np.testing.assert_array_equal(rows[0], ROW.logit)
    assert np.isnan(rows[1:]).all()
    assert [(out.name, out.datatype, list(out.shape)) for out in response.outputs][0::2] == [
        ("status", "BYTES", [3]),
        ("message", "BYTES", [3]),
    ]


def test_encode_response__one_failed_image_fails_a_request_that_asks_for_no_status():
    with pytest.raises(InputError) as info:
        encode_response(("logit", "score"), [ROW, BROKEN, BAD, ROW, BAD], 3)
    assert str(info.value) == (
        "image 2 (counted from 0): BAD_IMAGE: not an image; 3 of 5 images failed; ask for output 'status' to have "
        "the others"
    )
    with pytest.raises(InferenceFailed, match=r"image 1 .*INFERENCE_FAILED: the model raised; 1 of 2 images"):
        encode_response(("score",), [ROW, BROKEN], 3)
