"""The access log and the server's own lines, of a real server."""

import io
import json
import logging
import re
import signal
import threading

import grpc
import pytest

from proto.inference.v2 import inference_pb2 as oip
from proto.inference.v2 import inference_pb2_grpc
from proto.tailacc.v1 import scoring_pb2_grpc
from serve import access_log
from serve.access_log import AccessLog
from serve.call import Call
from serve.config import Limits, Telemetry
from serve.inference_codec import join_bytes
from serve.log_lines import set_up
from tests.serve import in_process
from tests.serve.in_process import score_request

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
NAMES = ["id", "method", "peer", "model", "version", "images", "bytes", "code"]
NAMES += ["ms", "queue_ms", "decode_ms", "inference_ms", "trace"]


def serving(model, **options):
    """A started server with an access log in JSON, and a channel to it."""
    telemetry = Telemetry(access_log=True, log_format="json")
    return in_process.serving(model, **{"telemetry": telemetry} | options)


class Stderr:
    """All that was written to sys.stderr so far."""

    def __init__(self, capsys):
        self._capsys, self._text = capsys, ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys):
    return Stderr(capsys)


def _found(stream) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines() if line.startswith("{")]


def test_access_log__one_line_a_request(run_async, model_file, encode, stderr):
    secret = "Bearer of-the-caller"

    async def scenario():
        async with serving(model_file) as (_, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            metadata = (
                ("x-request-id", "mine-1"),
                ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-00"),
                ("authorization", secret),
            )
            call = stub.Score(score_request(encode(0), encode(1), b"text"), metadata=metadata)
            await call
            told = dict(await call.trailing_metadata())
            second = stub.Score(score_request(encode(2)))
            await second
            made = dict(await second.trailing_metadata())
            return told, made

    told, made = run_async(scenario())
    first, second = _found(stderr)
    assert list(first) == ["time", "level", "logger", "message", *NAMES]
    assert told == {"x-request-id": "mine-1"}
    assert (first["level"], first["logger"], first["message"]) == ("INFO", "serve.access", "request")
    assert first["id"] == "mine-1"
    assert first["method"] == "tailacc.v1.Scoring/Score"
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", first["peer"])
    assert (first["model"], first["version"], first["images"], first["code"]) == ("tailacc", "1", 3, "OK")
    assert first["bytes"] == score_request(encode(0), encode(1), b"text").ByteSize()
    assert first["ms"] >= first["inference_ms"] > 0
    assert first["decode_ms"] > 0
    assert first["queue_ms"] >= 0
    assert first["trace"] == TRACE
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert made == {"x-request-id": second["id"]}
    assert second["id"] != first["id"]
    assert second["trace"] == ""
    assert secret not in stderr.getvalue()


def test_access_log__refusals_and_errors_are_there(run_async, model_file, encode, stderr):
    async def scenario():
        async with serving(model_file, limits=Limits(request_images=1)) as (server, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            trailing = []
            for request in (
                score_request(encode(0), encode(1)),
                score_request(encode(0), model="a\nb"),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as info:
                    await stub.Score(request, metadata=(("x-request-id", "e"),))
                trailing.append(dict(info.value.trailing_metadata()))
            # As where all places are taken: before the message is read, with both lines of metadata.
            held = server.config.limits.inflight_images
            with server.admission.admit(held, 1), pytest.raises(grpc.aio.AioRpcError) as info:
                await stub.Score(score_request(encode(0)), metadata=(("x-request-id", "full"),))
            trailing.append(dict(info.value.trailing_metadata()))
            return trailing

    trailing = run_async(scenario())
    lines = _found(stderr)
    assert [line["code"] for line in lines] == ["INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"]
    assert [line["id"] for line in lines] == ["e", "e", "full"]
    assert [line["images"] for line in lines] == [2, 1, 0]
    assert [line["bytes"] > 0 for line in lines] == [True, True, False]
    assert trailing == [
        {"x-request-id": "e"},
        {"x-request-id": "e"},
        {"x-request-id": "full", "grpc-retry-pushback-ms": "200"},
    ]


def test_access_log__each_request_of_a_stream(run_async, model_file, encode, stderr):
    def request(content):
        tensor = oip.ModelInferRequest.InferInputTensor(name="jpeg", datatype="BYTES", shape=[1])
        return oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[join_bytes([content])])

    async def scenario():
        async with serving(model_file) as (_, channel):
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            stream = stub.ModelStreamInfer(iter([request(encode(n)) for n in range(3)]))
            assert len([answer async for answer in stream]) == 3

    run_async(scenario())
    lines = _found(stderr)
    assert [line["method"] for line in lines] == ["inference.GRPCInferenceService/ModelStreamInfer"] * 3
    assert len({line["id"] for line in lines}) == 3
    assert [(line["images"], line["model"], line["code"]) for line in lines] == [(1, "tailacc", "OK")] * 3


@pytest.mark.parametrize("told", ["", "x" * 129, "with space", "a" * 128])
def test_access_log__an_id_that_is_none_is_replaced(run_async, model_file, encode, stderr, told):
    async def scenario():
        async with serving(model_file) as (_, channel):
            await scoring_pb2_grpc.ScoringStub(channel).Score(
                score_request(encode(0)), metadata=(("x-request-id", told),)
            )

    run_async(scenario())
    [line] = _found(stderr)
    if told == "a" * 128:
        assert line["id"] == told
    else:
        assert re.fullmatch(r"[0-9a-f]{12}-1", line["id"])


def test_access_log__off_by_default(run_async, model_file, encode, stderr):
    async def scenario():
        async with serving(model_file, telemetry=Telemetry()) as (_, channel):
            call = scoring_pb2_grpc.ScoringStub(channel).Score(
                score_request(encode(0)), metadata=(("x-request-id", "mine"),)
            )
            await call
            return dict(await call.trailing_metadata())

    assert run_async(scenario()) == {}
    assert stderr.getvalue() == ""


def _call(**fields) -> Call:
    return Call(
        **{"method": "s/M", "peer": "ipv4:1.2.3.4:5", "size": 7, "began": 1.0, "request_id": "r"} | fields
    )


def test_access_log__as_text_a_line_stays_one_line_with_one_value_a_name():
    stream = io.StringIO()
    log = AccessLog(stream, "text")
    log.end(_call(ended=1.0015, code="OK", model='a b"\nid=x', request_id="r=1"))
    log.close(5)
    line = stream.getvalue()
    assert re.sub(r"^\S+", "T", line) == (
        'T access id="r=1" method=s/M peer=ipv4:1.2.3.4:5 model="a b\\"\\nid=x" version="-" images=0 bytes=7 code=OK '
        'ms=1.5 queue_ms=0 decode_ms=0 inference_ms=0 trace="-"\n'
    )


def test_access_log__nobody_waits_for_a_stream_that_takes_nothing(monkeypatch):
    monkeypatch.setattr(access_log, "_WAITING", 3)
    stuck, entered = threading.Event(), threading.Event()

    class Stream(io.StringIO):
        def write(self, text):
            entered.set()
            stuck.wait(30)
            return super().write(text)

    stream = Stream()
    log = AccessLog(stream, "json")
    log.end(_call(request_id="0"))
    assert entered.wait(30)
    for number in range(1, 10):
        log.end(_call(request_id=str(number)))
    assert log.dropped == 6
    stuck.set()
    log.close(30)
    assert [line["id"] for line in _found(stream)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("parent", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""),
        ("00-4bf9-00f067aa0ba902b7-01", ""),
        ("", ""),
    ],
)
def test_access_log__the_callers_trace(parent, trace):
    log, call = AccessLog(io.StringIO(), "json"), _call()
    log.begin(call, {"traceparent": parent})
    log.close(5)
    assert call.trace_id == trace


@pytest.fixture
def root_logger():
    """As it was, after the test."""
    root, ours = logging.getLogger(), logging.getLogger("serve")
    before, level = list(root.handlers), ours.level
    yield
    root.handlers[:] = before
    ours.setLevel(level)


def _log_three() -> None:
    log = logging.getLogger("serve.engine")
    log.info("banner\nof two lines")
    log.warning("a batch of %d failed", 3)
    try:
        raise ValueError("no\nway")
    except ValueError:
        log.exception("it broke")
    logging.getLogger("another").info("chatter")


def test_log_lines__json(stderr, root_logger):
    set_up("json")
    _log_three()
    assert stderr.getvalue().count("\n") == 3
    banner, warning, error = _found(stderr)
    assert (banner["level"], banner["logger"]) == ("INFO", "serve.engine")
    assert banner["message"] == "banner\nof two lines"
    assert (warning["level"], warning["message"]) == ("WARNING", "a batch of 3 failed")
    assert "exception" not in warning
    assert error["message"] == "it broke"
    assert error["exception"].startswith("Traceback")
    assert "ValueError: no\nway" in error["exception"]


def test_log_lines__text_and_the_last_setting_holds(stderr, root_logger):
    set_up("json")
    set_up("text")
    _log_three()
    lines = stderr.getvalue().splitlines()
    assert lines[:2] == ["banner", "of two lines"]
    assert re.fullmatch(r"\S+Z WARNING serve\.engine: a batch of 3 failed", lines[2])
    assert re.fullmatch(r"\S+Z ERROR serve\.engine: it broke", lines[3])
    assert lines[-1] == "way"
    assert "chatter" not in stderr.getvalue()


def test_server__all_of_stderr_in_json(run_async, start_server, encode):
    server = start_server("--log-format", "json", "--access-log", "--metrics", "0")

    async def scenario():
        async with grpc.aio.insecure_channel(server.address) as channel:
            await scoring_pb2_grpc.ScoringStub(channel).Score(score_request(encode(0)))

    run_async(scenario())
    code, _, errors = server.finish(signal.SIGTERM)
    assert code == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    banner, *others = [line["message"] for line in lines]
    others.remove("request")  # a thread writes it: before or after the line about the signal
    draining, stopped = others
    assert re.search(r"^metrics  http://127\.0\.0\.1:\d+/metrics$", banner, re.MULTILINE)
    assert draining.startswith("SIGTERM")
    assert stopped == "stopped: 1 requests accepted, 0 cut off"
