"""What a model has done since it was loaded, in the sense of Triton's ModelStatistics.

Written by the engine under its lock; read from any thread without one, since every figure only grows.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something happened, and the nanoseconds that it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add `count` happenings that took `seconds` together."""
        self.count += count
        if seconds > 0:
            self.ns += int(seconds * 1e9 + 0.5)


@dataclass(slots=True)
class BatchDuration:
    """The executions with one batch size: copying in, the model itself, taking the answers apart."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


# Upper bounds in seconds: the answers that are worth telling apart take from 1 ms to the longest deadlines.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class Histogram:
    """How many happenings took at most each of BOUNDS, and longer than the one before; the last: longer than all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Add one that took `seconds`."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


class ModelStatistics:
    """Counts of requests with cumulative times, and of images and batches.

    Attributes:
        success: requests that were answered with one outcome an image; time from arrival to answer.
        fail: requests without an answer by our fault or for their deadline; time from arrival to the refusal.
        cancel: requests that their caller gave up; time from arrival to that.
        failures: the requests of `fail` by their reason: "expired" (the deadline passed), "hopeless" (refused, since
            it would pass), "lost" (the worker died), "refused" (draining).
        latency, waiting: of the successful requests: the time from arrival to answer, and the queue's part of it.
        queue, compute_input, compute_infer, compute_output: of the successful requests: waiting; decode and
            resize (the sum over the request's images); the batches that held its images (each once); the
            way from the last batch to the answer.
        inference_count: images that ran through the model, padding apart.
        execution_count: batches.
        padded: rows of padding in all batches.
        restarts: how often it was opened again after a death of the worker.
        bad_images: images that could not be decoded or were too large.
        last_inference_ms: milliseconds since the epoch of the last batch; 0 = none yet.
        batches: size of the batch as executed -> its durations. Every size that can occur is there from the start.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self.success, self.fail, self.cancel = Duration(), Duration(), Duration()
        self.failures = dict.fromkeys(("expired", "hopeless", "lost", "refused"), 0)
        self.latency, self.waiting = Histogram(), Histogram()
        self.restarts = 0
        self.queue, self.compute_input = Duration(), Duration()
        self.compute_infer, self.compute_output = Duration(), Duration()
        self.inference_count = self.execution_count = self.padded = self.bad_images = 0
        self.last_inference_ms = 0
        self.batches = {size: BatchDuration() for size in buckets}

    def add_answer(self, total: float, decode: float, inference: float) -> None:
        """Count a request that was answered; its times in seconds."""
        waited = max(0.0, total - decode - inference)
        self.success.add(total)
        self.queue.add(waited)
        self.compute_input.add(decode)
        self.compute_infer.add(inference)
        self.latency.add(total)
        self.waiting.add(waited)

    def add_failure(self, reason: str, seconds: float) -> None:
        """Count a request without an answer, after `seconds`; `reason` is one of `failures`."""
        self.fail.add(seconds)
        self.failures[reason] += 1

    def add_batch(self, bucket: int, images: int, copying: float, inference: float, parting: float) -> None:
        """Count one execution; times in seconds."""
        self.inference_count += images
        self.execution_count += 1
        self.padded += bucket - images
        self.last_inference_ms = time.time_ns() // 1_000_000
        batch = self.batches[bucket]
        batch.compute_input.add(copying)
        batch.compute_infer.add(inference)
        batch.compute_output.add(parting)


class Ledger:
    """The statistics of every model that was ever served, by name and version: a swap must take no count back.

    For one thread that adds; read from any.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[ModelStatistics, ...]] = {}

    def add(self, name: str, version: str, statistics: ModelStatistics) -> None:
        """A model begins to be served under this name and version. The one before it may still be answering."""
        kept = self._kept.get((name, version), ())
        if statistics in kept:
            return
        if len(kept) > 1:
            # What was replaced twice has long ended: one sum of those, so that no number of swaps fills the memory.
            kept = (total(kept[:-1]), kept[-1])
        # In one assignment, for those who read meanwhile.
        self._kept[name, version] = (*kept, statistics)

    def totals(self) -> dict[tuple[str, str], ModelStatistics]:
        """(name, version) -> the sum of what was done under it."""
        return {key: total(kept) for key, kept in list(self._kept.items())}


def total(parts: Sequence[ModelStatistics]) -> ModelStatistics:
    """The sum of statistics."""
    out = ModelStatistics([size for part in parts for size in part.batches])
    for part in parts:
        _merge(out, part)
    return out


def _merge(into: Any, other: Any) -> None:
    """Add each figure of `other` to that of `into`, which has the same fields or more."""
    named = isinstance(other, dict)
    for name in other if named else getattr(other, "__slots__", None) or vars(other):
        mine, theirs = (into[name], other[name]) if named else (getattr(into, name), getattr(other, name))
        if isinstance(theirs, list):
            mine[:] = [a + b for a, b in zip(mine, theirs, strict=True)]
        elif isinstance(theirs, int | float):
            value = max(mine, theirs) if name == "last_inference_ms" else mine + theirs
            if named:
                into[name] = value
            else:
                setattr(into, name, value)
        else:
            _merge(mine, theirs)
