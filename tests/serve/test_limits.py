"""What one caller, and all of them, can take from the server: bytes on the wire and behind it, connections, streams,
memory, and images that are larger inside than they look."""

import asyncio
import io
import struct
import threading
import zlib
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from PIL import Image

from data.errors import InputError
from proto.tailacc.v1 import scoring_pb2 as pb
from serve import engine, memory
from serve.config import Limits
from tests.serve.in_process import running

SCORE, MODEL = "/tailacc.v1.Scoring/Score", "/tailacc.v1.Scoring/GetModel"
CHECK = "/grpc.health.v1.Health/Check"
Code = grpc.StatusCode
_MIB = 1 << 20


def _serving(model_file, **limits):
    return running(model_file, limits=Limits(**limits))


def _own_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def _request(*contents: bytes) -> bytes:
    images = [pb.Image(id=str(n), content=content) for n, content in enumerate(contents)]
    return pb.ScoreRequest(images=images).SerializeToString()


async def _code(channel, method: str, message: bytes = b"") -> tuple[grpc.StatusCode, str]:
    try:
        await channel.unary_unary(method)(message, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return Code.OK, ""


def _status(process: int, field: str) -> int:
    """Bytes of a field of /proc/PID/status."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_message__a_small_one_that_becomes_large_is_stopped_before_it_fills_the_memory(
    start_server, encode, algorithm
):
    """128 MiB of zeros are 0.15 MB on the wire. The limit of a message holds for what comes out as well."""
    server = start_server("--limits.request-bytes", str(_MIB), "--limits.image-bytes", str(_MIB))
    # For the highest mark from here on.
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    before = _status(server.process.pid, "VmHWM")
    with grpc.insecure_channel(server.address, compression=algorithm) as channel:
        with pytest.raises(grpc.RpcError) as info:
            channel.unary_unary(SCORE)(bytes(128 * _MIB), timeout=60)
        assert info.value.code() is Code.RESOURCE_EXHAUSTED
        assert "ecompressed message larger than max" in info.value.details()
        assert _status(server.process.pid, "VmHWM") - before < 48 * _MIB
        # What is within the limits may be compressed.
        answer = channel.unary_unary(SCORE)(_request(encode(1)), timeout=20)
    assert pb.ScoreResponse.FromString(answer).results[0].status.code == pb.ImageStatus.CODE_OK


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, pixels: bytes, *chunks: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(pixels, 9)) if pixels else b""
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + _chunk(b"IEND", b"")


def test_image__larger_inside_than_it_looks(start_server):
    """A header that claims 10 gigapixels, and zlib streams of 128 MiB beside and behind few pixels."""
    server = start_server()
    zeros = zlib.compress(bytes(128 * _MIB), 1)
    images = {
        "header": _png(100_000, 100_000, b"\0" * 1000),
        "pixels": _png(8, 8, b"")[:-12] + _chunk(b"IDAT", zeros) + _chunk(b"IEND", b""),
        "text": _png(8, 8, bytes(72), _chunk(b"zTXt", b"Comment\0\0" + zeros)),
        "profile": _png(8, 8, bytes(72), _chunk(b"iCCP", b"name\0\0" + zeros)),
    }
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    before = _status(server.process.pid, "VmHWM")
    with grpc.insecure_channel(server.address) as channel:
        answer = channel.unary_unary(SCORE)(_request(*images.values()), timeout=60)
    results = dict(zip(images, pb.ScoreResponse.FromString(answer).results, strict=True))
    assert results["header"].status.code == pb.ImageStatus.CODE_BAD_IMAGE
    assert results["header"].status.message == (
        "100000 x 100000 pixels is more than the limit of 67,108,864 pixels"
    )
    assert results["text"].status.code == pb.ImageStatus.CODE_BAD_IMAGE
    assert _status(server.process.pid, "VmHWM") - before < 48 * _MIB


def _as(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (48, 48), (10, 200, 30)).save(stream, kind, **options)
    return stream.getvalue()


# What Pillow could open and the server must not: each is one more decoder that bad bytes could reach.
OTHERS = {
    "GIF": (lambda: _as("GIF"), "it is a GIF file"),
    "BMP": (lambda: _as("BMP"), "it is a BMP file"),
    "WebP": (lambda: _as("WEBP"), "it is a WebP file"),
    "TIFF": (lambda: _as("TIFF"), "it is a TIFF file"),
    "PSD": (lambda: b"8BPS\0\1" + bytes(60), "it is "),
    "PPM": (lambda: _as("PPM"), "it is "),
    "ICO": (lambda: _as("ICO", sizes=[(32, 32)]), "it is "),
    "JPEG 2000": (lambda: _as("JPEG2000"), "it is "),
    "EPS": (lambda: _as("EPS"), "it is "),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is "),
}


def test_image__only_jpeg_and_png_are_opened_whatever_they_are_called(run_async, model_file, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda stream, formats=None: (opened.append(formats), real(stream, formats=formats))[1]
    )

    async def scenario():
        async with _serving(model_file) as server, _own_channel(server.address) as channel:
            images = [pb.Image(id=f"{name}.jpg", content=make()) for name, (make, _) in OTHERS.items()] + [
                pb.Image(id="good.gif", content=_as("PNG"))
            ]
            return await channel.unary_unary(SCORE)(
                pb.ScoreRequest(images=images).SerializeToString(), timeout=20
            )

    *others, good = pb.ScoreResponse.FromString(run_async(scenario())).results
    for result, (_, words) in zip(others, OTHERS.values(), strict=True):
        assert (result.id, result.status.code) == (result.id, pb.ImageStatus.CODE_BAD_IMAGE)
        assert result.status.message.startswith(words)
        assert result.status.message.endswith("; only JPEG and PNG are read")
    assert good.status.code == pb.ImageStatus.CODE_OK
    assert set(opened) <= {("PNG",), ("JPEG",)}
    assert opened


def test_connections__one_too_many_is_closed_and_has_its_place_once_another_ends(run_async, model_file):
    async def scenario():
        async with _serving(model_file, connections=2) as server:
            channels = [_own_channel(server.address) for _ in range(3)]
            codes = [(await _code(channel, MODEL))[0] for channel in channels]
            await channels[0].close()
            answer = await channels[2].unary_unary(MODEL)(b"", timeout=30, wait_for_ready=True)
            for channel in channels[1:]:
                await channel.close()
            return codes, pb.GetModelResponse.FromString(answer).description

    codes, name = run_async(scenario())
    assert codes == [Code.OK, Code.OK, Code.UNAVAILABLE]
    assert name == "mean pool 32 px"


def test_streams__one_connection_has_so_many_calls_and_another_still_has_room(
    run_async, model_file, encode, monkeypatch
):
    """Ten calls on one connection with room for three: three are worked on. The others wait at the caller, or are
    turned away with the code that is tried again."""
    gate, load = threading.Event(), engine.load
    monkeypatch.setattr(engine, "load", lambda content, size: (gate.wait(30), load(content, size))[1])

    async def scenario():
        async with _serving(model_file, streams=3) as server:
            try:
                async with _own_channel(server.address) as one, _own_channel(server.address) as other:
                    # The limit comes with the server's first words.
                    await one.unary_unary(MODEL)(b"", timeout=20)
                    calls = [asyncio.create_task(_code(one, SCORE, _request(encode(n)))) for n in range(10)]
                    while server.admission.requests < 3:
                        await asyncio.sleep(0.005)
                    answer = await other.unary_unary(CHECK)(b"", timeout=20)
                    assert health_pb2.HealthCheckResponse.FromString(answer).status == 1
                    held = server.admission.requests
                    gate.set()
                    return held, [code for code, _ in await asyncio.gather(*calls)]
            finally:
                gate.set()

    held, codes = run_async(scenario())
    assert held == 3
    assert set(codes) <= {Code.OK, Code.UNAVAILABLE}
    assert codes.count(Code.OK) >= 3


def test_memory__above_the_limit_it_refuses_until_it_is_below(
    run_async, model_file, encode, monkeypatch, caplog
):
    held, trims = [memory.resident_bytes()], []
    limit = 2 * held[0]
    monkeypatch.setattr(memory, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(memory, "give_back_unused", lambda: trims.append(held[0]))

    async def scenario():
        async with _serving(model_file, memory=limit) as server, _own_channel(server.address) as channel:
            message = _request(encode(0))
            look = server._memory.refresh
            look()
            first = await _code(channel, SCORE, message)
            held[0] = limit + 1
            look()
            second = await _code(channel, SCORE, message)
            health = await _code(channel, CHECK)
            refused = server.calls.refused["memory"]
            held[0] = limit
            look()
            return first, second, health, refused, await _code(channel, SCORE, message)

    first, second, health, refused, last = run_async(scenario())
    assert first == health == last == (Code.OK, "")
    assert second == (
        Code.RESOURCE_EXHAUSTED,
        f"the server is full: it holds {limit + 1} bytes of memory, and the limit is {limit} (--limits.memory); "
        "try again in 200 ms",
    )
    assert refused == 1
    assert set(trims) == {limit + 1}
    assert [f"the server {word} requests" in caplog.text for word in ("refuses", "takes")] == [True, True]


def test_memory__the_server_looks_by_itself(run_async, model_file, monkeypatch):
    async def scenario():
        async with _serving(model_file, memory=1 << 50) as server:
            while not server.admission.resident:
                await asyncio.sleep(0.02)
            return server.admission.resident

    real = memory.resident_bytes()
    assert real / 4 < run_async(scenario()) < 4 * real


def test_memory__a_limit_below_what_the_models_take_is_the_user_s_error(run_async, model_file):
    async def scenario():
        async with _serving(model_file, memory=_MIB):
            raise AssertionError("it started")

    with pytest.raises(InputError, match=r"--limits.memory must be above the \d+ bytes .*, got 1048576"):
        run_async(scenario())


def test_give_back_unused__what_is_freed_goes_back_to_the_machine():
    kept = [
        bytes(4000) for _ in range(60_000)
    ]  # below what malloc gets by mmap, so that it stays in its heap
    last = bytes(4000)
    full = memory.resident_bytes()
    del kept
    memory.give_back_unused()
    assert full - memory.resident_bytes() > 150_000_000
    assert last


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"memory": -1}, "--limits.memory must be at least 0, got -1"),
        ({"streams": 0}, "--limits.streams must be at least 1, got 0"),
        ({"connections": 0}, "--limits.connections must be at least 1, got 0"),
    ],
)
def test_limits__rules(limits, words):
    with pytest.raises(InputError, match=words):
        Limits(**limits).check()
