"""The life of every request, as a state machine without gRPC, ONNX, threads, asyncio or a clock.

Events go in, each with the time `now` (seconds, any epoch); actions come out, for a driver to carry out:

    event                                   action
    arrive, cancel, tick                    Decode(item)     decode this image in the pool
    decoded, decode_failed                  Run(batch)       run this batch, beside at most `runners` - 1 others
    batch_done, batch_failed                Answer(request)  its `verdict` and `outcomes` are final
    worker_died, worker_started, drain

An image goes   queued -> decoding -> ready -> running -> settled;   pixels begin at ready.

Whatever the order of events:
- a request is answered exactly once: DONE with one outcome an image, or with the reason why not;
- work of a request that was answered is dropped at every step, and what was running is thrown away;
- what has expired is dropped before it is decoded and again before it is run;
- a batch holds at most the largest bucket; images of one priority are taken in the order in which they came;
- where the model runs on the cores that decode (`shared`), both together are at most as many as the threads, and
  none of these is idle while there is work: a full batch goes before a decode, a decode before a batch with room;
- at most `ahead` images are decoded ahead of the model, which bounds the memory that pixels take.

`tests/serve/test_batcher.py` walks through random interleavings and holds it to this.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from data.errors import InputError


class Verdict(Enum):
    """How a request ended."""

    DONE = "every image has its outcome"
    EXPIRED = "the deadline passed"
    CANCELLED = "the caller gave up"
    LOST = "the inference worker died"
    REFUSED = "nothing new is taken"


@dataclass(eq=False, slots=True)
class Request:
    """Some images of one caller.

    Attributes:
        outcomes: one an image; those that were clear from the start are there before `arrive`.
        deadline: from this time on the answer is worth nothing.
        priority: 1 first, then 2 ...; 0 after all others.
        token: whatever the driver needs to find the caller.
        verdict, message: how it ended, and in words where it is not DONE; None while it is held.
        arrived, finished, last_batch: times; `last_batch` is the end of the last batch that held an image of it.
        decode_s: seconds that threads spent on decoding its images.
        infer_s: seconds of the batches that held its images, each batch once.
        stages: where the driver notes what it does, for a trace.
    """

    outcomes: list[Any]
    deadline: float = math.inf
    priority: int = 0
    token: Any = None
    verdict: Verdict | None = None
    message: str = ""
    arrived: float = 0.0
    finished: float = 0.0
    last_batch: float = 0.0
    decode_s: float = 0.0
    infer_s: float = 0.0
    stages: Any = None
    _items: list["Item"] = field(default_factory=list)
    _left: int = 0


@dataclass(eq=False, slots=True)
class Item:
    """Image `index` of `request`. `content`: encoded bytes, then pixels, then None."""

    request: Request
    index: int
    content: Any


@dataclass(eq=False, slots=True)
class Batch:
    """`items` to be run as a batch of size `bucket`; what is missing is padding.

    `alone`: one image, and nothing else is decoded, run or waiting: all cores may work on it.
    """

    items: list[Item]
    bucket: int
    started: float
    alone: bool


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode `item`, then report `decoded` or `decode_failed`."""

    item: Item


@dataclass(frozen=True, slots=True)
class Run:
    """Run `batch`, then report `batch_done`, `batch_failed` or `worker_died`."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Answer:
    """`request` has its verdict."""

    request: Request


Action = Decode | Run | Answer


class _Line:
    """Items that wait: by priority, then in the order of arrival; any can leave in constant time."""

    def __init__(self) -> None:
        self._levels: dict[float, dict[Item, float]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item, now: float) -> None:
        level = self._levels.setdefault(item.request.priority or math.inf, {})
        level[item] = now
        self._count += 1

    def discard(self, item: Item) -> None:
        key = item.request.priority or math.inf
        level = self._levels.get(key, {})
        if level.pop(item, None) is not None:
            self._count -= 1
            if not level:
                del self._levels[key]

    def pop(self) -> Item:
        item = next(iter(self._levels[min(self._levels)]))
        self.discard(item)
        return item

    def oldest(self) -> float:
        return min(next(iter(level.values())) for level in self._levels.values())


class Batcher:
    """The state machine. See the module's text; for one thread at a time, but its counts may be read from any.

    Args:
        buckets: the batch sizes that may be run, ascending, the first of them 1.
        max_delay: seconds that a ready image waits for others that are on their way, while a runner is free.
        decoders: how many images may be decoded at once.
        ahead: how many images may be decoded or being decoded while they wait for the model.
        pad: fill a batch up to the next bucket (where a larger batch costs little more, as on a GPU); otherwise
            take the largest bucket that is full, so that no work is done for padding.
        runners: how many batches may be run at once.
        shared: whether decoders and runners are the same threads, the worker's, which are then as many as the more
            numerous of the two.
    """

    def __init__(
        self,
        buckets: Sequence[int],
        max_delay: float,
        decoders: int,
        ahead: int,
        pad: bool,
        runners: int = 1,
        shared: bool = False,
    ) -> None:
        if not buckets or buckets[0] != 1 or list(buckets) != sorted(set(buckets)):
            raise InputError(f"buckets must ascend from 1, got {list(buckets)}")
        if not 0 <= max_delay < 60:
            raise InputError(f"max_delay must be from 0 to 60 s, got {max_delay}")
        if decoders < 1 or ahead < buckets[-1]:
            raise InputError(
                f"decoders must be at least 1, got {decoders}; ahead at least {buckets[-1]}, got {ahead}"
            )
        self.buckets, self.max_delay, self.pad = tuple(buckets), max_delay, pad
        if runners < 1:
            raise InputError(f"runners must be at least 1, got {runners}")
        self._decoders, self._ahead, self._runners, self._shared = decoders, ahead, runners, shared
        self._threads = max(decoders, runners) if shared else decoders + runners
        self.draining = False
        self.down = ""
        self._held: dict[Request, None] = {}
        self._queued, self._ready = _Line(), _Line()
        self._decoding: dict[Item, None] = {}
        self._running: dict[Batch, None] = {}
        self._images_running = 0
        self._next_deadline = math.inf

    @property
    def held(self) -> int:
        """Requests without an answer."""
        return len(self._held)

    @property
    def queued(self) -> int:
        """Images that wait to be decoded."""
        return len(self._queued)

    @property
    def decoding(self) -> int:
        """Images that are being decoded, those of answered requests too."""
        return len(self._decoding)

    @property
    def ready(self) -> int:
        """Decoded images that wait for a batch."""
        return len(self._ready)

    @property
    def running(self) -> int:
        """Images of the batches that run."""
        return self._images_running

    @property
    def idle(self) -> bool:
        """Whether nothing is held, decoded or run."""
        return not (self._held or self._decoding or self._running)

    def arrive(
        self, request: Request, encoded: Iterable[Item], pixels: Iterable[Item], now: float
    ) -> list[Action]:
        """A new request; `encoded` are to be decoded, `pixels` are ready."""
        actions = self._expire(now)
        request.arrived = now
        self._held[request] = None
        if self.draining or self.down:
            verdict = Verdict.LOST if self.down else Verdict.REFUSED
            message = self.down or "the model takes nothing more: it is stopping"
            return [*actions, self._answer(request, verdict, message, now)]
        for line, items in ((self._queued, encoded), (self._ready, pixels)):
            for item in items:
                line.add(item, now)
                request._items.append(item)
        request._left = len(request._items)
        if not request._left:
            return [*actions, self._answer(request, Verdict.DONE, "", now)]
        self._next_deadline = min(self._next_deadline, request.deadline)
        return [*actions, *self._expire(now), *self._pump(now)]

    def cancel(self, request: Request, now: float) -> list[Action]:
        """The caller has gone."""
        if request not in self._held:
            return []
        # First what is late: a caller that has gone at its deadline did not give up.
        actions = self._expire(now)
        if request in self._held:
            actions.append(self._answer(request, Verdict.CANCELLED, "cancelled", now))
        return [*actions, *self._pump(now)]

    def tick(self, now: float) -> list[Action]:
        """Time has passed, at least to `wake_at`."""
        return [*self._expire(now), *self._pump(now)]

    def decoded(self, item: Item, pixels: Any, seconds: float, now: float) -> list[Action]:
        """The pixels of `item` are there. Nothing, where its thread was given up meanwhile."""
        if item not in self._decoding:
            return []
        del self._decoding[item]
        item.request.decode_s += seconds
        if item.request in self._held:
            item.content = pixels
            self._ready.add(item, now)
        return [*self._expire(now), *self._pump(now)]

    def decode_failed(self, item: Item, outcome: Any, now: float) -> list[Action]:
        """`item` cannot be decoded; `outcome` says why. Nothing, where its thread was given up meanwhile."""
        if item not in self._decoding:
            return []
        del self._decoding[item]
        actions = self._expire(now)
        actions += self._settle(item, outcome, now)
        return [*actions, *self._pump(now)]

    def batch_done(self, batch: Batch, outcomes: Sequence[Any], now: float) -> list[Action]:
        """`batch` has run: one outcome an item. Nothing, where the worker was declared dead meanwhile."""
        if batch not in self._running:
            return []
        del self._running[batch]
        self._images_running -= len(batch.items)
        actions = self._expire(now)
        for request in {item.request: None for item in batch.items}:
            request.infer_s += now - batch.started
            request.last_batch = now
        for item, outcome in zip(batch.items, outcomes, strict=True):
            actions += self._settle(item, outcome, now)
        return [*actions, *self._pump(now)]

    def batch_failed(self, batch: Batch, outcome: Any, now: float) -> list[Action]:
        """`batch` could not be run; `outcome` is that of each of its items."""
        return self.batch_done(batch, [outcome] * len(batch.items), now)

    def worker_died(self, reason: str, now: float) -> list[Action]:
        """The worker is gone: all that is held is given back, and nothing is taken until `worker_started`."""
        self.down = reason
        self._running.clear()
        self._images_running = 0
        if self._shared:
            self._decoding.clear()
        return [self._answer(request, Verdict.LOST, reason, now) for request in list(self._held)]

    def worker_started(self) -> None:
        """There is a worker again."""
        self.down = ""

    def drain(self, now: float) -> list[Action]:
        """Take nothing new; what is held is finished without waiting for company."""
        self.draining = True
        return [*self._expire(now), *self._pump(now)]

    def wake_at(self) -> float:
        """When `tick` is due; infinity where only other events matter."""
        return min(self._next_deadline, self._due_at())

    def _free(self) -> int:
        """How many batches could start now."""
        running = len(self._running)
        return min(self._runners - running, self._threads - running - len(self._decoding))

    def _can_decode(self) -> bool:
        """Whether a decode could start now."""
        decoding = len(self._decoding)
        return bool(
            len(self._queued)
            and decoding < self._decoders
            and decoding + len(self._running) < self._threads
            and decoding + len(self._ready) < self._ahead
        )

    def _due_at(self) -> float:
        """When the next batch is due."""
        if not len(self._ready) or self._free() < 1:
            return math.inf
        # A core that is free decodes more for this batch; where there is nothing to decode it must not wait.
        company = self._can_decode() if self._shared else len(self._queued) or self._decoding
        if len(self._ready) >= self.buckets[-1] or not company or self.draining:
            return -math.inf
        return self._ready.oldest() + self.max_delay

    def _pump(self, now: float) -> list[Action]:
        """Start what can be started."""
        actions: list[Action] = []
        while True:
            if self._due_at() <= now:
                batch = self._take(now)
                self._running[batch] = None
                self._images_running += len(batch.items)
                actions.append(Run(batch))
            elif self._can_decode():
                item = self._queued.pop()
                self._decoding[item] = None
                actions.append(Decode(item))
            else:
                return actions

    def _take(self, now: float) -> Batch:
        count = min(len(self._ready), self.buckets[-1])
        if self.pad:
            bucket = next(size for size in self.buckets if size >= count)
        else:
            # With nothing left to decode, two free cores take half of the images each.
            parts = 1 if self._can_decode() else self._free()
            count = min(count, math.ceil(len(self._ready) / parts))
            bucket = count = max(size for size in self.buckets if size <= count)
        items = [self._ready.pop() for _ in range(count)]
        busy = self._running or self._decoding or len(self._queued) or len(self._ready)
        return Batch(items, bucket, now, alone=count == 1 and not busy)

    def _expire(self, now: float) -> list[Action]:
        if now < self._next_deadline:
            return []
        late = [request for request in self._held if request.deadline <= now]
        actions: list[Action] = [
            self._answer(
                request,
                Verdict.EXPIRED,
                f"the deadline passed after {now - request.arrived:.3f} s on the server, with "
                f"{request._left} of {len(request.outcomes)} images to go",
                now,
            )
            for request in late
        ]
        self._next_deadline = min((request.deadline for request in self._held), default=math.inf)
        return actions

    def _settle(self, item: Item, outcome: Any, now: float) -> list[Action]:
        request = item.request
        item.content = None
        if request not in self._held:
            return []
        request.outcomes[item.index] = outcome
        request._left -= 1
        return [] if request._left else [self._answer(request, Verdict.DONE, "", now)]

    def _answer(self, request: Request, verdict: Verdict, message: str, now: float) -> Answer:
        del self._held[request]
        request.verdict, request.message, request.finished = verdict, message, now
        for item in request._items:
            self._queued.discard(item)
            self._ready.discard(item)
            item.content = None
        request._items.clear()
        return Answer(request)
