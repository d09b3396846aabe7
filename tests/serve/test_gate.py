"""The gate: what there is no room for is refused before its message is read."""

import threading

import grpc
import pytest

from proto.inference.v2 import inference_pb2 as oip
from proto.tailacc.v1 import scoring_pb2 as pb
from serve import engine, inference_service, received, servicer
from serve.config import Limits, ServerConfig
from serve.lifecycle import ScoringServer
from tests.serve.in_process import until

SCORE = "/tailacc.v1.Scoring/Score"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def _messages(encode) -> dict[str, bytes]:
    content = encode(0)
    tensor = oip.ModelInferRequest.InferInputTensor(name="jpeg", datatype="BYTES", shape=[1])
    raw = len(content).to_bytes(4, "little") + content
    return {
        SCORE: pb.ScoreRequest(images=[pb.Image(id="a", content=content)]).SerializeToString(),
        INFER: oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[raw]).SerializeToString(),
    }


@pytest.fixture
def read(monkeypatch):
    """The methods whose messages were read, in order."""
    seen = []

    original = received.reader

    def watched(kind):
        parse, method = original(kind), {"ScoreRequest": SCORE, "ModelInferRequest": INFER}
        return lambda raw: (seen.append(method.get(kind.DESCRIPTOR.name)), parse(raw))[1]

    monkeypatch.setattr(servicer, "reader", watched)
    monkeypatch.setattr(inference_service, "reader", watched)
    return seen


@pytest.fixture
def gate(monkeypatch):
    """Decoding stands still until it is set."""
    out, load = threading.Event(), engine.load
    monkeypatch.setattr(engine, "load", lambda content, size: (out.wait(30), load(content, size))[1])
    yield out
    out.set()


async def _serve(model, limits):
    server = ScoringServer(
        ServerConfig(model=str(model), listen="127.0.0.1:0", device="cpu", threads=1, limits=limits)
    )
    await server.bind()
    return server


def test_gate__a_full_server_answers_without_reading_the_message(run_async, model_file, encode, read, gate):
    messages = _messages(encode)
    large = pb.ScoreRequest(images=[pb.Image(id="a", content=bytes(20_000_000))]).SerializeToString()

    async def scenario():
        server = await _serve(model_file, Limits(inflight_requests=1))
        try:
            await server.start()
            async with grpc.aio.insecure_channel(server.address) as channel:
                held = channel.unary_unary(SCORE)(messages[SCORE])
                await until(lambda: server.admission.requests == 1)
                errors = []
                for method, message in ((SCORE, messages[SCORE]), (INFER, messages[INFER]), (SCORE, large)):
                    for _ in range(20 if message is not large else 1):
                        with pytest.raises(grpc.aio.AioRpcError) as info:
                            await channel.unary_unary(method)(message, timeout=20)
                        errors.append(info.value)
                gate.set()
                await held
                assert server.admission.requests == 0
                await channel.unary_unary(INFER)(messages[INFER])
                return errors
        finally:
            await server.stop(5)

    errors = run_async(scenario())
    assert len(errors) == 41
    for error in errors:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == (
            "the server is full: 1 requests in flight and 1 more would pass the limit of 1 "
            "(--limits.inflight-requests); try again in 200 ms"
        )
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "200"
    assert read == [SCORE, INFER]  # the one that was held, and the one after it


def test_gate__before_it_is_ready_a_server_says_so_and_still_answers_what_it_can(
    run_async, model_file, encode, read
):
    async def scenario():
        server = await _serve(model_file, Limits())
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                for method, message in _messages(encode).items():
                    with pytest.raises(grpc.aio.AioRpcError) as info:
                        await channel.unary_unary(method)(message)
                    assert info.value.code() is grpc.StatusCode.UNAVAILABLE
                    assert "the model is loading" in info.value.details()
                assert read == []
                live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
                assert oip.ServerLiveResponse.FromString(await live(b"")).live
                with pytest.raises(grpc.aio.AioRpcError) as info:
                    await channel.unary_unary("/tailacc.v1.Scoring/Nothing")(b"")
                assert info.value.code() is grpc.StatusCode.UNIMPLEMENTED
        finally:
            await server.stop(5)

    run_async(scenario())
