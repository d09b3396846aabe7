"""The metrics of a real server, by a real scrape: exact counts of all that can become of a request."""

import asyncio
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from data.errors import InputError
from proto.inference.v2 import inference_pb2 as oip
from proto.inference.v2 import inference_pb2_grpc
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve import engine
from serve.calls import Calls
from serve.config import Limits, ServerConfig, Telemetry
from serve.counters import BOUNDS, Histogram, Ledger, ModelStatistics, total
from serve.inference_codec import join_bytes
from serve.lifecycle import ScoringServer, banner
from serve.received import Received
from serve.service import ServedModel
from tests.serve import in_process
from tests.serve.in_process import code_of, score_request, until

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"model": "tailacc", "version": "1"}
SCORE = "tailacc.v1.Scoring/Score"


def serving(model, **options):
    """A started server with metrics, and a channel to it."""
    return in_process.serving(model, telemetry=Telemetry(metrics="0"), **options)


def _get(address, path="/metrics", accept="text/plain"):
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


async def _scrape(server) -> dict:
    """(name, labels as sorted pairs) -> value."""
    _, text = await asyncio.to_thread(_get, server.telemetry.metrics_address)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _value(scraped, name, **labels) -> float:
    return scraped[name, tuple(sorted(labels.items()))]


def _infer(*images: bytes, **parameters: int) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(
        inputs=[oip.ModelInferRequest.InferInputTensor(name="jpeg", datatype="BYTES", shape=[len(images)])],
        raw_input_contents=[join_bytes(images)],
    )
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


def _gate(monkeypatch) -> threading.Event:
    """Decoding stands still until it is set."""
    gate, load = threading.Event(), engine.load
    monkeypatch.setattr(engine, "load", lambda content, size: (gate.wait(30), load(content, size))[1])
    return gate


def _nothing_is_left(scraped) -> None:
    assert _value(scraped, "nv_inference_pending_request_count", **MODEL) == 0
    for state in ("queued", "decoding", "ready", "running"):
        assert _value(scraped, "tailacc_images", **MODEL, state=state) == 0
    for of in ("requests", "images", "bytes"):
        assert _value(scraped, "tailacc_inflight", of=of) == 0


def test_metrics__exact_counts_of_what_was_answered(run_async, model_file, encode):
    """Five requests of three images, of which two hold a bad one and one image is too large."""

    async def scenario():
        async with serving(model_file, max_batch=4, limits=Limits(image_bytes=20_000)) as (server, channel):
            before = await _scrape(server)
            stub = scoring_pb2_grpc.ScoringStub(channel)
            good = [encode(seed) for seed in range(3)]
            for images in (good, good, good, [*good, b"text"], [*good, b"text", bytes(20_001)]):
                await stub.Score(score_request(*images))
            assert await code_of(stub.Score(score_request())) == "INVALID_ARGUMENT"
            assert (
                await code_of(stub.Score(pb.ScoreRequest(model="x", images=score_request(*good).images)))
                == "NOT_FOUND"
            )
            await stub.GetModel(pb.GetModelRequest())
            return before, await _scrape(server)

    before, after = run_async(scenario())
    assert _value(before, "nv_inference_request_success", **MODEL) == 0
    assert _value(before, "tailacc_request_duration_seconds_count", **MODEL) == 0
    assert _value(after, "nv_inference_request_success", **MODEL) == 5
    assert _value(after, "nv_inference_count", **MODEL) == 15
    assert _value(after, "tailacc_bad_images_total", **MODEL) == 3
    assert _value(after, "tailacc_requests_total", method=SCORE, code="OK") == 5
    assert _value(after, "tailacc_requests_total", method=SCORE, code="INVALID_ARGUMENT") == 1
    assert _value(after, "tailacc_requests_total", method=SCORE, code="NOT_FOUND") == 1
    assert _value(after, "tailacc_requests_total", method="tailacc.v1.Scoring/GetModel", code="OK") == 1
    assert _value(after, "tailacc_admitted_total") == 6
    for name in ("tailacc_request_duration_seconds", "tailacc_queue_duration_seconds"):
        assert _value(after, f"{name}_count", **MODEL) == 5
        assert _value(after, f"{name}_bucket", **MODEL, le="+Inf") == 5
    batches = {size: _value(after, "tailacc_batches_total", **MODEL, size=str(size)) for size in (1, 2, 4)}
    rows = sum(size * count for size, count in batches.items())
    assert sum(batches.values()) == _value(after, "nv_inference_exec_count", **MODEL)
    assert rows - _value(after, "tailacc_padded_rows_total", **MODEL) == 15
    for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert _value(after, f"nv_inference_{name}_duration_us", **MODEL) >= 0
    assert _value(after, "nv_inference_compute_input_duration_us", **MODEL) > 0
    assert _value(after, "nv_inference_request_duration_us", **MODEL) > 0
    _nothing_is_left(after)


def _clock(monkeypatch) -> list[float]:
    """Seconds by which the engine's clock is ahead; a test sets them, and nothing depends on how long it takes."""
    ahead = [0.0]
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0]))
    return ahead


def test_metrics__exact_counts_of_what_was_given_up_late_and_shed(run_async, model_file, encode, monkeypatch):
    """Four are cancelled, three expire, two find no room while all of those are held; each has its gauge."""
    gate, ahead = _gate(monkeypatch), _clock(monkeypatch)

    async def scenario():
        async with serving(model_file, limits=Limits(inflight_requests=7)) as (server, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            given_up = [stub.Score(score_request(encode(0), encode(1))) for _ in range(4)]
            await until(lambda: server.admission.requests == 4)
            # The timeout of the Open Inference Protocol is not gRPC's: the engine's clock tells when it is over.
            late = [infer(_infer(encode(2), timeout=50_000_000)) for _ in range(3)]
            await until(lambda: server.admission.requests == 7)
            shed = [await code_of(stub.Score(score_request(encode(3)))) for _ in range(2)]
            during = await _scrape(server)
            ahead[0] = 60.0
            for call in given_up:
                call.cancel()
            late = [await code_of(call) for call in late]
            await until(lambda: server.admission.requests == 0)
            gate.set()
            batcher = server.models.all()[0].engine.batcher
            await until(lambda: batcher.idle)
            return shed, late, during, await _scrape(server)

    shed, late, during, after = run_async(scenario())
    assert shed == ["RESOURCE_EXHAUSTED"] * 2
    assert late == ["DEADLINE_EXCEEDED"] * 3
    assert _value(during, "tailacc_inflight", of="requests") == 7
    assert _value(during, "tailacc_inflight", of="images") == 11
    assert _value(during, "tailacc_inflight_limit", of="requests") == 7
    assert _value(during, "nv_inference_pending_request_count", **MODEL) == 7
    states = [_value(during, "tailacc_images", **MODEL, state=state) for state in ("queued", "decoding")]
    assert sum(states) == 11
    assert states[1] > 0
    assert _value(after, "tailacc_cancelled_total", **MODEL) == 4
    assert _value(after, "nv_inference_request_failure", **MODEL, reason="CANCELED") == 4
    assert _value(after, "tailacc_requests_total", method=SCORE, code="CANCELLED") == 4
    assert _value(after, "tailacc_deadline_exceeded_total", **MODEL) == 3
    assert _value(after, "nv_inference_request_failure", **MODEL, reason="REJECTED") == 3
    infer = "inference.GRPCInferenceService/ModelInfer"
    assert _value(after, "tailacc_requests_total", method=infer, code="DEADLINE_EXCEEDED") == 3
    assert _value(after, "tailacc_refused_total", reason="requests") == 2
    assert _value(after, "tailacc_requests_total", method=SCORE, code="RESOURCE_EXHAUSTED") == 2
    assert _value(after, "nv_inference_request_success", **MODEL) == 0
    assert _value(after, "nv_inference_count", **MODEL) == 0
    assert _value(after, "tailacc_request_duration_seconds_count", **MODEL) == 0
    _nothing_is_left(after)


def test_metrics__a_caller_that_goes_at_its_deadline_did_not_give_up(
    run_async, model_file, encode, monkeypatch
):
    """gRPC cancels a call at its deadline, maybe a moment before the engine's own timer."""
    gate, ahead = _gate(monkeypatch), _clock(monkeypatch)

    async def scenario():
        async with serving(model_file) as (server, _):
            [model] = server.models.all()
            work = asyncio.ensure_future(model.score([encode(0)], time.monotonic() + 30))
            await until(lambda: model.engine.batcher.held == 1)
            ahead[0] = 60.0
            work.cancel()
            await asyncio.wait((work,))
            gate.set()
            return await _scrape(server)

    after = run_async(scenario())
    assert _value(after, "tailacc_deadline_exceeded_total", **MODEL) == 1
    assert _value(after, "tailacc_cancelled_total", **MODEL) == 0


@pytest.mark.parametrize(
    ("left", "code"), [(None, "CANCELLED"), (3.0, "CANCELLED"), (-0.1, "DEADLINE_EXCEEDED")]
)
def test_calls__why_grpc_cancelled_one(run_async, left, code):
    calls = Calls()

    async def cancelled(received, context):
        raise asyncio.CancelledError

    handle = calls.unary("s/M", cancelled)
    context = SimpleNamespace(time_remaining=lambda: left)

    async def scenario():
        with pytest.raises(asyncio.CancelledError):
            await handle(Received(None, 0), context)

    run_async(scenario())
    assert calls.codes == {("s/M", code): 1}


def test_metrics__each_request_of_a_stream_counts(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (server, channel):
            stream = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
            wrong = oip.ModelInferRequest(model_name="nothing")
            answers = [a async for a in stream(iter([_infer(encode(0)), wrong, _infer(encode(1))]))]
            return [bool(answer.error_message) for answer in answers], await _scrape(server)

    errors, after = run_async(scenario())
    assert errors == [False, True, False]
    method = "inference.GRPCInferenceService/ModelStreamInfer"
    assert _value(after, "tailacc_requests_total", method=method, code="OK") == 2
    assert _value(after, "tailacc_requests_total", method=method, code="NOT_FOUND") == 1


def test_metrics__the_death_of_the_worker(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (server, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            held = server.models.all()[0].engine

            def broken(*arguments):
                raise SystemExit("broken")

            held.model.run = broken
            code = await code_of(stub.Score(score_request(encode(0))))
            await until(lambda: held.restarts == 1)
            return code, await _scrape(server)

    code, after = run_async(scenario())
    assert code == "UNAVAILABLE"
    assert _value(after, "tailacc_worker_deaths_total") == 1
    assert _value(after, "tailacc_model_restarts_total", **MODEL) == 1
    assert _value(after, "nv_inference_request_failure", **MODEL, reason="BACKEND") == 1
    assert _value(after, "tailacc_model_ready", **MODEL) == 1


def test_metrics__refused_before_the_models_are_there(run_async, model_file, encode):
    async def scenario():
        server = ScoringServer(
            ServerConfig(model=str(model_file), listen="127.0.0.1:0", telemetry=Telemetry(metrics="0"))
        )
        await server.bind()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                code = await code_of(scoring_pb2_grpc.ScoringStub(channel).Score(score_request(encode(0))))
            return code, await _scrape(server)
        finally:
            await server.stop(1)

    code, after = run_async(scenario())
    assert code == "UNAVAILABLE"
    assert _value(after, "tailacc_refused_total", reason="closed") == 1
    assert not [name for name, _ in after if name.startswith("nv_inference")]


def test_metrics__a_swap_takes_no_count_back(run_async, make_model, encode):
    """The version goes 1, 2, 1, 1: each has the sum of all that was done under it."""

    async def scenario():
        async with serving(make_model()) as (server, channel):
            stub = scoring_pb2_grpc.ScoringStub(channel)
            first = server.models.all()[0].engine
            out = []
            for version in ("1", "2", "1", "1", "1"):
                # An engine of its own, as after a swap.
                fresh = engine.Engine(first.model, server._pool, server.worker, 0.005, 1 << 20)
                server.models.add(ServedModel("tailacc", version, fresh))
                await stub.Score(score_request(encode(0), encode(1)))
                out.append(await _scrape(server))
                await fresh.drain()
            await first.drain()
            return out

    scrapes = run_async(scenario())
    counts = [
        [scraped.get(("nv_inference_count", (("model", "tailacc"), ("version", v)))) for v in "12"]
        for scraped in scrapes
    ]
    assert counts == [[2, None], [2, 2], [4, 2], [6, 2], [8, 2]]
    last = scrapes[-1]
    assert _value(last, "tailacc_request_duration_seconds_count", **MODEL) == 4
    assert _value(last, "tailacc_request_duration_seconds_bucket", **MODEL, le="+Inf") == 4
    for before, after in pairwise(scrapes):
        for key, value in before.items():
            gauge = key[0] == "nv_inference_pending_request_count"
            if key[0].endswith(("_total", "_bucket", "_count", "_success", "_us")) and not gauge:
                assert after[key] >= value, key
    # What is served now is said of the one that serves.
    assert [dict(labels)["version"] for name, labels in scrapes[1] if name == "tailacc_model_info"] == ["2"]


def test_metrics__swaps_of_a_model_that_follows_an_alias(run_async, model_file):
    async def scenario():
        async with serving(model_file) as (server, _):
            server.models.following = [SimpleNamespace(name="tailacc", swaps=2, refusals=1)]
            return await _scrape(server)

    scraped = run_async(scenario())
    assert _value(scraped, "tailacc_model_swaps_total", model="tailacc") == 2
    assert _value(scraped, "tailacc_model_swaps_refused_total", model="tailacc") == 1


def test_metrics__only_at_their_path_and_in_both_formats(run_async, model_file):
    async def scenario():
        async with serving(model_file) as (server, _):
            address = server.telemetry.metrics_address
            assert f"metrics  http://{address}/metrics" in banner(server)
            assert address.startswith("127.0.0.1:")
            with pytest.raises(urllib.error.HTTPError) as info:
                await asyncio.to_thread(_get, address, "/")
            info.value.close()
            open_metrics = await asyncio.to_thread(
                _get, address, "/metrics", "application/openmetrics-text; version=1.0.0"
            )
            return info.value.code, open_metrics, await asyncio.to_thread(_get, address)

    code, (kind, text), (plain_kind, _) = run_async(scenario())
    assert code == 404
    assert kind.startswith("application/openmetrics-text")
    assert plain_kind.startswith("text/plain")
    names = {family.name for family in openmetrics_parser.text_string_to_metric_families(text)}
    assert {"nv_inference_request_success", "tailacc_requests", "process_resident_memory_bytes"} <= names


def test_metrics__info_and_process(run_async, model_file):
    async def scenario():
        async with serving(model_file) as (server, _):
            [model] = server.models.all()
            # A batch of three in four rows, as a GPU runs it; a CPU pads nothing.
            model.statistics.add_batch(4, 3, 0.0, 0.0, 0.0)
            return model.ref, await _scrape(server)

    ref, scraped = run_async(scenario())
    assert _value(scraped, "tailacc_padded_rows_total", **MODEL) == 1
    assert _value(scraped, "tailacc_batches_total", **MODEL, size="4") == 1
    [labels] = [dict(labels) for name, labels in scraped if name == "tailacc_model_info"]
    assert (labels["model"], labels["version"], labels["sha256"]) == ("tailacc", "1", ref.hash)
    assert _value(scraped, "process_resident_memory_bytes") > 1 << 20
    assert _value(scraped, "process_open_fds") > 3
    assert _value(scraped, "process_threads") >= 2
    assert [name for name, _ in scraped].count("tailacc_build_info") == 1


def test_metrics__a_port_in_use_is_a_users_error(run_async, model_file):
    async def scenario():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            server = ScoringServer(
                ServerConfig(
                    model=str(model_file), listen="127.0.0.1:0", telemetry=Telemetry(metrics=address)
                )
            )
            with pytest.raises(InputError) as info:
                await server.bind()
            await server.stop(0)
            return address, str(info.value)

    address, message = run_async(scenario())
    assert message == (
        f"cannot listen on {address}: Address already in use; choose another with --metrics HOST:PORT "
        "(port 0 takes any free one)"
    )


def test_metrics__off_by_default_and_closed_at_the_end(run_async, model_file):
    async def scenario():
        async with serving(model_file) as (server, _):
            address = server.telemetry.metrics_address
        with pytest.raises(urllib.error.URLError):
            await asyncio.to_thread(_get, address)

    run_async(scenario())
    assert ServerConfig().telemetry.metrics == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "localhost"}, "--metrics must be HOST:PORT such as 127.0.0.1:8001, got 'localhost'"),
        ({"otlp": "4317"}, "--otlp must be HOST:PORT such as 127.0.0.1:8001, got '4317'"),
        ({"otlp": "collector:0"}, "--otlp needs a port from 1 to 65535, got 'collector:0'"),
        ({"trace_share": 1.5}, "--trace-share must be from 0 to 1, got 1.5"),
    ],
)
def test_config__a_wrong_value_is_named(options, message):
    with pytest.raises(InputError) as info:
        ServerConfig(telemetry=Telemetry(**options)).check()
    assert str(info.value) == message


def test_histogram__a_bound_belongs_to_its_own_bucket():
    histogram = Histogram()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1):
        histogram.add(seconds)
    assert histogram.counts == [2, 1, *[0] * (len(BOUNDS) - 3), 1, 1]


def test_total__every_figure_is_added():
    """Whatever a ModelStatistics holds, found by looking: a field that is forgotten would vanish in a swap."""

    def fill(thing, number):
        for name in getattr(thing, "__slots__", None) or vars(thing):
            value = getattr(thing, name)
            if isinstance(value, list):
                value[:] = [number] * len(value)
            elif isinstance(value, dict):
                for key, inner in value.items():
                    if isinstance(inner, int):
                        value[key] = number
                    else:
                        fill(inner, number)
            elif isinstance(value, int | float):
                setattr(thing, name, type(value)(number))
            else:
                fill(value, number)
        return thing

    def text(statistics):
        return {name: repr(value) for name, value in vars(statistics).items()}

    one, two = (fill(ModelStatistics((1, 2)), number) for number in (3, 4))
    want = fill(ModelStatistics((1, 2)), 7)
    want.last_inference_ms = 4
    assert text(total([one, two])) == text(want)
    ledger = Ledger()
    # The same one twice, as where a model is added again, counts once.
    for part in (one, two, two, fill(ModelStatistics((1, 2)), 5), fill(ModelStatistics((1, 2)), 6)):
        ledger.add("m", "1", part)
    assert ledger.totals()["m", "1"].inference_count == 3 + 4 + 5 + 6


def _queries(board) -> list[str]:
    """Everything in a dashboard that is asked of Prometheus."""
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return panels + [
        variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"
    ]


def test_dashboard__asks_for_nothing_that_is_not_exported(run_async, model_file, encode):
    async def scenario():
        async with serving(model_file) as (server, channel):
            await scoring_pb2_grpc.ScoringStub(channel).Score(score_request(encode(0)))
            return await asyncio.to_thread(_get, server.telemetry.metrics_address)

    _, text = run_async(scenario())
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        # Those of a model that follows no alias have no samples, but are announced.
        labels[f"{family.name}_total" if family.type == "counter" else family.name] = set()
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    queries = _queries(json.loads((ROOT / "docs" / "grafana.json").read_text()))
    assert len(queries) > 20
    for query in queries:
        names = set(re.findall(r"\b(?:nv|tailacc|process)_\w+", query))
        assert names, query
        assert names <= set(labels), query
        # Whatever stands before a selector is one of those names, so none can hide from the line above.
        assert set(re.findall(r"(\w+)\{", query)) <= names
        said = {label for name in names for label in labels[name]} | {"instance"}
        grouped = {
            label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")
        }
        selected = set(re.findall(r'(\w+)=~?"', query))
        if any("swaps" in name for name in names):
            said.add("model")
        assert grouped | selected <= said, query
