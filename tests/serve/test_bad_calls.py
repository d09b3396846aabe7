"""The table of bad calls: what is wrong with a whole call, through both services, the status and the words that name
the rule. What is wrong with one image is in test_bad_images.py. NaN cannot be sent: pixels are UINT8, and another
datatype is refused by name.
"""

import grpc
import numpy as np
import pytest

from data.errors import InputError
from proto.inference.v2 import inference_pb2 as oip
from proto.tailacc.v1 import scoring_pb2 as pb
from serve.config import Connection, Limits, ScoreConfig, ServerConfig
from serve.lifecycle import ScoringServer
from serve.scoring import score

SCORE = "/tailacc.v1.Scoring/Score"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIMITS = Limits(request_images=3, request_bytes=50_000, image_bytes=50_000)
SIDE = 32
Code = grpc.StatusCode


def _score(*images: pb.Image, **fields) -> bytes:
    return pb.ScoreRequest(images=images, **fields).SerializeToString()


def _image(name="a", **fields) -> pb.Image:
    return pb.Image(id=name, **(fields or {"content": b"x"}))


def _infer(name="image", datatype="UINT8", shape=(1, SIDE, SIDE, 3), raw=None, **fields) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    raw = bytes(int(np.prod(shape))) if raw is None else raw
    return oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[raw], **fields).SerializeToString()


def _level(value: int) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=(1, SIDE, SIDE, 3))
    tensor.contents.uint_contents.extend([0] * (SIDE * SIDE * 3 - 1) + [value])
    return oip.ModelInferRequest(inputs=[tensor]).SerializeToString()


NAN = np.full((1, SIDE, SIDE, 3), np.nan, np.float32).tobytes()
BAD = {
    "score, not a message": (
        SCORE,
        b"\xff\xff",
        Code.INVALID_ARGUMENT,
        "not a message tailacc.v1.ScoreRequest",
    ),
    "score, no image": (SCORE, _score(), Code.INVALID_ARGUMENT, "must hold at least 1 image, got 0"),
    "score, too many images": (
        SCORE,
        _score(*(_image(str(n)) for n in range(4))),
        Code.INVALID_ARGUMENT,
        "4 images are over the limit of 3 in one request (--limits.request-images)",
    ),
    "score, too large": (
        SCORE,
        _score(_image(content=bytes(60_000))),
        Code.INVALID_ARGUMENT,
        "are over the limit of 50000 for one request (--limits.request-bytes)",
    ),
    "score, far too large": (
        SCORE,
        _score(_image(content=bytes(200_000))),
        Code.RESOURCE_EXHAUSTED,
        "larger than max (200011 vs. 100000)",
    ),
    "score, no id": (
        SCORE,
        _score(_image("")),
        Code.INVALID_ARGUMENT,
        "must have 1 to 1024 characters, got 0",
    ),
    "score, an id twice": (
        SCORE,
        _score(_image(), _image()),
        Code.INVALID_ARGUMENT,
        "image id 'a' stands twice in the request",
    ),
    "score, another preprocessing": (
        SCORE,
        _score(_image(pixels=bytes(SIDE * SIDE * 3)), preprocessing="other"),
        Code.INVALID_ARGUMENT,
        "the pixels were made with preprocessing 'other', the model has '",
    ),
    "score, no such model": (
        SCORE,
        _score(_image(), model="nobody"),
        Code.NOT_FOUND,
        "unknown model 'nobody'; this server has: tailacc (version 1)",
    ),
    "infer, not a message": (
        INFER,
        b"\xff\xff",
        Code.INVALID_ARGUMENT,
        "not a message inference.ModelInferRequest",
    ),
    "infer, shape": (
        INFER,
        _infer(shape=(1, 3, SIDE, SIDE)),
        Code.INVALID_ARGUMENT,
        "input 'image' must have shape [N, 32, 32, 3] with N at least 1, got [1, 3, 32, 32]",
    ),
    "infer, no image": (
        INFER,
        _infer(shape=(0, SIDE, SIDE, 3)),
        Code.INVALID_ARGUMENT,
        "with N at least 1, got [0, 32, 32, 3]",
    ),
    "infer, bytes": (
        INFER,
        _infer(raw=b"abc"),
        Code.INVALID_ARGUMENT,
        "of shape [1, 32, 32, 3] must have 3072 bytes, got 3",
    ),
    "infer, datatype, with NaN": (
        INFER,
        _infer(datatype="FP32", raw=NAN),
        Code.INVALID_ARGUMENT,
        "input 'image' must have datatype UINT8, got 'FP32'",
    ),
    "infer, level": (INFER, _level(256), Code.INVALID_ARGUMENT, "UINT8 is from 0 to 255, got 256"),
    "infer, input": (INFER, _infer(name="photo"), Code.INVALID_ARGUMENT, "unknown input 'photo'"),
    "infer, BYTES cut off": (
        INFER,
        _infer("jpeg", "BYTES", (1,), b"\x09\0\0\0abc"),
        Code.INVALID_ARGUMENT,
        "element 0 of 1 says that it has 9 bytes, but 3 of 7 are left",
    ),
    "infer, too many images": (
        INFER,
        _infer("jpeg", "BYTES", (4,), bytes(16)),
        Code.INVALID_ARGUMENT,
        "4 images are over the limit of 3 in one request (--limits.request-images)",
    ),
    "infer, too large": (
        INFER,
        _infer("jpeg", "BYTES", (1,), bytes(60_000)),
        Code.INVALID_ARGUMENT,
        "are over the limit of 50000 for one request (--limits.request-bytes)",
    ),
    "infer, far too large": (
        INFER,
        _infer("jpeg", "BYTES", (1,), bytes(200_000)),
        Code.RESOURCE_EXHAUSTED,
        "larger than max",
    ),
    "infer, no such model": (
        INFER,
        _infer(model_name="nobody"),
        Code.NOT_FOUND,
        "unknown model 'nobody'; this server has: tailacc (version 1)",
    ),
    "infer, no such version": (
        INFER,
        _infer(model_name="tailacc", model_version="7"),
        Code.NOT_FOUND,
        "unknown model 'tailacc' version '7'; this server has: tailacc (version 1)",
    ),
}


@pytest.fixture
def served(run_async, model_file):
    """Run a coroutine function with a server's address, and look that nothing is left in the server."""

    def run(scenario):
        async def whole():
            server = ScoringServer(
                ServerConfig(
                    model=str(model_file), listen="127.0.0.1:0", device="cpu", threads=1, limits=LIMITS
                )
            )
            await server.bind()
            try:
                await server.start()
                await scenario(server.address)
                assert (server.admission.requests, server.admission.images, server.admission.size) == (
                    0,
                    0,
                    0,
                )
                assert server.models.all()[0].engine.batcher.idle
                assert server.models.ready
            finally:
                await server.stop(5)

        run_async(whole())

    return run


@pytest.mark.parametrize("name", BAD)
def test_call__what_is_wrong_is_named(served, name):
    method, message, code, words = BAD[name]

    async def scenario(address):
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as info:
                await channel.unary_unary(method)(message, timeout=20)
        assert info.value.code() is code
        assert words in info.value.details()
        assert "\n" not in info.value.details()
        # Nothing of this gets better by trying again.
        assert "grpc-retry-pushback-ms" not in dict(info.value.trailing_metadata() or ())

    served(scenario)


def test_client__a_model_that_is_not_there_is_the_user_s_error(served, image_folder, tmp_path):
    async def scenario(address):
        config = ScoreConfig(
            connection=Connection(server=address, model="nobody"),
            images=str(image_folder(1)),
            out=tmp_path / "s.parquet",
        )
        with pytest.raises(
            InputError, match=r"unknown model 'nobody'; this server has: tailacc .*\(--model\)"
        ):
            await score(config)

    served(scenario)
