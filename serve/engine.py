"""The engine of one model: drives the state machine of `serve.batcher` with real threads and a real clock.

Images in, one outcome an image out; it knows nothing of gRPC. Each image is decoded and checked before it meets
others in a batch. A request costs the event loop one future and at most one wake-up: decode threads and the
inference worker feed the state machine directly, under one lock that is held for microseconds.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from data.image import ImageError, load
from serve.batcher import Action, Answer, Batch, Batcher, Decode, Item, Request, Run, Verdict
from serve.call import CURRENT, note_execution
from serve.counters import ModelStatistics
from serve.decode import DecodePool
from serve.faults import ModelDown, NotAccepting, ServerFull
from serve.model import OnnxModel
from serve.outcome import Failure, Outcome, Row, Trouble
from serve.worker import InferenceWorker

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]

# How much a new batch, or a decode, counts in the running means of seconds an image.
_PACE_WEIGHT = 0.2
_FIRST_RESTART_S = 0.5
# Until other images have been decoded and their memory is free.
_NO_MEMORY_RETRY_MS = 1000
_LONGEST_RESTART_S = 30.0
# What opening a model again may take: its load and its first runs are longer than any batch, and a worker that is
# declared dead for it would begin anew, for ever.
_REOPEN_S = 300.0


class Engine:
    """Drives one model. Create it inside a running event loop; `score` and `drain` are for that loop's thread.

    Args:
        model: loaded and warm.
        pool: decodes for a GPU; its number of threads is that of the images that may be decoded at once.
        worker: runs the model. Pool and worker are shared with the other models of the server.
        max_delay: seconds that an image waits for others on their way while the model is idle.
        image_bytes: the most bytes of one encoded image.

    Attributes:
        model: the one that runs; another object after a restart of the worker.
        batcher: the state machine, to look at.
        statistics: what was done.
    """

    def __init__(
        self, model: OnnxModel, pool: DecodePool, worker: InferenceWorker, max_delay: float, image_bytes: int
    ) -> None:
        self.model = model
        self.statistics = ModelStatistics(model.buckets)
        shared = model.device.name == "cpu"
        # Two batches ahead: the next one is whole when this one ends, and the one after it is on its way.
        self.batcher = Batcher(
            model.buckets,
            max_delay,
            pool.threads,
            2 * model.buckets[-1] + pool.threads,
            pad=model.device.name == "cuda",
            runners=model.runners,
            shared=shared,
        )
        # On the CPU the worker decodes as well: what was decoded goes on in the thread that did it.
        worker.grow(max(model.runners, pool.threads) if shared else model.runners)
        if not shared:
            pool.start()
        self._worker, self._shared = worker, shared
        self._submit_decode = worker.submit if shared else pool.submit
        self._image_bytes = image_bytes
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._pace, self._decode_pace = model.seconds_an_image, 0.0
        self._decoders = pool.threads
        self._wake = math.inf
        self._loop_thread = threading.get_ident()
        self._drained = asyncio.Event()
        worker.subscribe(self._on_death)

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return not (self.batcher.down or self.batcher.draining)

    @property
    def restarts(self) -> int:
        """How often the model was opened again after a death of the worker."""
        return self.statistics.restarts

    async def score(
        self, images: Sequence[bytes | Pixels], deadline: float | None = None, priority: int = 0
    ) -> list[Outcome]:
        """See `serve.service.ServedModel.score`."""
        now = time.monotonic()
        request = Request([None] * len(images), deadline if deadline is not None else math.inf, priority)
        encoded, pixels = self._items(request, images)
        self._refuse_hopeless(request.deadline, now)
        request.token = self._loop.create_future()
        if call := CURRENT.get():
            call.request, request.stages = request, call.stages
        self._feed(self.batcher.arrive, request, encoded, pixels)
        try:
            await request.token
        except asyncio.CancelledError:
            self._feed(self.batcher.cancel, request)
            raise
        if request.verdict in _ERRORS:
            raise _ERRORS[request.verdict](request.message)
        for outcome in request.outcomes:
            if isinstance(outcome, Failure) and outcome.trouble is Trouble.NO_MEMORY:
                raise ServerFull(outcome.message, _NO_MEMORY_RETRY_MS, "memory")
        return request.outcomes

    async def drain(self) -> None:
        """Take nothing new, finish what is held."""
        self._feed(self.batcher.drain)
        while not self.batcher.idle:
            self._drained.clear()
            await self._drained.wait()
        self._worker.unsubscribe(self._on_death)
        if self._timer:
            self._timer.cancel()

    def _items(self, request: Request, images: Sequence[bytes | Pixels]) -> tuple[list[Item], list[Item]]:
        """What is to be decoded and what is pixels already; an image that is too large has its outcome at once."""
        if request.priority < 0:
            raise InputError(f"priority must be at least 0, got {request.priority}")
        encoded, pixels = [], []
        shape = (self.model.info.size, self.model.info.size, 3)
        for index, image in enumerate(images):
            if isinstance(image, np.ndarray):
                if image.shape != shape or image.dtype != np.uint8:
                    raise InputError(
                        f"pixels must be uint8{list(shape)}, got {image.dtype}{list(image.shape)} at position {index}"
                    )
                pixels.append(Item(request, index, image))
            elif len(image) > self._image_bytes:
                request.outcomes[index] = Failure(
                    Trouble.TOO_LARGE,
                    f"{len(image)} bytes are over the limit of {self._image_bytes} for one image "
                    "(--limits.image-bytes)",
                )
                with self._lock:
                    self.statistics.bad_images += 1
            else:
                encoded.append(Item(request, index, image))
        return encoded, pixels

    def _refuse_hopeless(self, deadline: float, now: float) -> None:
        """Refuse at once what would only expire in the queue: under overload the time is spent on the others."""
        if deadline == math.inf:
            return
        batcher = self.batcher
        encoded = batcher.queued + batcher.decoding
        before = encoded + batcher.ready + batcher.running
        decode, inference = encoded * self._decode_pace / self._decoders, before * self._pace
        # One after the other on the same cores; beside each other where a GPU runs the model.
        wait = decode + inference if self._shared else max(decode, inference)
        if now < deadline < now + wait:
            with self._lock:
                self.statistics.add_failure("hopeless", 0)
            raise ServerFull(
                f"the server is full: {before} images are before this request, about {wait:.2f} s of work, and its "
                f"deadline is in {deadline - now:.2f} s",
                max(1, round((now + wait - deadline) * 1000)),
                "deadline",
            )

    def _feed(self, event: Callable[..., list[Action]], *arguments: Any) -> None:
        """Give the state machine an event and carry out what it says. From any thread."""
        with self._lock:
            answers = self._carry_out(event(*arguments, time.monotonic()))
            self._wake = self.batcher.wake_at()
            wanted = answers or self._wake < self._timer_at or (self.batcher.draining and self.batcher.idle)
        if not wanted:
            return
        if threading.get_ident() == self._loop_thread:
            self._deliver(answers)
        else:
            # The loop may be closed: the server has stopped while a job was running.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver, answers)

    def _carry_out(self, actions: list[Action]) -> list[Request]:
        """Start what is to be started, under the lock; returns the requests that have their answer."""
        answers = []
        for action in actions:
            match action:
                case Answer(request):
                    self._count(request)
                    answers.append(request)
                case Decode(item):
                    self._submit_decode(partial(self._decode, item, item.content))
                case Run(batch):
                    contents = [item.content for item in batch.items]
                    self._worker.submit(partial(self._run, batch, contents))
        return answers

    def _deliver(self, answers: list[Request]) -> None:
        """On the loop: wake those who wait, and set the timer for what is due next."""
        now = time.monotonic()
        for request in answers:
            if request.verdict is Verdict.DONE:
                self.statistics.compute_output.add(now - request.finished)
            if not request.token.done():
                request.token.set_result(None)
        self._drained.set()
        if self._wake < self._timer_at:
            if self._timer:
                self._timer.cancel()
            self._timer_at = self._wake
            self._timer = self._loop.call_later(max(0.0, self._wake - now), self._tick)

    def _tick(self) -> None:
        self._timer_at = math.inf
        self._feed(self.batcher.tick)

    def _decode(self, item: Item, content: bytes) -> None:
        """In a thread of the pool."""
        if item.request.verdict is not None:
            self._feed(self.batcher.decode_failed, item, None)
            return
        began = time.monotonic()
        stages = item.request.stages
        try:
            pixels = load(content, self.model.info.size)
        except ImageError as error:
            failure = Failure(Trouble.BAD_IMAGE, str(error))
        except MemoryError:
            # Nothing is wrong with the image: later, or elsewhere, there is room for it.
            failure = Failure(
                Trouble.NO_MEMORY,
                f"the server is full: it has no memory to decode an image of {len(content)} bytes; try again in "
                f"{_NO_MEMORY_RETRY_MS} ms",
            )
            _log.warning("%s", failure.message)
        except BaseException as error:
            # A fault of a decoder on strange bytes is still this image's alone.
            _log.exception("the decoder failed on an image of %d bytes", len(content))
            failure = Failure(Trouble.BAD_IMAGE, f"the decoder failed: {type(error).__name__}: {error}")
        else:
            seconds = time.monotonic() - began
            if stages is not None:
                stages.decodes.append((began, began + seconds))
            self._decode_pace += _PACE_WEIGHT * (seconds - self._decode_pace)
            self._feed(self.batcher.decoded, item, pixels, seconds)
            return
        if failure.trouble is Trouble.BAD_IMAGE:
            with self._lock:
                self.statistics.bad_images += 1
        if stages is not None:
            stages.decodes.append((began, time.monotonic()))
        self._feed(self.batcher.decode_failed, item, failure)

    def _run(self, batch: Batch, contents: list[Pixels]) -> None:
        """In the inference worker. What is raised here is the death of the worker."""
        if all(item.request.verdict is not None for item in batch.items):
            self._feed(self.batcher.batch_failed, batch, None)
            return
        model = self.model
        try:
            outcomes = self._infer(model, batch.bucket, contents, batch.alone)
        except Exception as error:
            outcomes = self._infer_alone(model, contents, error)
        pace = (time.monotonic() - batch.started) / len(contents) / model.runners
        self._pace += _PACE_WEIGHT * (pace - self._pace)
        if traced := [stages for item in batch.items if (stages := item.request.stages) is not None]:
            note_execution(traced, batch.started, batch.bucket, len(batch.items))
        self._feed(self.batcher.batch_done, batch, outcomes)

    def _infer(
        self, model: OnnxModel, bucket: int, contents: list[Pixels], alone: bool = False
    ) -> list[Outcome]:
        start = time.monotonic()
        images = model.fill(bucket, contents)
        filled = time.monotonic()
        logit, score = model.run(images, alone)
        ran = time.monotonic()
        both = np.concatenate((logit, score), axis=1)
        fine = [bool(np.isfinite(row).all()) for row in both]
        outcomes: list[Outcome] = [
            Row(logit[row], score[row])
            if fine[row]
            else Failure(Trouble.INFERENCE_FAILED, "the model gave a value that is not finite")
            for row in range(len(contents))
        ]
        with self._lock:
            self.statistics.add_batch(
                bucket, len(contents), filled - start, ran - filled, time.monotonic() - ran
            )
        return outcomes

    def _infer_alone(self, model: OnnxModel, contents: list[Pixels], error: Exception) -> list[Outcome]:
        """After a failed batch: each image alone, so that one cannot hurt its neighbours.

        Raises:
            InputError: none could be run, and the golden image can't either: the model is broken, not the images.
        """
        _log.warning("a batch of %d failed: %s", len(contents), error)
        outcomes: list[Outcome] = []
        for pixels in contents:
            if len(contents) > 1:
                try:
                    outcomes += self._infer(model, 1, [pixels])
                    continue
                except Exception as alone:
                    error = alone
            outcomes.append(Failure(Trouble.INFERENCE_FAILED, f"{type(error).__name__}: {error}"))
        if all(isinstance(outcome, Failure) for outcome in outcomes):
            model.check_golden()
        return outcomes

    def _on_death(self, reason: str) -> None:
        """The worker has died, in whatever thread that was seen; another has taken its place."""
        self._feed(self.batcher.worker_died, reason)
        self._worker.submit(partial(self._reopen, self.model, _FIRST_RESTART_S))

    def _reopen(self, broken: OnnxModel, pause: float) -> None:
        """In the new worker: open, check and warm the model again, and go on with it."""
        if self.model is not broken or self.batcher.draining:
            return
        self._worker.allow(_REOPEN_S)
        try:
            model = broken.reopen()
        except BaseException as error:  # also what would end the worker: it would die again at once
            if self.batcher.draining:  # it was replaced meanwhile, and its files are gone
                return
            _log.error("the model could not be opened again, next attempt in %g s: %s", pause, error)
            again = partial(self._reopen, broken, min(2 * pause, _LONGEST_RESTART_S))
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.call_later, pause, self._worker.submit, again)
            return
        self.model = model
        with self._lock:
            self.statistics.restarts += 1
            self.batcher.worker_started()

    def _count(self, request: Request) -> None:
        statistics, total = self.statistics, request.finished - request.arrived
        if request.verdict is Verdict.DONE:
            statistics.add_answer(total, request.decode_s, request.infer_s)
        elif request.verdict is Verdict.CANCELLED:
            statistics.cancel.add(total)
        else:
            statistics.add_failure(_FAILURES[request.verdict], total)


_FAILURES: dict[Verdict | None, str] = {
    Verdict.EXPIRED: "expired",
    Verdict.LOST: "lost",
    Verdict.REFUSED: "refused",
}
_ERRORS: dict[Verdict, type[Exception]] = {
    Verdict.EXPIRED: TimeoutError,
    Verdict.LOST: ModelDown,
    Verdict.REFUSED: NotAccepting,
}
