"""Health and reflection: bytes that are no message, and the list of health."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serve.config import ServerConfig
from serve.lifecycle import ScoringServer

_SERVICES = {"", "tailacc", "tailacc.v1.Scoring", "inference.GRPCInferenceService"}


@pytest.fixture
def with_channel(run_async, model_file):
    """Run `ask(channel)` against a server of one model."""

    def run(ask):
        async def scenario():
            server = ScoringServer(ServerConfig(model=str(model_file), listen="127.0.0.1:0", device="cpu"))
            await server.bind()
            try:
                await server.start()
                async with grpc.aio.insecure_channel(server.address) as channel:
                    return await ask(channel)
            finally:
                await server.stop(5)

        return run_async(scenario())

    return run


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("unary_unary", "/grpc.health.v1.Health/Check"),
        ("unary_unary", "/grpc.health.v1.Health/List"),
        ("unary_stream", "/grpc.health.v1.Health/Watch"),
        ("stream_stream", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    ],
)
def test_standard__what_is_no_message_is_the_caller_s_error_and_no_line_in_the_log(
    with_channel, caplog, kind, method
):
    async def ask(channel):
        raw = b"\xff\xff"
        call = getattr(channel, kind)(method)(iter([raw]) if kind == "stream_stream" else raw, timeout=20)
        return await call.code(), await call.details()

    code, details = with_channel(ask)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("the request is not a message of this method: ")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_health__lists_what_there_is(with_channel):
    async def ask(channel):
        return await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=20)

    statuses = with_channel(ask).statuses
    assert set(statuses) == _SERVICES
    assert {one.status for one in statuses.values()} == {health_pb2.HealthCheckResponse.SERVING}


def test_reflection__a_bad_message_ends_its_own_stream_alone(with_channel):
    async def ask(channel):
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        good = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = channel.stream_stream(method)(iter([good.SerializeToString(), b"\xff"]), timeout=20)
        first = reflection_pb2.ServerReflectionResponse.FromString(await stream.read())
        code = await stream.code()
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        return first, code, [one async for one in stub.ServerReflectionInfo(iter([good]), timeout=20)]

    first, code, again = with_channel(ask)
    assert {service.name for service in first.list_services_response.service} > _SERVICES - {"", "tailacc"}
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(again) == 1
