"""The real server in the test's own event loop, called through a real channel."""

import asyncio
import threading

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
from tests.serve.in_process import ask, fails, serving, until

Code = pb.ImageStatus.Code
Health = health_pb2.HealthCheckResponse.ServingStatus


async def _health(channel, service="") -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    return Health.Name((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


def _offline(model, images):
    """logit and score of each image alone, straight from ONNX Runtime."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rows = [session.run(["logit", "score"], {"image": load(image, 32)[None]}) for image in images]
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


def _engine(server):
    return server.models.all()[0].engine


def _block(server) -> threading.Event:
    """Make the model wait until the event is set."""
    gate = threading.Event()
    run = _engine(server).model.run

    def blocked(*arguments):
        gate.wait(30)
        return run(*arguments)

    _engine(server).model.run = blocked
    return gate


def _counters(server) -> tuple[int, ...]:
    """All that could leak: in the admission, and in the state machine."""
    admission, batcher = server.admission, _engine(server).batcher
    return (
        *(admission.requests, admission.images, admission.size),
        *(batcher.held, batcher.queued, batcher.decoding, batcher.ready, batcher.running),
    )


def test_score__equals_offline_whatever_the_batch(run_async, model_file, encode):
    images = [encode(seed) for seed in range(20)]

    async def scenario():
        async with serving(model_file, max_batch=7) as (_, channel):
            together = await ask(channel, *images)
            # Many callers at once: images of different calls share batches.
            alone = await asyncio.gather(*(ask(channel, image) for image in images))
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
            return await ask(channel, *images)

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
    from serve import engine

    bad = encode(5)

    def faulty(content, size):
        if content == bad:
            raise RuntimeError("a bug")
        return load(content, size)

    monkeypatch.setattr(engine, "load", faulty)

    async def scenario():
        async with serving(model_file) as (_, channel):
            return await ask(channel, encode(1), bad, encode(2))

    response = run_async(scenario())
    assert [result.status.code for result in response.results] == [
        Code.CODE_OK,
        Code.CODE_BAD_IMAGE,
        Code.CODE_OK,
    ]
    assert response.results[1].status.message == "the decoder failed: RuntimeError: a bug"


def test_score__an_inference_error_hurts_its_own_image_alone(run_async, make_model, encode):
    white = encode(0, colour=(255, 255, 255))

    async def scenario():
        async with serving(make_model("gather"), max_batch=3, max_delay_ms=500) as (server, channel):
            failed = await ask(channel, encode(1), white, encode(2))
            fine = await ask(channel, encode(1), encode(2), encode(3))
            return failed, fine, server.admission.requests

    failed, fine, in_flight = run_async(scenario())
    assert [result.status.code for result in failed.results] == [
        Code.CODE_OK,
        Code.CODE_INFERENCE_FAILED,
        Code.CODE_OK,
    ]
    assert "Gather" in failed.results[1].status.message
    assert {result.status.code for result in fine.results} == {Code.CODE_OK}
    assert in_flight == 0


def test_score__a_value_that_is_not_finite_is_a_failure(run_async, make_model, encode):
    async def scenario():
        async with serving(make_model("log")) as (_, channel):
            return await ask(channel, encode(1), encode(0, colour=(0, 0, 0)), encode(2))

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
            return answer, _engine(server).model.info, banner(server)

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
            early = await fails(ask(channel, encode(1)))
            early_model = await fails(scoring_pb2_grpc.ScoringStub(channel).GetModel(pb.GetModelRequest()))
            await server.start()
            seen += [await _health(channel), await _health(channel, "tailacc.v1.Scoring")]
            gate = _block(server)
            accepted = asyncio.create_task(ask(channel, encode(1)))
            await until(lambda: server.admission.requests == 1)
            stopping = asyncio.create_task(server.stop(30))
            await asyncio.sleep(0.01)
            seen.append(await _health(channel))
            late = await fails(ask(channel, encode(1)))
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
            calls = [asyncio.create_task(ask(channel, encode(n))) for n in range(3)]
            await until(lambda: server.admission.requests == 3)
            stopping = asyncio.create_task(server.stop(0.05))
            errors = [await fails(call) for call in calls]
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
            return await fails(scoring_pb2_grpc.ScoringStub(channel).Score(request_))

    error = run_async(scenario())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in error.details()


def test_score__a_far_too_long_message_is_refused_by_the_transport(run_async, model_file, encode):
    async def scenario():
        limits = Limits(request_bytes=10_000, image_bytes=10_000)
        async with serving(model_file, limits=limits) as (_, channel):
            error = await fails(ask(channel, bytes(30_000)))
            return error, await ask(channel, encode(1))

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
            held = [asyncio.create_task(ask(channel, *[image] * size)) for size in sizes[:-1]]
            await until(lambda: server.admission.requests == len(held))
            refused = await fails(ask(channel, *[image] * sizes[-1]))
            # Neither health nor the description is shed.
            health = await _health(channel)
            await scoring_pb2_grpc.ScoringStub(channel).GetModel(pb.GetModelRequest())
            gate.set()
            answers = await asyncio.gather(*held)
            after = await ask(channel, *[image] * sizes[-1])
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
    """What waits for the model, and what runs: the answer comes at the deadline, the counters go to 0."""

    async def scenario():
        async with serving(model_file, max_batch=4, max_delay_ms=0) as (server, channel):
            gate = _block(server)
            batcher = _engine(server).batcher
            timeout = 1.0 if how == "deadline" else None
            calls = [asyncio.create_task(ask(channel, encode(0), timeout=timeout))]
            await until(lambda: batcher.running == 1)
            calls += [asyncio.create_task(ask(channel, encode(n), timeout=timeout)) for n in range(1, 6)]
            await until(lambda: batcher.ready == 5)
            if how == "cancel":
                for call in calls:
                    call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            await until(lambda: server.admission.requests == batcher.held == batcher.ready == 0)
            executed = _engine(server).statistics.execution_count
            gate.set()
            await until(lambda: not any(_counters(server)))
            statistics = _engine(server).statistics
            return answers, executed, statistics, await ask(channel, encode(1))

    answers, executed, statistics, after = run_async(scenario())
    if how == "deadline":
        assert {answer.code() for answer in answers} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert statistics.fail.count + statistics.cancel.count == 6
    else:
        assert {type(answer) for answer in answers} == {asyncio.CancelledError}
        assert statistics.cancel.count == 6
    assert executed == 0
    assert statistics.inference_count == 2  # the one that ran when it was dropped, and the last
    assert after.results[0].status.code == Code.CODE_OK


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_score__work_is_dropped_before_it_is_decoded(run_async, model_file, encode, monkeypatch, how):
    from serve import engine

    gate, decoded = threading.Event(), []

    def slow(content, size):
        gate.wait(30)
        decoded.append(content)
        return load(content, size)

    monkeypatch.setattr(engine, "load", slow)

    async def scenario():
        async with serving(model_file, decode_threads=1) as (server, channel):
            batcher = _engine(server).batcher
            timeout = 1.0 if how == "deadline" else None
            calls = [asyncio.create_task(ask(channel, encode(n), timeout=timeout)) for n in range(4)]
            await until(lambda: (batcher.decoding, batcher.queued) == (1, 3))
            if how == "cancel":
                for call in calls:
                    call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await until(lambda: server.admission.requests == batcher.held == batcher.queued == 0)
            gate.set()
            await until(lambda: not any(_counters(server)))
            return _engine(server).statistics.inference_count

    assert run_async(scenario()) == 0
    assert len(decoded) == 1  # the one that had begun


def test_score__a_deadline_that_cannot_be_met_is_refused_at_once(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (server, channel):
            engine = _engine(server)
            gate = _block(server)
            engine._pace = 2.0
            engine._decode_pace = 0.0
            held = asyncio.create_task(ask(channel, encode(1)))
            await until(lambda: engine.batcher.running == 1)
            refused = await fails(ask(channel, encode(2), timeout=1.5))
            gate.set()
            return refused, await held

    refused, answer = run_async(scenario())
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (
        "1 images are before this request, about 2.00 s of work, and its deadline is in 1."
        in refused.details()
    )
    assert 400 < int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]) < 1000
    assert answer.results[0].status.code == Code.CODE_OK


def test_score__the_work_before_a_request_is_decoding_too(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file, decode_threads=2, threads=2, max_batch=1) as (server, channel):
            engine = _engine(server)
            gate = _block(server)
            held = [asyncio.create_task(ask(channel, encode(n))) for n in range(6)]
            await until(lambda: engine.batcher.running == 2 and engine.batcher.queued == 4)
            engine._pace, engine._decode_pace = 0.001, 5.0
            refused = await fails(ask(channel, encode(9), timeout=8))
            gate.set()
            await asyncio.gather(*held)
            return refused

    refused = run_async(scenario())
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # 4 images of 5 s on 2 threads.
    assert "6 images are before this request, about 10.01 s of work" in refused.details()


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_worker__its_death_gives_back_what_it_held_and_another_takes_over(run_async, model_file, encode, how):
    async def scenario():
        async with serving(model_file, max_batch=1, stall_s=0.5) as (server, channel):
            engine = _engine(server)
            gate = _block(server)
            blocked = engine.model.run

            def end(*arguments):
                blocked(*arguments)
                raise SystemExit("the worker's end")

            if how == "dies":
                engine.model.run = end
            calls = [asyncio.create_task(ask(channel, encode(n))) for n in range(3)]
            await until(lambda: engine.batcher.ready + engine.batcher.running == 3)
            reopened = threading.Event()
            reopen = engine.model.reopen

            def slowly():
                reopened.wait(30)
                return reopen()

            engine.model.reopen = slowly
            if how == "dies":
                gate.set()
            errors = [await fails(call) for call in calls]
            late = await fails(ask(channel, encode(1)))
            while await _health(channel) == "SERVING":
                await asyncio.sleep(0.02)
            health = [await _health(channel, name) for name in ("tailacc.v1.Scoring", "tailacc")]
            reopened.set()
            gate.set()
            while await _health(channel) != "SERVING":
                await asyncio.sleep(0.02)
            answer = await ask(channel, encode(1))
            await until(lambda: not any(_counters(server)))
            return errors, late, health, answer, (server.worker.deaths, engine.restarts)

    errors, late, health, answer, counts = run_async(scenario())
    words = "died of SystemExit" if how == "dies" else "made no progress for 0.5 s (--stall-s)"
    for error in (*errors, late):
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert words in error.details()
    assert health == ["NOT_SERVING", "NOT_SERVING"]
    assert answer.results[0].status.code == Code.CODE_OK
    assert counts == (1, 1)


def test_worker__batches_run_at_once_and_the_one_that_hangs_ends_the_worker(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file, threads=2, max_batch=1, stall_s=0.5) as (server, channel):
            engine = _engine(server)
            run, hang, seen = engine.model.run, threading.Event(), []
            both = threading.Barrier(2, timeout=20)

            def together(images, alone):
                seen.append(alone)
                both.wait()
                return run(images, alone)

            engine.model.run = together
            pair = await ask(channel, encode(1), encode(2))  # breaks where one waits for the other
            engine.model.run = lambda *arguments: hang.wait(30) and run(*arguments)
            stuck = asyncio.create_task(ask(channel, encode(1)))
            await until(lambda: engine.batcher.running == 1)
            engine.model.run = run
            alive = await ask(channel, encode(3))
            lost = await fails(stuck)
            hang.set()
            await until(lambda: engine.ready)
            after = await ask(channel, encode(1))
            return pair, seen, alive, lost, after, server.worker.deaths

    pair, seen, alive, lost, after, deaths = run_async(scenario())
    logit, _ = _offline(model_file, [encode(1), encode(2), encode(3)])
    rows = [*pair.results, *alive.results, *after.results]
    np.testing.assert_allclose([row.logits for row in rows], logit[[0, 1, 2, 0]], rtol=0, atol=1e-6)
    assert seen == [False, False]
    assert "made no progress for 0.5 s (--stall-s)" in lost.details()
    assert deaths == 1


def test_worker__a_model_that_fails_on_its_golden_image_too_is_opened_again(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (server, channel):
            engine = _engine(server)

            def broken(*arguments):
                raise RuntimeError("the device is lost")

            engine.model.run = broken
            lost = await fails(ask(channel, encode(1)))
            await until(lambda: engine.ready)
            return lost, await ask(channel, encode(1)), engine.restarts

    lost, answer, restarts = run_async(scenario())
    assert lost.code() is grpc.StatusCode.UNAVAILABLE
    assert "the device is lost" in lost.details()
    assert answer.results[0].status.code == Code.CODE_OK
    assert restarts == 1


def test_score__several_models_in_one_server(run_async, make_model, encode):
    one, two = make_model(), make_model(seed=7)

    async def scenario():
        async with serving(f"{one},second={two}") as (server, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            image = pb.Image(id="a", content=encode(1))
            answers = [
                await stub.Score(pb.ScoreRequest(images=[image], model=name))
                for name in ("", "tailacc", "second")
            ]
            unknown = await fails(stub.Score(pb.ScoreRequest(images=[image], model="third")))
            described = await stub.GetModel(pb.GetModelRequest(model="second"))
            return answers, unknown, described, await _health(channel, "second"), banner(server)

    answers, unknown, described, health, text = run_async(scenario())
    assert answers[0].model.hash == answers[1].model.hash != answers[2].model.hash == described.model.hash
    for answer, path in zip(answers, (one, one, two), strict=True):
        logit, _ = _offline(path, [encode(1)])
        np.testing.assert_allclose(answer.results[0].logits, logit[0], rtol=0, atol=1e-6)
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert unknown.details() == (
        "unknown model 'third'; this server has: second (version 1), tailacc (version 1)"
    )
    assert health == "SERVING"
    assert "second: mean pool 32 px" in text


def test_score__pixels_equal_files_bit_for_bit(run_async, model_file, encode):
    files = [encode(seed) for seed in range(5)]

    async def scenario():
        async with serving(model_file) as (server, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            images = [pb.Image(id=str(n), pixels=load(file, 32).tobytes()) for n, file in enumerate(files)]
            images.insert(2, pb.Image(id="short", pixels=b"123"))
            told = _engine(server).model.info.preprocessing
            pixels = await stub.Score(pb.ScoreRequest(images=images, preprocessing=told))
            other = await fails(stub.Score(pb.ScoreRequest(images=images, preprocessing="other")))
            return pixels, other, await ask(channel, *files)

    pixels, other, together = run_async(scenario())
    short = pixels.results.pop(2)
    assert short.status.code == Code.CODE_BAD_IMAGE
    assert short.status.message == "pixels must be 32 x 32 x 3 = 3072 bytes, got 3"
    assert [list(result.logits) for result in pixels.results] == [list(r.logits) for r in together.results]
    assert other.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "made with preprocessing 'other'" in other.details()


def test_statistics__count_requests_images_and_batches(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file, max_batch=4, max_delay_ms=500, decode_threads=1) as (server, channel):
            await ask(channel, *(encode(n) for n in range(7)), b"text")
            await ask(channel, encode(1))
            return server.models.get("tailacc").statistics

    statistics = run_async(scenario())
    assert (statistics.success.count, statistics.fail.count, statistics.cancel.count) == (2, 0, 0)
    assert (statistics.inference_count, statistics.bad_images, statistics.padded) == (8, 1, 0)
    ran = {size: batch.compute_infer.count for size, batch in statistics.batches.items()}
    assert sum(size * count for size, count in ran.items()) == 8
    assert ran[4] >= 1
    assert sum(ran.values()) == statistics.execution_count
    parts = (statistics.queue, statistics.compute_input, statistics.compute_infer, statistics.compute_output)
    assert [part.count for part in parts] == [2, 2, 2, 2]
    assert min(part.ns for part in parts[1:]) > 0
    assert parts[2].ns < statistics.success.ns
