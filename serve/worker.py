"""The inference worker: the threads that run batches on a device, watched from outside.

One thread for a GPU. On a CPU one for each core, each with a batch of its own: a batch cut over the cores makes
them wait for each other at every operator (15.0 CPU ms an image in place of 11 for mobilenet_v2 on 2 cores). There
they decode too, and a thread goes on by itself with what its last job led to: no other one has to be woken, and
the pixels are still in the core's cache.
A job that raises what is not an `Exception`, or does not come back for too long, is the worker's death: its
threads are given up (Python cannot end them), others take their place, and every model is told.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

_log = logging.getLogger(__name__)

Job = Callable[[], None]
DeathNotice = Callable[[str], None]


@dataclass(eq=False, slots=True)
class _Mark:
    """What one thread does: `begun` jobs, the last of which goes on while `busy`.

    `seen` is what `begun` was at the last look, and `still` for how many looks it has not moved. `patience_s`: what
    that job may take, where it said so.
    """

    begun: int = 0
    busy: bool = False
    patience_s: float = 0.0
    seen: int = -1
    still: int = 0


@dataclass(eq=False, slots=True)
class _Life:
    """Threads with their own jobs and marks, so that those that were given up and come back touch no others'."""

    jobs: "SimpleQueue[Job | None]" = field(default_factory=SimpleQueue)
    marks: list[_Mark] = field(default_factory=list)


class _Here(threading.local):
    """What a thread of the worker knows of itself; of any other thread it says nothing."""

    life: _Life | None = None
    mark: _Mark | None = None
    next: Job | None = None


class InferenceWorker:
    """Begins jobs in order, as many at once as it has threads.

    A job may submit others, as its last act: the first of them is then carried out by the same thread, unless older
    ones wait.

    Args:
        stall_s: seconds without progress on one job after which the worker counts as hung.

    Attributes:
        threads: how many; 1 until `grow`.
        deaths: how often they were given up.
    """

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self.threads = 1
        self.deaths = 0
        self._notices: list[DeathNotice] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._here = _Here()
        self._life = self._start()

    def grow(self, threads: int) -> None:
        """Have at least this many threads."""
        with self._lock:
            self.threads = max(self.threads, threads)
            self._fill(self._life)

    def subscribe(self, notice: DeathNotice) -> None:
        """Call `notice` with the reason, in whatever thread saw it, after each death."""
        self._notices.append(notice)

    def unsubscribe(self, notice: DeathNotice) -> None:
        """Undo `subscribe`; nothing where that was done already, as when a server is stopped twice."""
        if notice in self._notices:
            self._notices.remove(notice)

    def submit(self, job: Job) -> None:
        """Carry out `job` after those before it; dropped if the worker dies first."""
        life, here = self._life, self._here
        if here.life is life and here.next is None and life.jobs.empty():
            here.next = job
        else:
            life.jobs.put(job)

    def allow(self, seconds: float) -> None:
        """Called by a job: it may take this long, where that is more than `stall_s`."""
        if self._here.mark:
            self._here.mark.patience_s = seconds

    def close(self, wait_s: float) -> bool:
        """End the threads once what was submitted is done; whether all had ended within `wait_s` seconds."""
        self._end(self._life)
        end = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def check(self, tick_s: float) -> None:
        """To be called every `tick_s` seconds: declares the worker dead when one of its threads stalls.

        It counts calls and not time: a process that was stopped and goes on (SIGSTOP, a sleeping laptop, a
        clock that jumps) sees one tick, not an hour.
        """
        life = self._life
        for mark in life.marks:
            stalled = mark.busy and mark.begun == mark.seen
            mark.seen = mark.begun
            mark.still = mark.still + 1 if stalled else 0
            limit = max(self.stall_s, mark.patience_s)
            if mark.still * tick_s >= limit:
                told = " (--stall-s)" if limit == self.stall_s else ""
                self._die(life, f"the inference worker made no progress for {limit:g} s{told}")
                return

    def _start(self) -> _Life:
        life = _Life()
        self._threads = [old for old in self._threads if old.is_alive()]
        self._fill(life)
        return life

    def _fill(self, life: _Life) -> None:
        while len(life.marks) < self.threads:
            mark = _Mark()
            life.marks.append(mark)
            thread = threading.Thread(target=self._work, args=(life, mark), name="inference", daemon=True)
            self._threads.append(thread)
            thread.start()

    @staticmethod
    def _end(life: _Life) -> None:
        for _ in life.marks:
            life.jobs.put(None)

    def _work(self, life: _Life, mark: _Mark) -> None:
        here = self._here
        here.life, here.mark = life, mark
        while job := here.next or life.jobs.get():
            here.next = None
            mark.begun += 1
            mark.busy = True
            try:
                job()
            except BaseException as error:
                self._die(life, f"the inference worker died of {type(error).__name__}: {error}")
                return
            mark.busy = False
            mark.patience_s = 0.0
            del job  # of a model that may be replaced before the next one comes
            if life is not self._life:
                return  # given up meanwhile

    def _die(self, life: _Life, reason: str) -> None:
        with self._lock:
            if life is not self._life:
                return
            self.deaths += 1
            self._life = self._start()
        self._end(life)  # of its threads, those that wait for a job
        _log.error("%s; another one takes its place", reason)
        for notice in list(self._notices):
            notice(reason)
