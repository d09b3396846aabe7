"""The real server in the test's own event loop, called through a real channel."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from data.image import load
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import Limits, ServerConfig
from serve.lifecycle import ScoringServer, banner

Code = pb.ImageStatus.Code
Health = health_pb2.HealthCheckResponse.ServingStatus


@asynccontextmanager
async def serving(model, **options):
    """A started server and a channel to it."""
    config = ServerConfig(model=str(model), listen="127.0.0.1:0", device="cpu", threads=1, **options)
    server = ScoringServer(config)
    await server.bind()
    try:
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.stop(5)


def _request(*images: bytes) -> pb.ScoreRequest:
    return pb.ScoreRequest(
        images=[pb.Image(id=f"i{number}", content=content) for number, content in enumerate(images)]
    )


async def _score(channel, *images: bytes, **options):
    return await scoring_pb2_grpc.ScoringStub(channel).Score(_request(*images), **options)


async def _fails(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await call
    return info.value


async def _health(channel, service="") -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    return Health.Name((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


def _offline(model, images):
    """logit and score of each image alone, straight from ONNX Runtime."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rows = [session.run(["logit", "score"], {"image": load(image, 32)[None]}) for image in images]
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


def _block(server) -> threading.Event:
    """Make the model wait until the event is set."""
    gate = threading.Event()
    run = server.engine.model.run

    def blocked(images):
        assert gate.wait(30)
        return run(images)

    server.engine.model.run = blocked
    return gate


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_score__equals_offline_whatever_the_batch(run_async, model_file, encode):
    images = [encode(seed) for seed in range(20)]

    async def scenario():
        async with serving(model_file, max_batch=7) as (_, channel):
            together = await _score(channel, *images)
            # Many callers at once: images of different calls share batches.
            alone = await asyncio.gather(*(_score(channel, image) for image in images))
            return together, alone

    together, alone = run_async(scenario())
    logit, score = _offline(model_file, images)
    assert logit.std(axis=0).min() > 0.05  # the images do differ
    for number, result in enumerate(together.results):
        assert result.id == f"i{number}"
        assert result.status.code == Code.CODE_OK
        np.testing.assert_allclose(result.logits, logit[number], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.scores, score[number], rtol=0, atol=1e-6)
        np.testing.assert_allclose(alone[number].results[0].logits, logit[number], rtol=0, atol=1e-6)


def test_score__bad_images_have_their_own_status(run_async, model_file, encode):
    good = encode(1)
    images = [good, good[:300], b"", b"hello, this is text", encode(2), good + b"\0" * 5000, encode(3)]

    async def scenario():
        async with serving(model_file, limits=Limits(image_bytes=5000)) as (_, channel):
            return await _score(channel, *images)

    response = run_async(scenario())
    codes = [Code.Name(result.status.code) for result in response.results]
    bad, ok = "CODE_BAD_IMAGE", "CODE_OK"
    assert codes == [ok, bad, bad, bad, ok, "CODE_TOO_LARGE", ok]
    logit, _ = _offline(model_file, [images[n] for n in (0, 4, 6)])
    for row, number in enumerate((0, 4, 6)):
        np.testing.assert_allclose(response.results[number].logits, logit[row], rtol=0, atol=1e-6)
        assert response.results[number].status.message == ""
    for number in (1, 2, 3, 5):
        assert not response.results[number].logits
        assert not response.results[number].scores
    assert "damaged JPEG" in response.results[1].status.message
    assert "empty" in response.results[2].status.message
    assert "text" in response.results[3].status.message
    assert response.results[5].status.message == (
        f"{len(images[5])} bytes are over the limit of 5000 for one image (--limits.image-bytes)"
    )


def test_score__a_decoder_fault_stays_with_its_image(run_async, model_file, encode, monkeypatch):
    from serve import decode

    bad = encode(5)

    def faulty(content, size):
        if content == bad:
            raise MemoryError("no room")
        return load(content, size)

    monkeypatch.setattr(decode, "load", faulty)

    async def scenario():
        async with serving(model_file) as (_, channel):
            return await _score(channel, encode(1), bad, encode(2))

    response = run_async(scenario())
    assert [result.status.code for result in response.results] == [
        Code.CODE_OK,
        Code.CODE_BAD_IMAGE,
        Code.CODE_OK,
    ]
    assert response.results[1].status.message == "the decoder failed: MemoryError: no room"


def test_score__an_inference_error_answers_its_batch_and_the_server_goes_on(run_async, make_model, encode):
    white = encode(0, colour=(255, 255, 255))

    async def scenario():
        async with serving(make_model("gather"), max_batch=3, max_delay_ms=500) as (server, channel):
            failed = await _score(channel, encode(1), white, encode(2))
            fine = await _score(channel, encode(1), encode(2), encode(3))
            return failed, fine, server.admission.requests

    failed, fine, in_flight = run_async(scenario())
    assert {result.status.code for result in failed.results} == {Code.CODE_INFERENCE_FAILED}
    assert all("Gather" in result.status.message for result in failed.results)
    assert {result.status.code for result in fine.results} == {Code.CODE_OK}
    assert in_flight == 0


def test_score__a_value_that_is_not_finite_is_a_failure(run_async, make_model, encode):
    async def scenario():
        async with serving(make_model("log")) as (_, channel):
            return await _score(channel, encode(1), encode(0, colour=(0, 0, 0)), encode(2))

    results = run_async(scenario()).results
    assert [result.status.code for result in results] == [
        Code.CODE_OK,
        Code.CODE_INFERENCE_FAILED,
        Code.CODE_OK,
    ]
    assert results[1].status.message == "the model gave a value that is not finite"
    assert not results[1].logits


def test_get_model__describes_the_file(run_async, model_file):
    import hashlib

    async def scenario():
        async with serving(model_file, limits=Limits(request_images=9)) as (server, channel):
            answer = await scoring_pb2_grpc.ScoringStub(channel).GetModel(pb.GetModelRequest())
            return answer, server.engine.model.info, banner(server)

    answer, info, text = run_async(scenario())
    assert tuple(answer.classes) == info.classes == ("cat", "dog", "person")
    assert (answer.image_size, answer.preprocessing) == (32, info.preprocessing)
    assert tuple(answer.thresholds) == pytest.approx(info.thresholds)
    assert (answer.model.name, answer.model.version) == ("mean pool 32 px", "file")
    assert answer.model.hash == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert (answer.limits.request_images, answer.limits.inflight_images, answer.device) == (9, 1024, "cpu")
    assert "asked for with --device cpu" in text
    assert answer.model.hash[:16] in text


def test_health__not_serving_before_warm_and_during_the_drain(run_async, model_file, encode):
    async def scenario():
        config = ServerConfig(model=str(model_file), listen="127.0.0.1:0", device="cpu", threads=1)
        server = ScoringServer(config)
        await server.bind()
        seen = []
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watched = []

            async def watch():
                request = health_pb2.HealthCheckRequest(service="tailacc.v1.Scoring")
                async for answer in stub.Watch(request):
                    status = Health.Name(answer.status)
                    watched.append(status)

            watching = asyncio.create_task(watch())
            seen += [await _health(channel), await _health(channel, "tailacc.v1.Scoring")]
            early = await _fails(_score(channel, encode(1)))
            early_model = await _fails(scoring_pb2_grpc.ScoringStub(channel).GetModel(pb.GetModelRequest()))
            await server.start()
            seen += [await _health(channel), await _health(channel, "tailacc.v1.Scoring")]
            gate = _block(server)
            accepted = asyncio.create_task(_score(channel, encode(1)))
            await _until(lambda: server.admission.requests == 1)
            stopping = asyncio.create_task(server.stop(30))
            await asyncio.sleep(0.01)
            seen.append(await _health(channel))
            late = await _fails(_score(channel, encode(1)))
            gate.set()
            answer = await accepted
            lost = await stopping
            await asyncio.gather(watching, return_exceptions=True)
            return seen, watched, early, early_model, late, answer, lost

    seen, watched, early, early_model, late, answer, lost = run_async(scenario())
    assert seen == ["NOT_SERVING", "NOT_SERVING", "SERVING", "SERVING", "NOT_SERVING"]
    assert watched == ["NOT_SERVING", "SERVING", "NOT_SERVING"]
    assert early.code() is early_model.code() is late.code() is grpc.StatusCode.UNAVAILABLE
    assert "loading" in early.details()
    assert "stopping" in late.details()
    assert answer.results[0].status.code == Code.CODE_OK
    assert lost == 0


def test_stop__counts_what_the_grace_period_cut_off(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (server, channel):
            gate = _block(server)
            calls = [asyncio.create_task(_score(channel, encode(n))) for n in range(3)]
            await _until(lambda: server.admission.requests == 3)
            stopping = asyncio.create_task(server.stop(0.05))
            errors = [await _fails(call) for call in calls]
            gate.set()  # the thread itself cannot be interrupted
            return await stopping, {error.code() for error in errors}, server.admission.requests

    lost, codes, in_flight = run_async(scenario())
    assert lost == 3
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert in_flight == 0


def test_reflection__lists_the_services_and_the_file(run_async, model_file):
    async def scenario():
        async with serving(model_file) as (_, channel):
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            requests = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="tailacc.v1.Scoring"),
            ]
            return [answer async for answer in stub.ServerReflectionInfo(iter(requests))]

    listed, described = run_async(scenario())
    names = {service.name for service in listed.list_services_response.service}
    assert {"tailacc.v1.Scoring", "grpc.health.v1.Health"} <= names
    file = descriptor_pb2.FileDescriptorProto.FromString(
        described.file_descriptor_response.file_descriptor_proto[0]
    )
    assert [method.name for method in file.service[0].method] == ["Score", "GetModel"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.ScoreRequest(), "at least 1 image, got 0"),
        (
            pb.ScoreRequest(images=[pb.Image(id=str(n)) for n in range(5)]),
            "5 images are over the limit of 4 in one request (--limits.request-images)",
        ),
        (
            pb.ScoreRequest(images=[pb.Image(id="a", content=bytes(10_001))]),
            "bytes are over the limit of 10000 for one request (--limits.request-bytes)",
        ),
        (pb.ScoreRequest(images=[pb.Image(id="")]), "1 to 1024 characters, got 0 at position 0"),
        (pb.ScoreRequest(images=[pb.Image(id="x" * 1025)]), "1 to 1024 characters, got 1025 at position 0"),
        (pb.ScoreRequest(images=[pb.Image(id="a"), pb.Image(id="a")]), "image id 'a' stands twice"),
    ],
)
def test_score__a_request_against_the_rules_names_the_rule(run_async, model_file, request_, words):
    async def scenario():
        limits = Limits(request_images=4, request_bytes=10_000, image_bytes=10_000)
        async with serving(model_file, limits=limits) as (_, channel):
            return await _fails(scoring_pb2_grpc.ScoringStub(channel).Score(request_))

    error = run_async(scenario())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in error.details()


def test_score__a_far_too_long_message_is_refused_by_the_transport(run_async, model_file, encode):
    async def scenario():
        limits = Limits(request_bytes=10_000, image_bytes=10_000)
        async with serving(model_file, limits=limits) as (_, channel):
            error = await _fails(_score(channel, bytes(30_000)))
            return error, await _score(channel, encode(1))

    error, after = run_async(scenario())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-retry-pushback-ms" not in dict(error.trailing_metadata() or ())
    assert after.results[0].status.code == Code.CODE_OK


@pytest.mark.parametrize(
    ("limits", "sizes", "words"),
    [
        (Limits(inflight_requests=2), (1, 1, 1), "2 requests in flight and 1 more would pass the limit of 2"),
        (
            Limits(inflight_images=64),
            (40, 20, 5),
            "60 images in flight and 5 more would pass the limit of 64",
        ),
        (
            Limits(inflight_bytes=20_000, request_bytes=20_000, image_bytes=20_000),
            (1, 1),
            "would pass the limit of 20000 (--limits.inflight-bytes)",
        ),
    ],
)
def test_score__a_full_server_pushes_back(run_async, model_file, encode, limits, sizes, words):
    async def scenario():
        async with serving(model_file, limits=limits) as (server, channel):
            gate = _block(server)
            image = encode(1) + bytes(15_000 if len(sizes) == 2 else 0)
            held = [asyncio.create_task(_score(channel, *[image] * size)) for size in sizes[:-1]]
            await _until(lambda: server.admission.requests == len(held))
            refused = await _fails(_score(channel, *[image] * sizes[-1]))
            # Neither health nor the description is shed.
            health = await _health(channel)
            await scoring_pb2_grpc.ScoringStub(channel).GetModel(pb.GetModelRequest())
            gate.set()
            answers = await asyncio.gather(*held)
            after = await _score(channel, *[image] * sizes[-1])
            admission = server.admission
            return refused, health, answers, after, (admission.requests, admission.images, admission.size)

    refused, health, answers, after, counters = run_async(scenario())
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert words in refused.details()
    assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "200"
    assert health == "SERVING"
    assert [len(answer.results) for answer in answers] == list(sizes[:-1])
    assert len(after.results) == sizes[-1]
    assert counters == (0, 0, 0)


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_score__expired_and_cancelled_work_is_dropped(run_async, model_file, encode, how):
    async def scenario():
        async with serving(model_file, max_batch=4, max_delay_ms=0) as (server, channel):
            gate = _block(server)
            running = asyncio.create_task(_score(channel, encode(0)))
            await _until(lambda: server.engine.batcher.running == 1)
            timeout = 0.2 if how == "deadline" else None
            late = [asyncio.create_task(_score(channel, encode(n), timeout=timeout)) for n in range(1, 6)]
            await _until(lambda: server.engine.batcher.waiting == 5)
            if how == "cancel":
                for call in late:
                    call.cancel()
            answers = await asyncio.gather(*late, return_exceptions=True)
            await _until(lambda: server.engine.batcher.waiting == 0)
            await _until(lambda: server.admission.requests == 1)
            gate.set()
            done = await running
            await _until(lambda: server.admission.requests == 0)
            return answers, done, (server.admission.images, server.admission.size)

    answers, done, counters = run_async(scenario())
    if how == "deadline":
        assert {answer.code() for answer in answers} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    else:
        assert {type(answer) for answer in answers} == {asyncio.CancelledError}
    assert done.results[0].status.code == Code.CODE_OK
    assert counters == (0, 0)


def test_wait_broken__says_that_the_worker_has_ended(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (server, channel):
            server.engine.batcher._worker.cancel()
            reason = await server.wait_broken()
            return reason, await _fails(_score(channel, encode(1)))

    reason, error = run_async(scenario())
    assert "worker has ended" in reason
    assert error.code() is grpc.StatusCode.UNAVAILABLE
