"""Callers that are slow, silent, half there or gone: what they hold is given back, and others do not notice.

Peers whose machine is gone (no FIN, no answer to a ping) are in tests/serve/test_keepalive.py, connections without end
in tests/serve/test_limits.py, clients that are killed and go on with their work in tests/serve/test_client_faults.py.
"""

import asyncio
import socket
import struct
import subprocess
import sys
import time

import pytest

from proto.inference.v2 import inference_pb2 as oip
from proto.tailacc.v1 import scoring_pb2 as pb

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_NO_WINDOW = struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE: the peer may send no byte of a message
_SCORE, _STREAM = "/tailacc.v1.Scoring/Score", "/inference.GRPCInferenceService/ModelStreamInfer"


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body


def _call(path: str, stream: int = 1) -> bytes:
    """The headers of a call, each as a literal that is not indexed (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return _frame(_HEADERS, _END_HEADERS, stream, block)


def _message(request: object) -> bytes:
    """A message as gRPC frames it."""
    raw = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(raw)) + raw


def _request(image: bytes) -> pb.ScoreRequest:
    return pb.ScoreRequest(images=[pb.Image(id="a", content=image)])


def _connect(port: int, *parts: bytes) -> socket.socket:
    wire = socket.create_connection(("127.0.0.1", port), timeout=30)
    wire.sendall(b"".join(parts))
    return wire


_OPENING = _PREFACE + _frame(_SETTINGS, 0, 0)
_WHOLE = _message(_request(bytes(2000)))
HALF = {
    "nothing": b"",
    "half a preface": _PREFACE[:10],
    "a preface": _OPENING,
    "half of the headers": _OPENING + _call(_SCORE)[:30],
    "headers": _OPENING + _call(_SCORE),
    "half a message": _OPENING + _call(_SCORE) + _frame(_DATA, 0, 1, _WHOLE[:900]),
    "a length without a message": _OPENING + _call(_SCORE) + _frame(_DATA, 0, 1, b"\0\x00\x10\x00\x00"),
    "a stream without an end": _OPENING + _call(_STREAM),
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(200),
    "random bytes": bytes(range(256)),
}


async def _back(server, descriptors: int) -> None:
    """Wait until the server has no more open than `descriptors`, and nothing in flight."""
    while server.descriptors() > descriptors:
        await asyncio.sleep(0.02)
    await server.empty()


@pytest.mark.parametrize("end", ["close", "reset"])
def test_half_open__connections_hold_nothing_but_themselves(watched, golden, run_async, end):
    """Five of each kind are there at once; while they stand, and when they are gone, others are answered."""
    server = watched()
    before = golden(server.address)
    descriptors = server.descriptors()
    wires = [_connect(server.port, content) for content in HALF.values() for _ in range(5)]
    time.sleep(0.2)
    assert golden(server.address) == before
    assert server.held() == {}
    assert server.descriptors() > descriptors
    for wire in wires:
        if end == "reset":
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()
    began = time.monotonic()
    run_async(_back(server, descriptors))
    print(f"\nall given back {time.monotonic() - began:.2f} s after {end}")
    assert golden(server.address) == before
    server.sane()


def test_slow_sender__has_its_answer_and_makes_nobody_wait(watched, golden, encode):
    """A message in forty pieces; between them another caller is served."""
    server = watched()
    body = _message(_request(encode(7)))
    pieces = [body[at : at + len(body) // 40 + 1] for at in range(0, len(body), len(body) // 40 + 1)]
    expected = golden(server.address)
    with _connect(server.port, _OPENING, _call(_SCORE)) as wire:
        for piece in pieces[:-1]:
            wire.sendall(_frame(_DATA, 0, 1, piece))
            time.sleep(0.01)
        assert golden(server.address) == expected
        wire.sendall(_frame(_DATA, _END_STREAM, 1, pieces[-1]))
        stream, answer = wire.makefile("rb"), b""
        while not answer:
            head = stream.read(9)
            content = stream.read(int.from_bytes(head[:3], "big"))
            answer = content if head[3] == _DATA else b""
    [result] = pb.ScoreResponse.FromString(answer[5:]).results
    assert tuple(result.logits) == expected
    server.sane()


def test_slow_reader__who_takes_no_answer_holds_a_bounded_number_and_gives_them_back(
    watched, golden, run_async, encode
):
    """One connection that allows no byte of an answer: a stream of 200 requests, of which at most 64 are read, and 60
    calls. Its answers wait for it; other connections do not."""
    server = watched()
    before = golden(server.address)
    descriptors, admitted = server.descriptors(), server.values()["tailacc_admitted_total"]
    jpeg = encode(2)
    infer = oip.ModelInferRequest(raw_input_contents=[len(jpeg).to_bytes(4, "little") + jpeg])
    infer.inputs.add(name="jpeg", datatype="BYTES", shape=[1])
    one, other = _message(_request(jpeg)), _message(infer)
    parts = [_PREFACE, _frame(_SETTINGS, 0, 0, _NO_WINDOW), _call(_STREAM)]
    # In frames that the server's first window has room for, whatever it grows to later.
    stream = (other * 200)[:30_000]
    parts += [_frame(_DATA, 0, 1, stream[at : at + 8000]) for at in range(0, len(stream), 8000)]
    room = (60_000 - len(stream)) // len(one)
    count = min(60, room)
    for number in range(count):
        parts += [_call(_SCORE, 3 + 2 * number), _frame(_DATA, _END_STREAM, 3 + 2 * number, one)]

    async def scenario() -> float:
        wire = _connect(server.port, *parts)
        while server.values()["tailacc_admitted_total"] < admitted + count + 1:
            await asyncio.sleep(0.02)
        assert await asyncio.to_thread(golden, server.address) == before
        # What was scored is no load any more, read or not.
        assert server.values()['tailacc_inflight{of="requests"}'] <= 64
        wire.close()
        began = time.monotonic()
        await _back(server, descriptors)
        return time.monotonic() - began

    print(f"\nall given back {run_async(scenario()):.2f} s after it was gone")
    assert count > 10
    assert golden(server.address) == before
    server.sane()


_VICTIM = """
import sys, grpc
address, count, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
message = open(path, "rb").read()
channel = grpc.insecure_channel(address)
score = channel.unary_unary("/tailacc.v1.Scoring/Score")
calls = [score.future(message) for _ in range(count)]
print("sent", flush=True)
[call.result() for call in calls]
"""


def test_caller__killed_in_the_middle_leaves_nothing_behind(
    watched, golden, run_async, make_model, encode, tmp_path
):
    server = watched("--max-batch", "1", model=make_model("slow"))
    before = golden(server.address)
    descriptors = server.descriptors()
    images = [pb.Image(id=str(n), content=encode(n)) for n in range(16)]
    (tmp_path / "message").write_bytes(pb.ScoreRequest(images=images).SerializeToString())
    command = [sys.executable, "-c", _VICTIM, server.address, "12", str(tmp_path / "message")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:

        async def scenario() -> float:
            while server.values()['tailacc_inflight{of="requests"}'] < 12:
                await asyncio.sleep(0.02)
            victim.kill()
            began = time.monotonic()
            await _back(server, descriptors)
            return time.monotonic() - began

        took = run_async(scenario())
    ran = server.values()
    images_run = sum(value for name, value in ran.items() if name.startswith("nv_inference_count{"))
    print(f"\n192 images given up {took:.2f} s after the kill, {images_run:.0f} were run")
    assert images_run < 192  # what was not begun is dropped
    assert golden(server.address) == before
    server.sane()
