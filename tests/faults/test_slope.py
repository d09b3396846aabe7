"""Memory, descriptors and threads of a server under sixteen callers that cancel, are late, send rubbish and behave.

20 s in `make test` (a minute would double the time of this folder), 10 minutes in `make drill`; TAILACC_SLOPE_S sets
another length. The first 40 %, at most a minute, is warm-up: gRPC's and the allocator's pools fill then. Over the rest
a line is fitted.

The bound is on what the line rises from the first look to the last: 12 MiB, short or long. The photographs have about
100 KB: in the short form a server that kept one in five of the requests that are given up would break it, in the long
form one that kept 200 bytes of each request. Measured: +1.4 MiB in the short form, +7 in ten minutes.
Descriptors and threads have no slope at all but for a connection that comes or goes while it is looked: 4.
"""

import asyncio
import io
import os
import random
import time
from collections import Counter

import grpc
import numpy as np
import pytest
from PIL import Image

from proto.inference.v2 import inference_pb2 as oip
from proto.inference.v2 import inference_pb2_grpc
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc

_MIB = 1 << 20
_CALLERS = 16
_ANSWERS = {"OK", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"}


@pytest.fixture
def seconds(long) -> float:
    return float(os.environ.get("TAILACC_SLOPE_S", "600" if long else "20"))


def _photographs() -> list[bytes]:
    """Noise, which does not compress: about 100 KB each."""
    out = []
    for seed in range(4):
        noise = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "JPEG", quality=95)
        out.append(stream.getvalue())
    return out


class Caller:
    """One of those who call: each of its requests is one of eight kinds."""

    def __init__(self, address: str, seed: int, photographs: list[bytes], seen: Counter[str]) -> None:
        self._rng, self._photographs, self._seen = random.Random(seed), photographs, seen
        self._address = address

    async def work(self, until: float) -> None:
        """Call until the time `until`, over a connection that is made anew now and then."""
        while time.monotonic() < until:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(self._address, options=options) as channel:
                for _ in range(50):
                    await self._one(channel)
                    if time.monotonic() >= until:
                        return

    async def _one(self, channel: grpc.aio.Channel) -> None:
        rng = self._rng
        score = scoring_pb2_grpc.ScoringStub(channel).Score
        infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        photo = rng.choice(self._photographs)
        request = pb.ScoreRequest(images=[pb.Image(id="a", content=photo)])
        several = pb.ScoreRequest(
            images=[
                pb.Image(id=str(n), content=content)
                for n, content in enumerate((photo, photo[:5000], b"", b"text", photo))
            ]
        )
        kind = rng.choice(("good", "bad", "cancel", "late", "several", "infer", "not infer", "stream"))
        try:
            match kind:
                case "good":
                    answer = await score(request, timeout=60)
                    assert [one.status.code for one in answer.results] == [pb.ImageStatus.CODE_OK]
                case "bad":
                    bad = pb.ScoreRequest(
                        images=[pb.Image(id="a", content=photo[: rng.randrange(len(photo) - 1000)])]
                    )
                    answer = await score(bad, timeout=60)
                    assert [one.status.code for one in answer.results] == [pb.ImageStatus.CODE_BAD_IMAGE]
                case "several":
                    codes = [one.status.code for one in (await score(several, timeout=60)).results]
                    assert codes == [1, 2, 2, 2, 1]
                case "late":
                    await score(several, timeout=rng.uniform(0.001, 0.02))
                case "cancel":
                    call = score(several)
                    await asyncio.sleep(rng.uniform(0, 0.02))
                    call.cancel()
                    await call
                case "infer" | "not infer":
                    await infer.ModelInfer(_infer(photo if kind == "infer" else photo[:9000]), timeout=60)
                case "stream":
                    stream = infer.ModelStreamInfer(timeout=60)
                    for _ in range(3):
                        await stream.write(_infer(photo))
                    await stream.read()
                    stream.cancel()
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except asyncio.CancelledError:
            # Of the call, unless the test itself is being ended.
            if asyncio.current_task().cancelling():
                raise
            code = "CANCELLED"
        else:
            code = "OK"
        self._seen[f"{kind}: {code}"] += 1


def _infer(photo: bytes) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(raw_input_contents=[len(photo).to_bytes(4, "little") + photo])
    request.inputs.add(name="jpeg", datatype="BYTES", shape=[1])
    return request


@pytest.mark.timeout(1800)
def test_slope__memory_descriptors_and_threads_are_level(watched, golden, run_async, seconds):
    server = watched()
    before = golden(server.address)
    looks: list[tuple[float, int, int, int]] = []
    seen: Counter[str] = Counter()

    async def scenario() -> None:
        began = time.monotonic()
        photographs = _photographs()
        async with asyncio.TaskGroup() as group:
            for seed in range(_CALLERS):
                group.create_task(Caller(server.address, seed, photographs, seen).work(began + seconds))
            while (now := time.monotonic() - began) < seconds - 0.25:
                looks.append((now, server.resident(), server.descriptors(), server.threads()))
                await asyncio.sleep(seconds / 400 if seconds > 100 else 0.25)
        await server.empty()

    idle = server.resident(), server.descriptors(), server.threads()
    run_async(scenario(), limit=seconds + 120)
    at, *columns = np.array([look for look in looks if look[0] > min(0.4 * seconds, 60)], float).T
    span = at[-1] - at[0]
    memory, descriptors, threads = (float(np.polyfit(at, column, 1)[0] * span) for column in columns)
    thirds = [part.mean() / _MIB for part in np.array_split(columns[0], 3)]
    total = sum(seen.values())
    print(
        f"\n{total} requests in {seconds:g} s, {len(at)} looks over {span:.0f} s. The lines rise by "
        f"{memory / _MIB:+.2f} MiB (means of its thirds: {', '.join(f'{mean:.1f}' for mean in thirds)}), "
        f"{descriptors:+.2f} descriptors, {threads:+.2f} threads. "
        f"Idle at first {idle[0] / _MIB:.0f} MiB, {idle[1]} descriptors, {idle[2]} threads; "
        f"in the end {server.resident() / _MIB:.0f} MiB, "
        f"{server.descriptors()}, {server.threads()}; under load at most {columns[0].max() / _MIB:.0f} MiB\n"
        f"{dict(sorted(seen.items()))}"
    )
    assert {name.split(": ")[1] for name in seen} <= _ANSWERS
    assert {name.split(": ")[0] for name in seen if name.endswith(": OK")} >= {
        "good",
        "bad",
        "several",
        "infer",
    }
    assert seen["cancel: CANCELLED"]
    assert seen["late: DEADLINE_EXCEEDED"] + seen["late: RESOURCE_EXHAUSTED"]
    assert memory < 12 * _MIB
    assert descriptors < 4
    assert threads < 4
    assert golden(server.address) == before
    server.sane()
