"""The Open Inference Protocol through a real channel, against the real server in the test's own event loop."""

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
from proto.inference.v2 import inference_pb2 as pb
from proto.inference.v2 import inference_pb2_grpc
from serve.config import Limits
from serve.inference_codec import join_bytes, split_bytes
from tests.serve import in_process
from tests.serve.in_process import fails, until

SIDE = 32
UNARY = [method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
UNARY.remove("ModelStreamInfer")


@asynccontextmanager
async def serving(model, **options):
    """A server and a stub with its channel."""
    async with in_process.serving(model, **options) as (server, channel):
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.channel = channel
        yield server, stub


def _jpeg(*images, outputs=(), **fields):
    return _request("jpeg", "BYTES", (len(images),), join_bytes(images), outputs, fields)


def _pixels(values, outputs=(), **fields):
    return _request("image", "UINT8", values.shape, values.tobytes(), outputs, fields)


def _request(name, datatype, shape, raw, outputs, fields):
    micros = fields.pop("timeout", None)
    request = pb.ModelInferRequest(
        inputs=[pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=output) for output in outputs],
        raw_input_contents=[raw],
        **{"model_name": "tailacc"} | fields,
    )
    if micros is not None:
        request.parameters["timeout"].int64_param = micros
    return request


def _tensors(response) -> dict:
    """name -> array, or list of bytes."""
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "FP32":
            found[output.name] = np.frombuffer(raw, "<f4").reshape(output.shape)
        else:
            found[output.name] = split_bytes(raw, output.shape[0], output.name)
    return found


def _offline(model, images):
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(["logit", "score"], {"image": np.stack([load(image, SIDE) for image in images])})


def _block(server) -> threading.Event:
    """Make the model wait until the event is set."""
    gate = threading.Event()
    model = server.models.get("").engine.model
    run = model.run

    def blocked(*arguments):
        gate.wait(30)
        return run(*arguments)

    model.run = blocked
    return gate


def _idle(server) -> bool:
    counters = server.admission
    held = (counters.requests, counters.images, counters.size)
    return held == (0, 0, 0) and server.models.get("").engine.batcher.idle


def test_model_infer__every_form_of_input_equals_offline(run_async, model_file, encode):
    images = [encode(seed) for seed in range(11)]
    decoded = np.stack([load(image, SIDE) for image in images])
    in_contents = _jpeg(*images)
    in_contents.inputs[0].contents.bytes_contents.extend(images)
    del in_contents.raw_input_contents[:]
    levels = _pixels(decoded)
    levels.inputs[0].contents.uint_contents.extend(decoded.flatten().tolist())
    del levels.raw_input_contents[:]
    requests = [_jpeg(*images), _pixels(decoded), in_contents, levels]

    async def scenario():
        async with serving(model_file, max_batch=4) as (server, stub):
            answers = await asyncio.gather(*(stub.ModelInfer(request) for request in requests))
            return answers, server.models.get("").ref.hash

    answers, digest = run_async(scenario())
    logit, score = _offline(model_file, images)
    assert logit.std(axis=0).min() > 0.05  # the images do differ
    for answer in answers:
        found = _tensors(answer)
        assert list(found) == ["logit", "score"]
        np.testing.assert_allclose(found["logit"], logit, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["score"], score, rtol=0, atol=1e-6)
        assert (answer.model_name, answer.model_version, answer.id) == ("tailacc", "1", "")
        assert answer.parameters["model_hash"].string_param == digest


def test_model_infer__a_bad_image_fails_the_request_or_has_its_status(run_async, model_file, encode):
    images = [encode(1), b"hello, this is text", encode(2), b"", encode(3) + b"\0" * 5000]

    async def scenario():
        async with serving(model_file, limits=Limits(image_bytes=5000)) as (_, stub):
            refused = await fails(stub.ModelInfer(_jpeg(*images)))
            outputs = ("status", "score", "message", "logit")
            return refused, await stub.ModelInfer(_jpeg(*images, outputs=outputs, id="mixed"))

    refused, answer = run_async(scenario())
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    for words in ("image 1 (counted from 0): BAD_IMAGE: ", "; 3 of 5 images failed; ask for output 'status'"):
        assert words in refused.details()
    found = _tensors(answer)
    assert list(found) == ["status", "score", "message", "logit"]
    assert found["status"] == [b"OK", b"BAD_IMAGE", b"OK", b"BAD_IMAGE", b"TOO_LARGE"]
    assert b"(--limits.image-bytes)" in found["message"][4]
    assert (found["message"][0], found["message"][2]) == (b"", b"")
    logit, score = _offline(model_file, [images[0], images[2]])
    np.testing.assert_allclose(found["logit"][[0, 2]], logit, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["score"][[0, 2]], score, rtol=0, atol=1e-6)
    assert np.isnan(found["logit"][[1, 3, 4]]).all()
    assert np.isnan(found["score"][[1, 3, 4]]).all()
    assert answer.id == "mixed"


def test_model_infer__a_failure_of_the_model_is_internal(run_async, make_model, encode):
    black = encode(0, colour=(0, 0, 0))  # its logit is minus infinity

    async def scenario():
        async with serving(make_model("log")) as (_, stub):
            refused = await fails(stub.ModelInfer(_jpeg(encode(1), black)))
            return refused, await stub.ModelInfer(_jpeg(encode(1), black, outputs=("status",)))

    refused, answer = run_async(scenario())
    assert refused.code() is grpc.StatusCode.INTERNAL
    assert refused.details().startswith("image 1 (counted from 0): INFERENCE_FAILED: the model gave a value")
    assert _tensors(answer) == {"status": [b"OK", b"INFERENCE_FAILED"]}


def test_model_infer__names_and_rules(run_async, model_file, encode):
    image = encode(1)

    async def scenario():
        async with serving(model_file) as (_, stub):
            return [
                await fails(stub.ModelInfer(request))
                for request in (
                    _jpeg(image, model_name="other"),
                    _jpeg(image, model_version="7"),
                    _jpeg(image, model_name="\U0001f600" * 50_000),
                    _jpeg(image, outputs=("label",)),
                    _pixels(np.zeros((1, 8, 8, 3), np.uint8)),
                )
            ]

    name, version, long, output, shape = run_async(scenario())
    assert long.code() is grpc.StatusCode.NOT_FOUND
    assert long.details().startswith("unknown model '\U0001f600")
    for error in (name, version):
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "this server has: tailacc (version 1)" in error.details()
    for error, words in (
        (output, "unknown output 'label'; the model has: logit, score, status, message"),
        (shape, "input 'image' must have shape [N, 32, 32, 3] with N at least 1, got [1, 8, 8, 3]"),
    ):
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in error.details()


def test_service__bytes_that_are_no_message(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (_, stub):
            prefix = "/inference.GRPCInferenceService/"
            errors = [await fails(stub.channel.unary_unary(prefix + name)(b"\xff\xff\xff")) for name in UNARY]
            stream = stub.channel.stream_stream(
                prefix + "ModelStreamInfer",
                response_deserializer=pb.ModelStreamInferResponse.FromString,
            )
            good = _jpeg(encode(1)).SerializeToString()
            return errors, [answer async for answer in stream(iter([good, b"\xff\xff\xff", good]))]

    errors, answers = run_async(scenario())
    assert len(errors) == 9
    for error in errors:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the request is not a message inference." in error.details()
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert answers[1].infer_response.parameters["status"].string_param == "INVALID_ARGUMENT"


def test_service__calls_of_the_protocol_that_are_not_here(run_async, model_file):
    names = ("SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "RepositoryModelLoad", "TraceSetting")

    async def scenario():
        async with serving(model_file) as (_, stub):
            return [
                await fails(stub.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(b""))
                for name in names
            ]

    for name, error in zip(names, run_async(scenario()), strict=True):
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details().startswith(name + ": ")


def test_describe__metadata_config_and_index(run_async, model_file):
    async def scenario():
        async with serving(model_file, max_batch=6, limits=Limits(request_images=40)) as (server, stub):
            return (
                await stub.ServerMetadata(pb.ServerMetadataRequest()),
                await stub.ModelMetadata(pb.ModelMetadataRequest(name="tailacc", version="1")),
                (await stub.ModelConfig(pb.ModelConfigRequest(name="tailacc"))).config,
                await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)),
                server.models.get(""),
            )

    about, metadata, config, index, model = run_async(scenario())
    assert (about.name, list(about.extensions)) == (
        "tailacc",
        ["model_configuration", "model_repository", "statistics"],
    )
    tensors = {item.name: (item.datatype, list(item.shape)) for item in metadata.inputs}
    assert tensors == {"image": ("UINT8", [-1, 32, 32, 3]), "jpeg": ("BYTES", [-1])}
    tensors = {item.name: (item.datatype, list(item.shape)) for item in metadata.outputs}
    assert tensors == {
        "logit": ("FP32", [-1, 3]),
        "score": ("FP32", [-1, 3]),
        "status": ("BYTES", [-1]),
        "message": ("BYTES", [-1]),
    }
    assert (metadata.name, list(metadata.versions), metadata.platform) == (
        "tailacc",
        ["1"],
        "onnxruntime_onnx",
    )
    assert config.max_batch_size == 40
    assert tuple(config.dynamic_batching.preferred_batch_size) == model.buckets
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    assert [(item.name, item.data_type, list(item.dims)) for item in config.input] == [
        ("image", pb.TYPE_UINT8, [32, 32, 3]),
        ("jpeg", pb.TYPE_STRING, [1]),
    ]
    assert [item.HasField("reshape") for item in config.input] == [False, True]
    assert config.parameters["classes"].string_value == '["cat", "dog", "person"]'
    assert config.parameters["model_hash"].string_value == model.ref.hash
    assert list(config.version_policy.specific.versions) == [1]
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    assert [(item.name, item.version, item.state) for item in index.models] == [("tailacc", "1", "READY")]


def test_model_statistics__counts_requests_images_and_batches(run_async, model_file, encode):
    images = [encode(seed) for seed in range(10)]

    async def scenario():
        async with serving(model_file, max_batch=4) as (_, stub):
            before = await stub.ModelStatistics(pb.ModelStatisticsRequest())
            await stub.ModelInfer(_jpeg(*images))
            await stub.ModelInfer(_jpeg(images[0]))
            await fails(stub.ModelInfer(_jpeg(images[0], timeout=1)))
            after = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="tailacc"))
            return before.model_stats[0], after.model_stats[0]

    before, after = run_async(scenario())
    assert (before.inference_count, before.execution_count, before.last_inference) == (0, 0, 0)
    assert list(before.batch_stats) == []
    assert after.inference_count == 11
    stats = after.inference_stats
    assert (stats.success.count, stats.fail.count) == (2, 1)
    assert 4 <= after.execution_count <= 11
    assert sum(item.compute_infer.count for item in after.batch_stats) == after.execution_count
    assert {item.batch_size for item in after.batch_stats} <= {1, 2, 4}
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert all(part.count == 2 for part in parts)
    assert stats.compute_infer.ns > 0
    assert stats.compute_input.ns > 0
    assert stats.success.ns > stats.compute_infer.ns
    assert after.last_inference > 1_600_000_000_000


def test_ready__only_between_loading_and_the_drain(run_async, model_file, encode):
    async def states(stub):
        return (
            (await stub.ServerLive(pb.ServerLiveRequest())).live,
            (await stub.ServerReady(pb.ServerReadyRequest())).ready,
            (await stub.ModelReady(pb.ModelReadyRequest(name="tailacc"))).ready,
            (await stub.ModelReady(pb.ModelReadyRequest(name="tailacc", version="2"))).ready,
        )

    async def scenario():
        async with serving(model_file, started=False) as (server, stub):
            loading = await states(stub)
            errors = [
                await fails(stub.ModelInfer(_jpeg(encode(1)))),
                await fails(stub.ModelMetadata(pb.ModelMetadataRequest(name="tailacc"))),
            ]
            await server.start()
            ready = await states(stub)
            gate = _block(server)
            accepted = asyncio.create_task(call(stub))
            await until(lambda: server.admission.requests == 1)
            stopping = asyncio.create_task(server.stop(30))
            await until(lambda: server.admission.closed)
            draining = await states(stub)
            errors.append(await fails(stub.ModelInfer(_jpeg(encode(1)))))
            gate.set()
            answer = await accepted
            return loading, ready, draining, errors, answer, await stopping

    async def call(stub):
        return await stub.ModelInfer(_jpeg(encode(1)))

    loading, ready, draining, errors, answer, lost = run_async(scenario())
    assert loading == (True, False, False, False)
    assert ready == (True, True, True, False)
    assert draining == (True, False, False, False)
    for error, words in zip(errors, ("loading", "loading", "stopping"), strict=True):
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert words in error.details()
    assert (len(answer.outputs), lost) == (2, 0)


def test_admission__a_full_server_says_when_to_come_back_and_still_describes_itself(
    run_async, model_file, encode
):
    limits = Limits(inflight_requests=1, pushback_ms=70)

    async def call(stub):
        return await stub.ModelInfer(_jpeg(encode(1)))

    async def scenario():
        async with serving(model_file, limits=limits) as (server, stub):
            gate = _block(server)
            held = asyncio.create_task(call(stub))
            await until(lambda: server.admission.requests == 1)
            refused = await fails(call(stub))
            streamed = [answer async for answer in stub.ModelStreamInfer(iter([_jpeg(encode(2), id="b")]))]
            assert (await stub.ModelMetadata(pb.ModelMetadataRequest(name="tailacc"))).name == "tailacc"
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            gate.set()
            await held
            return refused, streamed

    refused, streamed = run_async(scenario())
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "70"
    assert "(--limits.inflight-requests)" in refused.details()
    (answer,) = streamed
    assert "(--limits.inflight-requests)" in answer.error_message
    parameters = answer.infer_response.parameters
    assert parameters["status"].string_param == "RESOURCE_EXHAUSTED"
    assert parameters["grpc-retry-pushback-ms"].int64_param == 70
    assert answer.infer_response.id == "b"


@pytest.mark.parametrize(("micros", "seconds"), [(50_000, None), (50_000, 20), (20_000_000, 0.05)])
def test_deadline__the_earlier_of_the_parameter_and_grpc(run_async, model_file, encode, micros, seconds):
    async def scenario():
        async with serving(model_file) as (server, stub):
            gate = _block(server)
            error = await fails(stub.ModelInfer(_jpeg(encode(1), timeout=micros), timeout=seconds))
            await until(lambda: server.admission.requests == 0)
            gate.set()
            await until(lambda: _idle(server))
            answer = await stub.ModelInfer(_jpeg(encode(1)))
            return error, len(answer.outputs)

    error, outputs = run_async(scenario(), 15)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "deadline" in error.details().lower()
    assert outputs == 2


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_cancel__nothing_is_left(run_async, model_file, encode, kind):
    images = [encode(seed) for seed in range(6)]

    async def scenario():
        async with serving(model_file, max_batch=2) as (server, stub):
            gate = _block(server)
            before = len(asyncio.all_tasks())
            if kind == "unary":
                call = stub.ModelInfer(_jpeg(*images))
            else:
                call = stub.ModelStreamInfer()
                for image in images:
                    await call.write(_jpeg(image))
            await until(lambda: server.admission.images == 6)
            call.cancel()
            await until(lambda: server.admission.requests == 0)
            gate.set()
            await until(lambda: _idle(server))
            await until(lambda: len(asyncio.all_tasks()) <= before)
            found = await stub.ModelStatistics(pb.ModelStatisticsRequest())
            answer = await stub.ModelInfer(_jpeg(images[0]))
            return found.model_stats[0], len(answer.outputs)

    found, outputs = run_async(scenario(), 20)
    assert found.inference_stats.success.count == 0
    assert found.inference_stats.fail.count == (1 if kind == "unary" else 6)
    assert found.inference_count <= 2  # the batch that ran when the caller gave up
    assert outputs == 2


def test_model_stream_infer__in_order_around_errors(run_async, model_file, encode):
    images = [encode(seed) for seed in range(30)]
    requests = [_jpeg(image, id=str(number)) for number, image in enumerate(images)]
    requests[3] = _jpeg(b"no image", id="3")
    requests[4] = _jpeg(images[4], id="4", model_name="other")
    requests[7] = _jpeg(images[7], id="7", outputs=("label",))
    requests[9] = _jpeg(images[9], b"no image", id="9", outputs=("status",))

    async def scenario():
        async with serving(model_file, max_batch=4) as (server, stub):
            answers = [answer async for answer in stub.ModelStreamInfer(iter(requests))]
            await until(lambda: _idle(server))
            return answers

    answers = run_async(scenario())
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(30)]
    logit, _ = _offline(model_file, images)
    errors = {}
    for number, answer in enumerate(answers):
        response = answer.infer_response
        if answer.error_message:
            errors[number] = (response.parameters["status"].string_param, answer.error_message)
            assert len(response.outputs) == 0
        elif number != 9:
            np.testing.assert_allclose(_tensors(response)["logit"][0], logit[number], rtol=0, atol=1e-6)
            assert response.parameters["triton_final_response"].bool_param
    assert list(errors) == [3, 4, 7]
    assert errors[3][0] == "INVALID_ARGUMENT"
    assert "BAD_IMAGE" in errors[3][1]
    assert errors[4][0] == "NOT_FOUND"
    assert "unknown output 'label'" in errors[7][1]
    assert _tensors(answers[9].infer_response) == {"status": [b"OK", b"BAD_IMAGE"]}


def test_model_stream_infer__requests_share_batches(run_async, model_file, encode):
    """The second request is read while the first one is scored."""

    async def scenario():
        async with serving(model_file, max_batch=8) as (server, stub):
            gate = _block(server)
            stream = stub.ModelStreamInfer()
            for number in range(9):
                await stream.write(_jpeg(encode(number), id=str(number)))
            await until(lambda: server.admission.requests == 9)
            gate.set()
            ids = [(await stream.read()).infer_response.id for _ in range(9)]
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            found = await stub.ModelStatistics(pb.ModelStatisticsRequest())
            return ids, found.model_stats[0]

    ids, found = run_async(scenario(), 20)
    assert ids == [str(number) for number in range(9)]
    assert found.execution_count < 9


def test_service__several_models(run_async, make_model, encode):
    first, second = make_model("plain"), make_model("plain", seed=5)
    image = encode(1)

    async def scenario():
        async with serving(f"one={first},two={second}") as (_, stub):
            answers = [await stub.ModelInfer(_jpeg(image, model_name=name)) for name in ("one", "two", "")]
            error = await fails(stub.ModelInfer(_jpeg(image)))
            found = await stub.ModelStatistics(pb.ModelStatisticsRequest())
            index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
            health = health_pb2_grpc.HealthStub(stub.channel)
            services = ("", "inference.GRPCInferenceService", "one", "two")
            states = [
                (await health.Check(health_pb2.HealthCheckRequest(service=name))).status for name in services
            ]
            unknown = await fails(health.Check(health_pb2.HealthCheckRequest(service="three")))
            return answers, error, found, index, states, unknown

    answers, error, found, index, states, unknown = run_async(scenario())
    assert [answer.model_name for answer in answers] == ["one", "two", "one"]
    for answer, model in zip(answers, (first, second, first), strict=True):
        np.testing.assert_allclose(_tensors(answer)["logit"], _offline(model, [image])[0], rtol=0, atol=1e-6)
    digests = {answer.parameters["model_hash"].string_param for answer in answers}
    assert len(digests) == 2
    assert "one (version 1), two (version 1)" in error.details()
    assert [(item.name, item.inference_count) for item in found.model_stats] == [("one", 2), ("two", 1)]
    assert [item.name for item in index.models] == ["one", "two"]
    assert states == [health_pb2.HealthCheckResponse.SERVING] * 4
    assert unknown.code() is grpc.StatusCode.NOT_FOUND


def test_health__watch_of_a_model_sees_the_drain(run_async, model_file):
    async def scenario():
        async with serving(model_file) as (server, stub):
            seen = asyncio.Queue()
            watch = health_pb2_grpc.HealthStub(stub.channel).Watch(
                health_pb2.HealthCheckRequest(service="tailacc")
            )

            async def follow():
                async for answer in watch:
                    seen.put_nowait(answer.status)

            following = asyncio.create_task(follow())
            before = await seen.get()
            stopping = asyncio.create_task(server.stop(30))
            after = await seen.get()
            await stopping
            await asyncio.gather(following, return_exceptions=True)
            return before, after

    states = health_pb2.HealthCheckResponse
    assert run_async(scenario()) == (states.SERVING, states.NOT_SERVING)


def test_reflection__both_services(run_async, model_file):
    symbols = (
        "inference.GRPCInferenceService",
        "inference.ModelInferRequest",
        "tailacc.v1.Scoring",
        "no.such.Name",
    )

    async def scenario():
        async with serving(model_file) as (_, stub):
            call = reflection_pb2_grpc.ServerReflectionStub(stub.channel).ServerReflectionInfo(
                iter(
                    [
                        reflection_pb2.ServerReflectionRequest(list_services=""),
                        *(
                            reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
                            for symbol in symbols
                        ),
                        reflection_pb2.ServerReflectionRequest(
                            file_by_filename="proto/inference/v2/inference.proto"
                        ),
                    ]
                )
            )
            return [answer async for answer in call]

    listed, *files = run_async(scenario())
    names = [service.name for service in listed.list_services_response.service]
    assert "inference.GRPCInferenceService" in names
    assert "tailacc.v1.Scoring" in names
    packages = [
        descriptor_pb2.FileDescriptorProto.FromString(
            answer.file_descriptor_response.file_descriptor_proto[0]
        ).package
        for answer in files
        if answer.HasField("file_descriptor_response")
    ]
    assert packages == ["inference", "inference", "tailacc.v1", "inference"]
    assert files[3].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
