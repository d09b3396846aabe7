"""What a load balancer sees of an inference worker that hangs, dies or comes back: by Watch and by the ready calls."""

import asyncio
import threading
import time

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.inference.v2 import inference_pb2 as inference
from proto.inference.v2 import inference_pb2_grpc
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from tests.serve.in_process import ask, code_of, serving

Health = health_pb2.HealthCheckResponse.ServingStatus


async def _ready(channel) -> tuple[bool, bool, str]:
    """ServerReady, ModelReady and the state in the index of models."""
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    server = await stub.ServerReady(inference.ServerReadyRequest())
    model = await stub.ModelReady(inference.ModelReadyRequest(name="tailacc"))
    index = await stub.RepositoryIndex(inference.RepositoryIndexRequest())
    return server.ready, model.ready, index.models[0].state


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_health__a_lost_worker_is_seen_by_watch_and_by_both_protocols(run_async, model_file, encode, how):
    async def scenario():
        async with serving(model_file, stall_s=1.0) as (server, channel):
            watched: list[tuple[str, float]] = []

            async def watch(service: str):
                stub = health_pb2_grpc.HealthStub(channel)
                async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=service)):
                    status = Health.Name(answer.status)
                    watched.append((f"{service} {status}", time.monotonic()))

            names = ("", "tailacc", "tailacc.v1.Scoring", "inference.GRPCInferenceService")
            watching = [asyncio.create_task(watch(name)) for name in names]
            while len(watched) < len(names):
                await asyncio.sleep(0.01)
            engine = server.models.all()[0].engine
            hang, reopen = threading.Event(), threading.Event()
            again = engine.model.reopen

            def lost(*arguments):
                if how == "dies":
                    raise SystemExit("the worker's end")
                hang.wait(30)

            def slowly():
                reopen.wait(30)
                return again()

            engine.model.run, engine.model.reopen = lost, slowly
            began = time.monotonic()
            infer = inference.ModelInferRequest(raw_input_contents=[(4).to_bytes(4, "little") + b"1234"])
            codes = [await code_of(ask(channel, encode(1)))]
            while len(watched) < 2 * len(names):
                await asyncio.sleep(0.01)
            infer.inputs.add(name="jpeg", datatype="BYTES", shape=[1])
            codes.append(
                await code_of(inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(infer))
            )
            codes.append(await code_of(ask(channel, encode(1))))
            down = await _ready(channel)
            # The model is still there to be asked about.
            await scoring_pb2_grpc.ScoringStub(channel).GetModel(pb.GetModelRequest())
            reopen.set()
            while len(watched) < 3 * len(names):
                await asyncio.sleep(0.01)
            up = await _ready(channel)
            codes.append(await code_of(ask(channel, encode(1))))
            hang.set()
            for task in watching:
                task.cancel()
            return watched, began, codes, down, up, (server.worker.deaths, engine.restarts)

    watched, began, codes, down, up, counts = run_async(scenario())
    names = ("", "tailacc", "tailacc.v1.Scoring", "inference.GRPCInferenceService")
    for step, status in enumerate(("SERVING", "NOT_SERVING", "SERVING")):
        seen = {text for text, _ in watched[step * len(names) : (step + 1) * len(names)]}
        assert seen == {f"{name} {status}" for name in names}
    # At most the limit and two looks later, with room for a busy machine.
    assert max(at for text, at in watched if text.endswith("NOT_SERVING")) - began < 8
    assert codes == ["UNAVAILABLE"] * 3 + ["OK"]
    assert (down, up) == ((False, False, "UNAVAILABLE"), (True, True, "READY"))
    assert counts == (1, 1)


def test_health__opening_a_large_model_again_is_no_stall(run_async, model_file, encode):
    """It takes longer than any batch: counted as a stall, the worker would die of it again and again."""

    async def scenario():
        async with serving(model_file, stall_s=0.5) as (server, channel):
            engine = server.models.all()[0].engine
            again = engine.model.reopen

            def end(*arguments):
                raise SystemExit("the worker's end")

            def slowly():
                time.sleep(1.8)
                return again()

            engine.model.run, engine.model.reopen = end, slowly
            codes = [await code_of(ask(channel, encode(1)))]
            while not engine.ready:
                await asyncio.sleep(0.01)
            codes.append(await code_of(ask(channel, encode(1))))
            return codes, server.worker.deaths, engine.restarts

    assert run_async(scenario()) == (["UNAVAILABLE", "OK"], 1, 1)
