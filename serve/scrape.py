"""The counters of the server as Prometheus metrics, read when they are asked for: what works pays nothing for it.

Triton's names and labels (`nv_inference_*`) where they say what ours say, so that dashboards made for it go on; the
rest under `tailacc_`. A counter has the model's version among its labels, and goes on where that version is served
again.
"""

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serve.admission import Admission
from serve.calls import Calls
from serve.config import ServerConfig, cores
from serve.counters import BOUNDS, Histogram, ModelStatistics
from serve.service import Models
from serve.telemetry import TelemetryOutputs
from serve.worker import InferenceWorker

_MODEL = ("model", "version")
# Triton's reason -> ours: it calls REJECTED what did not get its turn in time, BACKEND what the execution lost.
_REASONS = {"REJECTED": ("expired", "hopeless"), "BACKEND": ("lost",), "OTHER": ("refused",)}


class Sources(Protocol):
    """What is read: the attributes of `serve.lifecycle.ScoringServer`."""

    config: ServerConfig
    models: Models
    admission: Admission
    calls: Calls
    worker: InferenceWorker
    telemetry: TelemetryOutputs


class ServerCollector(Collector):
    """Reads `sources` at each scrape, in the thread of the scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        totals = self._sources.models.ledger.totals()
        yield from _triton(totals)
        yield from _durations(totals)
        yield from _work(totals)
        yield from _serving(self._sources)
        yield from _calls(self._sources)
        yield from _process(self._sources)


Totals = dict[tuple[str, str], ModelStatistics]
_Table = tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...]

# The name behind the prefix, what it counts, and where it stands.
_TRITON: _Table = (
    ("request_success", "Requests answered with one outcome an image", lambda s: s.success.count),
    ("count", "Images that ran through the model, padding apart", lambda s: s.inference_count),
    ("exec_count", "Batches", lambda s: s.execution_count),
    ("request_duration_us", "Answered requests: arrival to answer", lambda s: s.success.ns // 1000),
    ("queue_duration_us", "Answered requests: neither decoded nor run", lambda s: s.queue.ns // 1000),
    (
        "compute_input_duration_us",
        "Answered requests: decode and resize, the sum over the images",
        lambda s: s.compute_input.ns // 1000,
    ),
    (
        "compute_infer_duration_us",
        "Answered requests: the batches that held their images",
        lambda s: s.compute_infer.ns // 1000,
    ),
    (
        "compute_output_duration_us",
        "Answered requests: from the last batch to the answer",
        lambda s: s.compute_output.ns // 1000,
    ),
)
_OURS: _Table = (
    ("deadline_exceeded", "Requests whose deadline passed here", lambda s: s.failures["expired"]),
    ("cancelled", "Requests that their caller gave up", lambda s: s.cancel.count),
    ("bad_images", "Images that could not be decoded or were too large", lambda s: s.bad_images),
    ("padded_rows", "Rows of padding in all batches", lambda s: s.padded),
    (
        "decode_seconds",
        "Decode and resize of the images of answered requests",
        lambda s: s.compute_input.ns / 1e9,
    ),
    (
        "model_restarts",
        "How often the model was opened again after a death of the worker",
        lambda s: s.restarts,
    ),
)


def _triton(totals: Totals) -> Iterator[Metric]:
    """Triton's counters. Untyped, since its names lack the `_total` that OpenMetrics wants of a counter."""
    for name, text, read in _TRITON:
        metric = Metric(f"nv_inference_{name}", text, "unknown")
        for (model, number), statistics in totals.items():
            metric.add_sample(metric.name, {"model": model, "version": number}, read(statistics))
        yield metric
    failure = Metric("nv_inference_request_failure", "Requests without an answer, by reason", "unknown")
    for (model, number), statistics in totals.items():
        counts = {
            reason: sum(statistics.failures[ours] for ours in group) for reason, group in _REASONS.items()
        }
        for reason, value in {**counts, "CANCELED": statistics.cancel.count}.items():
            labels = {"model": model, "version": number, "reason": reason}
            failure.add_sample(failure.name, labels, value)
    yield failure


def _durations(totals: Totals) -> Iterator[Metric]:
    latency = HistogramMetricFamily(
        "tailacc_request_duration_seconds",
        "Answered requests: arrival in the queue to answer",
        labels=_MODEL,
    )
    waiting = HistogramMetricFamily(
        "tailacc_queue_duration_seconds", "Answered requests: neither decoded nor run", labels=_MODEL
    )
    for key, statistics in totals.items():
        for metric, histogram in ((latency, statistics.latency), (waiting, statistics.waiting)):
            metric.add_metric(key, _buckets(histogram), histogram.seconds)
    yield latency
    yield waiting


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' own counts: of all up to a bound."""
    out, below = [], 0
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    for bound, counted in zip(bounds, list(histogram.counts), strict=True):
        below += counted
        out.append((bound, float(below)))
    return out


def _work(totals: Totals) -> Iterator[Metric]:
    for name, text, read in _OURS:
        metric = CounterMetricFamily(f"tailacc_{name}", text, labels=_MODEL)
        for key, statistics in totals.items():
            metric.add_metric(key, read(statistics))
        yield metric
    batches = CounterMetricFamily(
        "tailacc_batches", "Batches by rows, padding included", labels=(*_MODEL, "size")
    )
    for key, statistics in totals.items():
        for size, durations in statistics.batches.items():
            batches.add_metric((*key, str(size)), durations.compute_infer.count)
    yield batches


def _serving(sources: Sources) -> Iterator[Metric]:
    """What there is at this moment."""
    pending = GaugeMetricFamily(
        "nv_inference_pending_request_count", "Requests without an answer yet", labels=_MODEL
    )
    images = GaugeMetricFamily(
        "tailacc_images", "Images on their way, by where they are", labels=(*_MODEL, "state")
    )
    ready = GaugeMetricFamily("tailacc_model_ready", "1 where the model takes requests", labels=_MODEL)
    info = GaugeMetricFamily(
        "tailacc_model_info", "1 for what is served", labels=(*_MODEL, "registered", "sha256", "device")
    )
    for served in sources.models.all():
        key, batcher = (served.name, served.version), served.engine.batcher
        pending.add_metric(key, batcher.held)
        for state in ("queued", "decoding", "ready", "running"):
            images.add_metric((*key, state), getattr(batcher, state))
        ready.add_metric(key, served.ready)
        ref = served.ref
        info.add_metric((*key, f"{ref.name}/{ref.version}", ref.hash, served.device.name), 1)
    yield from (pending, images, ready, info)


def _calls(sources: Sources) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "tailacc_requests", "Calls, and requests of streams, by gRPC status", labels=("method", "code")
    )
    for key, value in list(sources.calls.codes.items()):
        requests.add_metric(key, value)
    yield requests
    refused = CounterMetricFamily(
        "tailacc_refused", "Requests that there was no room for, by what was full", labels=("reason",)
    )
    for reason, value in list(sources.calls.refused.items()):
        refused.add_metric((reason,), value)
    yield refused
    admission, limits = sources.admission, sources.config.limits
    yield CounterMetricFamily(
        "tailacc_admitted", "Requests that there was room for", value=admission.admitted
    )
    inflight = GaugeMetricFamily("tailacc_inflight", "What was admitted and is not answered", labels=("of",))
    most = GaugeMetricFamily("tailacc_inflight_limit", "What is admitted at most", labels=("of",))
    for of, held, limit in (
        ("requests", admission.requests, limits.inflight_requests),
        ("images", admission.images, limits.inflight_images),
        ("bytes", admission.size, limits.inflight_bytes),
    ):
        inflight.add_metric((of,), held)
        most.add_metric((of,), limit)
    yield from (inflight, most)


def _process(sources: Sources) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "tailacc_worker_deaths", "How often the inference worker died or hung", value=sources.worker.deaths
    )
    threads = GaugeMetricFamily("tailacc_threads", "Threads that work, by what they do", labels=("of",))
    threads.add_metric(("inference",), sources.worker.threads)
    threads.add_metric(("decode",), sources.config.decode_threads or cores())
    yield threads
    swaps = CounterMetricFamily(
        "tailacc_model_swaps", "How often another version took over", labels=("model",)
    )
    refused = CounterMetricFamily(
        "tailacc_model_swaps_refused", "How often a new version did not pass its checks", labels=("model",)
    )
    # Only of models that follow an alias of a registry.
    for one in sources.models.following:
        swaps.add_metric((one.name,), one.swaps)
        refused.add_metric((one.name,), one.refusals)
    yield from (swaps, refused)
    yield CounterMetricFamily(
        "tailacc_access_log_dropped",
        "Lines of the access log that nobody took in time",
        value=sources.telemetry.dropped,
    )
    build = GaugeMetricFamily("tailacc_build_info", "1", labels=("version", "python", "onnxruntime", "grpc"))
    build.add_metric((version("tailacc"), platform.python_version(), _onnxruntime(), version("grpcio")), 1)
    yield build
    yield GaugeMetricFamily(
        "process_threads", "Threads of the process", value=len(os.listdir("/proc/self/task"))
    )


def _onnxruntime() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
