"""The server's process is killed, stands still, has too much to do, or has no memory left.

Workers that die or hang are in tests/serve/test_worker.py and test_health.py; a client that goes on at another server
while one stands still in tests/serve/test_keepalive.py; SIGTERM under load in tests/serve/test_server.py.
"""

import asyncio
import io
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
from PIL import Image

from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc

_MIB = 1 << 20
# What a caller tries again: the client's list is in serve/retry.py.
_AGAIN = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}


def _request(*contents: bytes) -> pb.ScoreRequest:
    return pb.ScoreRequest(
        images=[pb.Image(id=str(n), content=content) for n, content in enumerate(contents)]
    )


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


async def _ask(channel: grpc.aio.Channel, request: pb.ScoreRequest) -> tuple[str, object]:
    """(status, answer or error)."""
    try:
        return "OK", await scoring_pb2_grpc.ScoringStub(channel).Score(request, timeout=120)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error


def test_server__killed_in_the_middle_of_calls(watched, golden, run_async, make_model, encode, free_port):
    """Each caller has one answer, of a kind that is tried again; a new server takes the port at once."""
    model, listen = make_model("slow"), f"127.0.0.1:{free_port}"
    server = watched("--max-batch", "1", model=model, listen=listen)
    before = golden(server.address)

    async def scenario() -> tuple[list[str], float]:
        async with _channel(listen) as channel:
            calls = [
                asyncio.create_task(_ask(channel, _request(*[encode(n) for n in range(8)]))) for _ in range(8)
            ]
            while server.values()['tailacc_inflight{of="requests"}'] < 8:
                await asyncio.sleep(0.02)
            server.server.process.kill()
            began = time.monotonic()
            codes = [code for code, _ in await asyncio.gather(*calls)]
            return codes, time.monotonic() - began

    codes, told = run_async(scenario())
    began = time.monotonic()
    again = watched("--max-batch", "1", model=model, listen=listen)
    assert golden(listen) == before
    print(
        f"\n8 callers were told {told:.2f} s after the kill; a new server answered after "
        f"{time.monotonic() - began:.2f} s"
    )
    assert Counter(codes) == {"UNAVAILABLE": 8}
    again.sane()


def test_server__stands_still_and_goes_on(watched, golden, run_async, make_model, encode):
    """SIGSTOP for longer than --stall-s: no worker counts as hung, and no call is lost."""
    server = watched("--max-batch", "1", "--stall-s", "1", model=make_model("slow"))
    before = golden(server.address)

    async def scenario() -> list[str]:
        async with _channel(server.address) as channel:
            calls = [asyncio.create_task(_ask(channel, _request(encode(n), encode(n + 1)))) for n in range(8)]
            while server.values()['tailacc_inflight{of="requests"}'] < 8:
                await asyncio.sleep(0.02)
            server.server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(2.5)
            assert not any(call.done() for call in calls)
            server.server.process.send_signal(signal.SIGCONT)
            began = time.monotonic()
            assert await asyncio.to_thread(golden, server.address) == before
            print(
                f"\na new call was answered {time.monotonic() - began:.2f} s after SIGCONT, behind 16 images"
            )
            return [code for code, _ in await asyncio.gather(*calls)]

    codes = run_async(scenario())
    assert codes == ["OK"] * 8
    assert server.values()["tailacc_worker_deaths_total"] == 0
    run_async(server.empty())
    server.sane()


def test_overload__ten_times_what_it_can_do(watched, golden, run_async, make_model, encode, long):
    """Callers without patience: what is refused is refused with a pushback, what is taken is answered once."""
    limits = (
        "--limits.inflight-requests",
        "8",
        "--limits.inflight-images",
        "8",
        "--limits.request-images",
        "8",
    )
    server = watched("--max-batch", "2", *limits, model=make_model("slow"))
    before = golden(server.address)
    descriptors, resident = server.descriptors(), server.resident()
    admitted = server.values()["tailacc_admitted_total"]
    seconds = 120 if long else 4
    seen: Counter[str] = Counter()
    request = _request(encode(1))

    async def caller(until: float) -> None:
        async with _channel(server.address) as channel:
            while time.monotonic() < until:
                code, answer = await _ask(channel, request)
                seen[code] += 1
                if code == "RESOURCE_EXHAUSTED":
                    told = dict(answer.trailing_metadata())
                    assert int(told["grpc-retry-pushback-ms"]) > 0
                    # Ten times as many as it can do, and not a thousand: the callers have these two cores as well.
                    await asyncio.sleep(0.1)

    async def scenario() -> None:
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(80):  # 8 have a place
                group.create_task(caller(until))
        began = time.monotonic()
        await server.empty()
        assert await asyncio.to_thread(golden, server.address) == before
        print(
            f"\n{seconds} s: {dict(seen)}; served as before {time.monotonic() - began:.2f} s after it was over"
        )
        while server.descriptors() > descriptors:
            await asyncio.sleep(0.02)

    run_async(scenario(), limit=seconds + 60)
    assert set(seen) == {"OK", "RESOURCE_EXHAUSTED"}
    values = server.values()
    assert values["tailacc_admitted_total"] - admitted == seen["OK"] + 1
    assert (
        values['tailacc_refused_total{reason="requests"}'] + values['tailacc_refused_total{reason="images"}']
        == (seen["RESOURCE_EXHAUSTED"])
    )
    assert server.resident() - resident < 48 * _MIB
    server.sane()


def _wide(kind: str) -> bytes:
    """16 megapixels of one colour: few bytes, 48 MB when it is decoded and as much again on the way."""
    stream = io.BytesIO()
    Image.new("RGB", (4000, 4000), (10, 200, 30)).save(stream, kind)
    return stream.getvalue()


def _address_space(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_memory__a_machine_without_any_left_is_load_and_not_a_bad_image(
    watched, golden, run_async, kind, encode
):
    """RLIMIT_AS leaves room for messages and not for 48 MB of pixels: RESOURCE_EXHAUSTED, as long as that is so."""
    server = watched()
    before = golden(server.address)
    content = _wide(kind)

    async def scenario() -> tuple[list[tuple[str, object]], tuple[str, object]]:
        async with _channel(server.address) as channel:
            await _ask(channel, _request(*[encode(n) for n in range(30)]))  # for what grows at first use
            room = _address_space(server.pid) + 24 * _MIB
            unlimited = resource.prlimit(server.pid, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
            refused = await asyncio.gather(*[_ask(channel, _request(content)) for _ in range(8)])
            # Those that fit are served meanwhile.
            assert await asyncio.to_thread(golden, server.address) == before
            resource.prlimit(server.pid, resource.RLIMIT_AS, unlimited)
            return refused, await _ask(channel, _request(content))

    refused, last = run_async(scenario())
    assert [code for code, _ in refused] == ["RESOURCE_EXHAUSTED"] * 8, refused
    for _, error in refused:
        assert "it has no memory to decode an image" in error.details()
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    assert last[0] == "OK"
    assert last[1].results[0].status.code == pb.ImageStatus.CODE_OK
    values = server.values()
    assert values['tailacc_refused_total{reason="memory"}'] == 8
    assert sum(value for name, value in values.items() if name.startswith("tailacc_bad_images_total{")) == 0
    run_async(server.empty())
    server.sane()


def test_memory__what_passes_through_is_not_kept(watched, golden, run_async):
    """RLIMIT_AS leaves 160 MiB; ten callers, each with one message of 4 MiB at a time, send 400 MiB in all."""
    limits = ("--limits.inflight-bytes", str(16 * _MIB), "--limits.request-bytes", str(8 * _MIB))
    server = watched(*limits, "--limits.image-bytes", str(8 * _MIB))
    before = golden(server.address)
    request = _request(b"\xff\xd8\xff" + bytes(4 * _MIB))

    async def scenario() -> Counter[str]:
        room = _address_space(server.pid) + 160 * _MIB
        resource.prlimit(server.pid, resource.RLIMIT_AS, (room, room))

        async def caller() -> list[str]:
            async with _channel(server.address) as channel:
                return [(await _ask(channel, request))[0] for _ in range(10)]

        codes = await asyncio.gather(*[caller() for _ in range(10)])
        return Counter(code for one in codes for code in one)

    seen = run_async(scenario())
    print(f"\n100 requests of 4 MiB: {dict(seen)}")
    assert seen["OK"]
    assert set(seen) <= {"OK", *_AGAIN}
    assert golden(server.address) == before
    run_async(server.empty())
    server.sane()
