"""The wall clock jumps: deadlines, health and the worker's watch go by the monotonic one."""

import asyncio
import time

from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import Telemetry
from tests.serve.in_process import code_of, serving


def test_clock__a_day_forth_and_two_back_are_not_noticed(run_async, make_model, encode, monkeypatch):
    """In the middle of calls with deadlines, with the access log on, which writes the time."""
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    day = 86400.0

    async def scenario():
        options = {"max_batch": 1, "stall_s": 5.0, "telemetry": Telemetry(access_log=True)}
        async with serving(make_model("slow"), **options) as (server, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            codes, stages = [], []
            for jump in (0.0, day, -day):
                images = [pb.Image(id=str(n), content=encode(n)) for n in range(4)]
                calls = [
                    asyncio.create_task(code_of(stub.Score(pb.ScoreRequest(images=images), timeout=60)))
                    for _ in range(3)
                ]
                while server.admission.requests < 3:
                    await asyncio.sleep(0.005)
                offset[0] = jump
                # Two looks of the watch, so that it sees the jump with work in hand or without.
                await asyncio.sleep(1.1)
                codes += await asyncio.gather(*calls)
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                stages.append(health.status)
            # A deadline still is one.
            late = await code_of(stub.Score(pb.ScoreRequest(images=images), timeout=0.05))
            while server.admission.requests:
                await asyncio.sleep(0.005)
            return codes, stages, late, server.worker.deaths, server.models.all()[0].statistics

    codes, stages, late, deaths, statistics = run_async(scenario())
    assert codes == ["OK"] * 9
    assert stages == [health_pb2.HealthCheckResponse.SERVING] * 3
    assert late in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    assert deaths == 0
    # No request seems to have taken a day, or less than nothing.
    assert 0 < statistics.success.ns < 600 * 10**9
