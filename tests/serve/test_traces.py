"""Traces of a real server, as a real collector of OTLP over gRPC gets them."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from proto.inference.v2 import inference_pb2 as oip
from proto.inference.v2 import inference_pb2_grpc
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve import engine
from serve.call import Execution, Stages
from serve.config import Connection, ScoreConfig, ServerConfig, Telemetry
from serve.inference_codec import join_bytes
from serve.lifecycle import ScoringServer, banner
from serve.scoring import score
from tests.serve import in_process
from tests.serve.in_process import ask, score_request, until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it gets. `address` to send to."""

    def __init__(self):
        self.resources, self.spans = [], []
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request, context):
        for resource in request.resource_spans:
            self.resources.append(_attributes(resource.resource))
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()

    def close(self):
        self._server.stop(None).wait()

    def roots(self):
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]

    def children(self, root):
        """Name -> spans."""
        out = {}
        for span in self.spans:
            if span.parent_span_id == root.span_id:
                out.setdefault(span.name, []).append(span)
        return out


def _attributes(thing) -> dict:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in thing.attributes}


@pytest.fixture
def collector():
    out = Collector()
    yield out
    out.close()


def serving(model, collector, share=1.0, **options):
    """A server and a channel to it. At its end all spans are with the collector."""
    return in_process.serving(
        model, telemetry=Telemetry(otlp=collector.address, trace_share=share), **options
    )


def test_trace__a_request_with_its_stages(run_async, model_file, encode, collector):
    async def scenario():
        async with serving(model_file, collector, max_batch=2) as (server, channel):
            assert f"traces   to {collector.address}; 1 of the requests" in banner(server)
            metadata = (("traceparent", SAMPLED), ("tracestate", "v=1"), ("x-request-id", "mine"))
            await ask(channel, encode(0), encode(1), encode(2), b"text", metadata=metadata)

    run_async(scenario())
    [root] = collector.roots()
    assert root.name == "tailacc.v1.Scoring/Score"
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT
    assert root.trace_state == "v=1"
    found = _attributes(root)
    assert found.pop("network.peer.port") > 0
    size = found.pop("tailacc.request.bytes")
    assert size == score_request(encode(0), encode(1), encode(2), b"text").ByteSize()
    assert found == {
        "rpc.system.name": "grpc",
        "rpc.method": "tailacc.v1.Scoring/Score",
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
        "tailacc.request.id": "mine",
        "tailacc.request.images": 4,
        "tailacc.model.name": "tailacc",
        "tailacc.model.version": "1",
    }
    assert root.status.code == Status.STATUS_CODE_UNSET
    children = collector.children(root)
    assert set(children) <= {"queue", "decode", "inference"}
    [decode] = children["decode"]
    assert _attributes(decode)["tailacc.images"] == 4  # the bad one was looked at too
    batches = [_attributes(span) for span in children["inference"]]
    assert sum(batch["tailacc.batch.images"] for batch in batches) == 3
    for batch in batches:
        assert 1 <= batch["tailacc.batch.images"] <= batch["tailacc.batch.size"] <= 2
        assert (batch["tailacc.model.name"], batch["tailacc.model.version"]) == ("tailacc", "1")
    for spans in children.values():
        for span in spans:
            assert span.trace_id.hex() == TRACE
            assert root.start_time_unix_nano <= span.start_time_unix_nano
            assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    [resource] = collector.resources
    assert resource["service.name"] == "tailacc"
    assert resource["service.version"]


def test_trace__those_who_share_a_batch_are_linked(run_async, model_file, encode, collector, monkeypatch):
    """Two traced requests and one that is not, in one batch: the two name each other."""
    gate, load = threading.Event(), engine.load
    monkeypatch.setattr(engine, "load", lambda content, size: (gate.wait(30), load(content, size))[1])

    async def scenario():
        options = {"max_batch": 4, "max_delay_ms": 1000.0, "decode_threads": 1}
        async with serving(model_file, collector, **options) as (server, channel):
            parents = [SAMPLED, SAMPLED.replace(TRACE, "1" * 32), UNSAMPLED]
            calls = []
            for number, parent in enumerate(parents):
                images = [encode(number)] * (2 if number == 2 else 1)
                metadata = (("traceparent", parent),)
                calls.append(asyncio.ensure_future(ask(channel, *images, metadata=metadata)))
                await until(lambda: server.admission.requests == len(calls))
            gate.set()
            await asyncio.gather(*calls)

    run_async(scenario())
    roots = collector.roots()
    assert len(roots) == 2
    for root, other in (roots, roots[::-1]):
        [batch] = collector.children(root)["inference"]
        assert _attributes(batch)["tailacc.batch.images"] == 4
        assert [(link.trace_id, link.span_id) for link in batch.links] == [(other.trace_id, other.span_id)]


@pytest.mark.parametrize(
    ("share", "parent", "sent"),
    [(0.0, None, 0), (1.0, None, 1), (0.0, SAMPLED, 1), (1.0, UNSAMPLED, 0), (0.0, "no such thing", 0)],
)
def test_trace__the_parents_decision_goes_before_the_share(
    run_async, model_file, encode, collector, share, parent, sent
):
    async def scenario():
        async with serving(model_file, collector, share) as (_, channel):
            metadata = (("traceparent", parent),) if parent else ()
            await ask(channel, encode(0), metadata=metadata)

    run_async(scenario())
    assert len(collector.roots()) == sent
    assert bool(collector.spans) is bool(sent)


def test_trace__errors_and_whose_they_are(run_async, model_file, encode, collector):
    async def scenario():
        async with serving(model_file, collector) as (server, channel):
            for request in (pb.ScoreRequest(), pb.ScoreRequest(model="x", images=[pb.Image(id="a")])):
                with pytest.raises(grpc.aio.AioRpcError):
                    await scoring_pb2_grpc.ScoringStub(channel).Score(request)
            server.admission.close("closed for the test")
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(channel, encode(0))

    run_async(scenario())
    roots = {_attributes(root)["rpc.response.status_code"]: root for root in collector.roots()}
    assert set(roots) == {"INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"}
    # A caller's mistake is no fault of the server.
    statuses = {code: root.status.code for code, root in roots.items()}
    assert statuses.pop("UNAVAILABLE") == Status.STATUS_CODE_ERROR
    assert set(statuses.values()) == {Status.STATUS_CODE_UNSET}
    assert _attributes(roots["UNAVAILABLE"])["error.type"] == "UNAVAILABLE"
    assert all(not collector.children(root) for root in roots.values())


def test_trace__each_request_of_a_stream_has_its_own_span(run_async, model_file, encode, collector):
    def request(content):
        tensor = oip.ModelInferRequest.InferInputTensor(name="jpeg", datatype="BYTES", shape=[1])
        return oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[join_bytes([content])])

    async def scenario():
        async with serving(model_file, collector) as (_, channel):
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            stream = stub.ModelStreamInfer(
                iter([request(encode(n)) for n in range(3)]), metadata=(("traceparent", SAMPLED),)
            )
            assert len([answer async for answer in stream]) == 3

    run_async(scenario())
    roots = collector.roots()
    assert [root.name for root in roots] == ["inference.GRPCInferenceService/ModelStreamInfer"] * 3
    assert {root.trace_id.hex() for root in roots} == {TRACE}
    assert len({_attributes(root)["tailacc.request.id"] for root in roots}) == 3
    assert [len(collector.children(root)["inference"]) for root in roots] == [1, 1, 1]


def test_trace__the_environment_names_the_collector(run_async, model_file, encode, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pets")

    async def scenario():
        config = ServerConfig(model=str(model_file), listen="127.0.0.1:0", device="cpu", threads=1)
        server = ScoringServer(config)
        await server.bind()
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            await ask(channel, encode(0), metadata=(("traceparent", SAMPLED),))
        await server.stop(5)

    run_async(scenario())
    assert len(collector.roots()) == 1
    assert [resource["service.name"] for resource in collector.resources] == ["pets"]


def test_trace__without_a_collector_the_server_works_and_ends(run_async, model_file, encode, free_port):
    async def scenario():
        config = ServerConfig(
            model=str(model_file),
            listen="127.0.0.1:0",
            device="cpu",
            threads=1,
            telemetry=Telemetry(otlp=f"127.0.0.1:{free_port}", trace_share=1),
        )
        server = ScoringServer(config)
        await server.bind()
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            answer = await ask(channel, encode(0))
        return answer, await server.stop(5), server.ended

    answer, lost, ended = run_async(scenario(), 30)
    assert answer.results[0].status.code == pb.ImageStatus.CODE_OK
    assert (lost, ended) == (0, True)


def test_trace__nothing_is_imported_that_is_not_wanted():
    script = (
        "import sys, json, serve.lifecycle; "
        "print(json.dumps([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus'))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("decodes", "runs", "waits"),
    [
        ([], [], [(0.0, 10.0)]),
        ([(1.0, 2.0)], [(4.0, 9.0)], [(0.0, 1.0), (2.0, 4.0), (9.0, 10.0)]),
        ([(0.0, 3.0), (1.0, 2.0)], [(3.0, 10.0)], []),
        ([(2.0, 5.0)], [(4.0, 6.0), (12.0, 14.0)], [(0.0, 2.0), (6.0, 10.0)]),
        ([(1.0, 20.0)], [], [(0.0, 1.0)]),
        ([(0.00005, 2.0)], [(2.00005, 9.0)], [(9.0, 10.0)]),
    ],
)
def test_stages__a_wait_is_what_nothing_fills(decodes, runs, waits):
    stages = Stages(decodes=decodes)
    stages.executions += [Execution(began, ended, 1, 1, (stages,)) for began, ended in runs]
    assert stages.waits(0.0, 10.0) == waits


def test_client__with_trace_its_calls_can_be_found(
    run_async, model_file, image_folder, tmp_path, collector, capsys
):
    folder = str(image_folder(5))

    async def run(address, trace):
        connection = Connection(server=address, trace=trace)
        out = tmp_path / f"{trace}.parquet"
        return await score(ScoreConfig(connection=connection, images=folder, batch=2, out=out))

    async def scenario():
        async with serving(model_file, collector, 0.0) as (server, _):
            return await run(server.address, False), await run(server.address, True)

    assert run_async(scenario()) == (0, 0)
    # Without it the servers decide, and these trace none.
    roots = collector.roots()
    assert [root.name for root in roots] == ["tailacc.v1.Scoring/Score"] * 3
    assert len({root.trace_id for root in roots}) == 3
    ids = sorted(_attributes(root)["tailacc.request.id"] for root in roots)
    [run_id] = re.findall(r"^trace   .* ([0-9a-f]{8})-$", capsys.readouterr().err, re.MULTILINE)
    assert ids == [f"{run_id}-{number}" for number in (1, 2, 3)]
