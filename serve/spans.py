"""Traces: a span for each sampled request, with its waits, its decodes and its batches as children, sent over OTLP.

    python serve/server.py --otlp 127.0.0.1:4317 --trace-share 0.1
    OTEL_EXPORTER_OTLP_ENDPOINT=https://collector:4317 python serve/server.py

What the caller's `traceparent` says of sampling is respected; `--trace-share` is for those that send none. The spans
are made after the answer, from times that the engine has noted. Attributes follow OpenTelemetry's conventions for RPC.
This imports OpenTelemetry, so it is itself imported only where traces are wanted.
"""

import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve.call import Call, Stages

# Of the codes, those that the conventions count as the server's fault.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class Tracer:
    """A `serve.calls.Watcher` that sends spans.

    Args:
        endpoint: HOST:PORT of a collector, without TLS; "": what OTEL_EXPORTER_OTLP_ENDPOINT and its kin say.
        share: of the requests without a `traceparent`, from 0 to 1.
    """

    def __init__(self, endpoint: str, share: float) -> None:
        exporter = (
            OTLPSpanExporter(endpoint=f"http://{endpoint}", insecure=True) if endpoint else OTLPSpanExporter()
        )
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before ours.
        ours = Resource({"service.name": "tailacc", "service.version": version("tailacc")})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        # Not at the exit of the process, where it would wait for a collector that is away.
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)), resource=resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tailacc.serve", version("tailacc"))
        self._propagator = TraceContextTextMapPropagator()
        # From `time.monotonic()` to nanoseconds since the epoch.
        self._epoch = time.time_ns() - time.monotonic_ns()

    def begin(self, call: Call, metadata: Mapping[str, str]) -> None:
        """Open the span; where it is sampled, have the engine note its stages."""
        parent = self._propagator.extract(metadata)
        span = self._tracer.start_span(
            call.method, parent, SpanKind.SERVER, start_time=self._nanoseconds(call.began)
        )
        sampled = span.is_recording()
        if sampled or "traceparent" in metadata:
            call.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        if sampled:
            call.span, call.stages = span, Stages(span.get_span_context())

    def end(self, call: Call) -> None:
        """Add the children and close the span."""
        span: Span | None = call.span
        if span is None:
            return
        span.set_attributes(
            {
                "rpc.system.name": "grpc",
                "rpc.method": call.method,
                "rpc.response.status_code": call.code,
                **_peer(call.peer),
                "tailacc.request.id": call.request_id,
                "tailacc.request.images": call.images,
                "tailacc.request.bytes": call.size,
                "tailacc.model.name": call.model,
                "tailacc.model.version": call.version,
            }
        )
        if call.code in _FAULTS:
            span.set_attribute("error.type", call.code)
            span.set_status(Status(StatusCode.ERROR))
        if call.stages and call.request:
            self._children(call, call.stages, trace.set_span_in_context(span))
        span.end(self._nanoseconds(call.ended))

    def close(self, wait_s: float) -> None:
        """Send what is there, for at most `wait_s` seconds: the collector may be away."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(wait_s)

    def _children(self, call: Call, stages: Stages, parent: Any) -> None:
        arrived, ended = call.request.arrived if call.request else call.began, call.ended
        for began, stopped in stages.waits(arrived, (call.request and call.request.finished) or ended):
            self._child("queue", parent, began, stopped, {})
        if stages.decodes:
            seconds = sum(stopped - began for began, stopped in stages.decodes)
            self._child(
                "decode",
                parent,
                min(began for began, _ in stages.decodes),
                max(stopped for _, stopped in stages.decodes),
                {"tailacc.images": len(stages.decodes), "tailacc.decode.seconds": seconds},
            )
        for run in stages.executions:
            self._child(
                "inference",
                parent,
                run.began,
                run.ended,
                {
                    "tailacc.batch.images": run.images,
                    "tailacc.batch.size": run.bucket,
                    "tailacc.model.name": call.model,
                    "tailacc.model.version": call.version,
                },
                [Link(other.identity) for other in run.sharers if other is not stages],
            )

    def _child(
        self,
        name: str,
        parent: Any,
        began: float,
        ended: float,
        attributes: Mapping[str, str | int | float],
        links: list[Link] | None = None,
    ) -> None:
        child = self._tracer.start_span(
            name, parent, attributes=attributes, links=links, start_time=self._nanoseconds(began)
        )
        child.end(self._nanoseconds(ended))

    def _nanoseconds(self, seconds: float) -> int:
        return self._epoch + round(seconds * 1e9)


def _peer(text: str) -> dict[str, str | int]:
    """gRPC's "ipv4:127.0.0.1:50000" as attributes."""
    kind, _, rest = text.partition(":")
    address, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return {"network.peer.address": text}
    return {"network.peer.address": address.strip("[]"), "network.peer.port": int(port)}
