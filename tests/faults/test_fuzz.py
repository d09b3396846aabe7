"""Random and mutated bytes on every method of the server, and mutated photographs through Score.

1,000 cases in `make test`, 20,000 in `make drill`; TAILACC_FUZZ sets another number and TAILACC_FUZZ_SEED another
seed. Nothing may crash or wedge the server, no answer is INTERNAL or UNKNOWN, no line of the log has a traceback, and
a good request is answered as before.
"""

import asyncio
import io
import os
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image

from proto.inference.v2 import inference_pb2 as oip
from proto.tailacc.v1 import scoring_pb2 as pb

SIDE = 32
_SCORING, _INFERENCE = "/tailacc.v1.Scoring/", "/inference.GRPCInferenceService/"
_HEALTH, _REFLECTION = "/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/"
_BUGS = {"INTERNAL", "UNKNOWN"}
# No call takes this long on any machine: one that does is wedged.
_WEDGED_S = 240


@pytest.fixture(scope="module")
def cases() -> int:
    """How many, half of them messages and half of them photographs."""
    default = "20000" if os.environ.get("TAILACC_DRILL") == "long" else "1000"
    return int(os.environ.get("TAILACC_FUZZ", default))


@pytest.fixture(scope="module")
def seed() -> int:
    return int(os.environ.get("TAILACC_FUZZ_SEED", "0"))


def _infer(jpeg: bytes) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(id="a", raw_input_contents=[len(jpeg).to_bytes(4, "little") + jpeg])
    request.inputs.add(name="jpeg", datatype="BYTES", shape=[1])
    request.outputs.add(name="score")
    request.outputs.add(name="status")
    request.parameters["priority"].int64_param = 1
    return request


def _pixels() -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="tailacc", raw_input_contents=[bytes(SIDE * SIDE * 3)])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, SIDE, SIDE, 3])
    return request


def _messages(jpeg: bytes) -> dict[str, list[bytes]]:
    """Good messages for each method. A method that takes a stream gets them one by one."""
    reflect = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(containing_type="tailacc.v1.Image", extension_number=7)
    images = [pb.Image(id="a", content=jpeg), pb.Image(id="b", pixels=bytes(SIDE * SIDE * 3))]
    table = {
        _SCORING + "Score": [
            pb.ScoreRequest(images=images[:1]),
            pb.ScoreRequest(images=images, model="tailacc"),
        ],
        _SCORING + "GetModel": [pb.GetModelRequest(model="tailacc")],
        _INFERENCE + "ModelInfer": [_infer(jpeg), _pixels()],
        _INFERENCE + "ModelStreamInfer": [_infer(jpeg), _pixels()],
        _INFERENCE + "ModelReady": [oip.ModelReadyRequest(name="tailacc", version="1")],
        _INFERENCE + "ModelMetadata": [oip.ModelMetadataRequest(name="tailacc", version="1")],
        _INFERENCE + "ModelConfig": [oip.ModelConfigRequest(name="tailacc", version="1")],
        _INFERENCE + "ModelStatistics": [oip.ModelStatisticsRequest(name="tailacc")],
        _INFERENCE + "RepositoryIndex": [oip.RepositoryIndexRequest(repository_name="x", ready=True)],
        _INFERENCE + "ServerLive": [oip.ServerLiveRequest()],
        _INFERENCE + "ServerReady": [oip.ServerReadyRequest()],
        _INFERENCE + "ServerMetadata": [oip.ServerMetadataRequest()],
        _INFERENCE + "RepositoryModelLoad": [oip.RepositoryIndexRequest(repository_name="x")],
        _HEALTH + "Check": [health_pb2.HealthCheckRequest(service="tailacc")],
        _HEALTH + "Watch": [health_pb2.HealthCheckRequest(service="tailacc")],
        _REFLECTION + "ServerReflectionInfo": [
            reflect(host="h", list_services="x"),
            reflect(file_by_filename="tailacc/v1/scoring.proto"),
            reflect(file_containing_symbol="inference.GRPCInferenceService"),
            reflect(file_containing_extension=extension),
            reflect(all_extension_numbers_of_type="tailacc.v1.Image"),
        ],
    }
    if hasattr(health_pb2, "HealthListRequest"):
        table[_HEALTH + "List"] = [health_pb2.HealthListRequest()]
    return {name: [message.SerializeToString() for message in good] for name, good in table.items()}


def _mutate(rng: random.Random, good: bytes, other: bytes) -> bytes:
    """A good message or file with one kind of damage, or several."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0:
                for _ in range(rng.choice((1, 1, 3, 20))):
                    if data:
                        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
            case 3:
                del data[at : at + rng.choice((1, 2, 8, 100))]
            case 4:
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case 5:
                # What lengths, counts and signs are made of.
                data[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0")
                )
            case 6:
                data[at:at] = data[at : at + rng.choice((4, 50, 400))]
            case _:
                # The head, where the fields are that everything else depends on.
                if data:
                    data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    return bytes(data)


def _photographs() -> tuple[list[bytes], list[bytes]]:
    """(JPEGs, PNGs) of every kind that is read."""
    colours = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    photo = Image.fromarray(colours).resize((61, 47), Image.Resampling.BILINEAR)
    exif = Image.Exif()
    exif[274] = 6
    deep = Image.fromarray((np.arange(40 * 30, dtype=np.uint16) * 50).reshape(30, 40))

    def saved(image: Image.Image, kind: str, **options: object) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    jpegs = [
        saved(photo, "JPEG", exif=exif),
        saved(photo, "JPEG", progressive=True, quality=95),
        saved(photo.convert("CMYK"), "JPEG"),
        saved(photo.convert("L"), "JPEG", restart_marker_blocks=2),
        saved(photo, "JPEG", subsampling=0, icc_profile=bytes(300)),
    ]
    pngs = [
        saved(photo, "PNG", exif=exif),
        saved(photo.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=3),
        saved(photo.convert("RGBA"), "PNG", icc_profile=bytes(300)),
        saved(photo.convert("L"), "PNG", transparency=10),
        saved(photo.convert("1"), "PNG"),
        saved(deep, "PNG"),
        saved(photo, "PNG", save_all=True, append_images=[photo.transpose(Image.Transpose.ROTATE_180)]),
    ]
    return jpegs, pngs


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def _mutate_png(rng: random.Random, png: bytes, other: bytes) -> bytes:
    """Damage inside the chunks, with checksums that are right again: it gets as far as the decoder."""
    parts = list(_chunks(png))
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(parts))
        kind, body = parts[at]
        match rng.randrange(7):
            case 0 | 1:
                body = _mutate(rng, body, other)
            case 2:
                header = bytearray(parts[0][1] or bytes(13))
                header[rng.randrange(len(header))] = (
                    rng.randrange(256) if rng.random() < 0.5 else rng.randrange(18)
                )
                at, kind, body = 0, b"IHDR", bytes(header)
            case 3:
                parts.insert(at, rng.choice(list(_chunks(other))))
                continue
            case 4:
                if at:  # a file that does not begin with its header has no way to the decoder
                    del parts[at]
                continue
            case 5:
                kind = rng.choice(
                    (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM", b"pHYs", b"zTXt",
                     b"iTXt", b"sRGB", b"IEND", rng.randbytes(4))
                )  # fmt: skip
                parts.insert(max(1, at), (kind, rng.choice((body, rng.randbytes(rng.choice((0, 1, 4, 26)))))))
                continue
            case _:
                if kind == b"IDAT":
                    body = zlib.compress(_mutate(rng, zlib.decompress(body), body))
        parts[at] = (kind, body)
    return png[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def _bad_image(rng: random.Random, jpegs: list[bytes], pngs: list[bytes]) -> bytes:
    kind = rng.random()
    if kind < 0.5:
        return _mutate(rng, rng.choice(jpegs), rng.choice(jpegs))
    if kind < 0.85:
        try:
            return _mutate_png(rng, rng.choice(pngs), rng.choice(pngs))
        except zlib.error:  # of what an earlier step damaged; the file as it is will do
            return rng.choice(pngs)
    if kind < 0.95:
        return _mutate(rng, rng.choice(pngs), rng.choice(jpegs))
    return rng.choice((jpegs, pngs))[0][: rng.randrange(30)] + rng.randbytes(rng.randrange(300))


async def _send(channel: grpc.aio.Channel, method: str, message: bytes) -> tuple[str, list[bytes]]:
    """(status, answers); of a stream that has no end, the first one."""
    answers = []
    try:
        if method.endswith("Watch"):
            watch = channel.unary_stream(method)(message, timeout=_WEDGED_S)
            first = await watch.read()
            watch.cancel()
            return ("OK", [first]) if first is not grpc.aio.EOF else ((await watch.code()).name, [])
        if method.endswith(("ModelStreamInfer", "ServerReflectionInfo")):
            stream = channel.stream_stream(method)(iter([message]), timeout=_WEDGED_S)
            while (answer := await stream.read()) is not grpc.aio.EOF:
                answers.append(answer)
        else:
            answers.append(await channel.unary_unary(method)(message, timeout=_WEDGED_S))
    except grpc.aio.AioRpcError as error:
        wedged = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and error.details() == "Deadline Exceeded"
        return "WEDGED" if wedged else error.code().name, answers
    return "OK", answers


async def _send_all(
    address: str, work: list[tuple[str, bytes]], look: Callable[[str, bytes, str, list[bytes]], None]
) -> None:
    """Send (method, message) pairs, 16 at a time, and `look` at each answer."""
    left = iter(work)

    async def caller() -> None:
        async with grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            for method, message in left:
                look(method, message, *await _send(channel, method, message))

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(caller())


def test_fuzz__messages_of_every_method(watched, golden, run_async, encode, cases, seed):
    rng = random.Random(seed)
    good = _messages(encode(1, side=16))
    everything = [message for messages in good.values() for message in messages]
    methods = sorted(good)
    server = watched("--limits.request-bytes", "100000", "--limits.image-bytes", "100000")
    before = golden(server.address)
    work = []
    for number in range(cases // 2):
        method = methods[number % len(methods)]
        if rng.random() < 0.2:
            message = rng.randbytes(rng.choice((0, 1, 2, 5, 30, 300)))
        else:
            message = _mutate(rng, rng.choice(good[method]), rng.choice(everything))
        work.append((method, message))
    seen: Counter[str] = Counter()
    bugs: list[str] = []

    def look(method: str, message: bytes, code: str, answers: list[bytes]) -> None:
        seen[code] += 1
        if method.endswith("ModelStreamInfer"):
            parsed = [oip.ModelStreamInferResponse.FromString(answer) for answer in answers]
            told = [
                one.infer_response.parameters["status"].string_param for one in parsed if one.error_message
            ]
            seen.update(f"in a stream {code}" for code in told)
            code = next((bad for bad in told if bad in _BUGS), code)
        if code in _BUGS or code in ("WEDGED", "UNAVAILABLE", "CANCELLED"):
            bugs.append(f"{code} {method} {message.hex()}")

    run_async(_send_all(server.address, work, look), limit=60 + cases * 0.1)
    print(f"\n{len(work)} messages, seed {seed}: {dict(sorted(seen.items()))}")
    assert bugs == []
    assert seen["OK"]
    assert seen["INVALID_ARGUMENT"]
    assert golden(server.address) == before
    run_async(server.empty())
    server.sane()


def test_fuzz__photographs(watched, golden, run_async, cases, seed):
    rng = random.Random(seed)
    jpegs, pngs = _photographs()
    # A header that was made larger is 67 megapixels, 5 s of decoding: on a busy machine that could seem a stall.
    server = watched("--stall-s", "200")
    before = golden(server.address)
    images = [_bad_image(rng, jpegs, pngs) for _ in range(cases // 2)]
    requests = [
        pb.ScoreRequest(images=[pb.Image(id="a", content=image)]).SerializeToString() for image in images
    ]
    seen: Counter[str] = Counter()
    bugs: list[str] = []

    def look(method: str, message: bytes, code: str, answers: list[bytes]) -> None:
        if code == "OK":
            [result] = pb.ScoreResponse.FromString(answers[0]).results
            code, words = pb.ImageStatus.Code.Name(result.status.code), result.status.message
            if "decoder failed" in words or code == "CODE_INFERENCE_FAILED":
                bugs.append(f"{words} {message.hex()}")
        else:
            bugs.append(f"{code} {message.hex()}")
        seen[code] += 1

    work = [(_SCORING + "Score", request) for request in requests]
    run_async(_send_all(server.address, work, look), limit=60 + cases * 0.1)
    print(f"\n{len(work)} photographs, seed {seed}: {dict(sorted(seen.items()))}")
    assert bugs == []
    assert seen["CODE_OK"]
    assert seen["CODE_BAD_IMAGE"]
    assert golden(server.address) == before
    run_async(server.empty())
    server.sane()
