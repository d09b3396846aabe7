"""What a model has done since it was loaded, in the sense of Triton's ModelStatistics.

Written by the engine under its lock; read from any thread without one, since every figure only grows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often something happened, and the nanoseconds that it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add `count` happenings that took `seconds` together."""
        self.count += count
        self.ns += max(0, round(seconds * 1e9))


@dataclass(slots=True)
class BatchDuration:
    """The executions with one batch size: copying in, the model itself, taking the answers apart."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class ModelStatistics:
    """Counts of requests with cumulative times, and of images and batches.

    Attributes:
        success: requests that were answered with one outcome an image; time from arrival to answer.
        fail: requests without an answer by our fault or for their deadline; time from arrival to the refusal.
        cancel: requests that their caller gave up; time from arrival to that.
        queue, compute_input, compute_infer, compute_output: of the successful requests: waiting; decode and
            resize (the sum over the request's images); the batches that held its images (each once); the
            way from the last batch to the answer.
        inference_count: images that ran through the model, padding apart.
        execution_count: batches.
        padded: rows of padding in all batches.
        bad_images: images that could not be decoded or were too large.
        last_inference_ms: milliseconds since the epoch of the last batch; 0 = none yet.
        batches: size of the batch as executed -> its durations. Every size that can occur is there from the start.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self.success, self.fail, self.cancel = Duration(), Duration(), Duration()
        self.queue, self.compute_input = Duration(), Duration()
        self.compute_infer, self.compute_output = Duration(), Duration()
        self.inference_count = self.execution_count = self.padded = self.bad_images = 0
        self.last_inference_ms = 0
        self.batches = {size: BatchDuration() for size in buckets}

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
