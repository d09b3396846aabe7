"""The inference worker: one thread for a device, watched from outside.

Batches of all models on the device run here one after the other, so that their threads do not fight for its
cores. A job that raises what is not an `Exception`, or does not come back for too long, is the worker's death:
the thread is given up (Python cannot end it), another one takes its place, and every model is told.
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
class _Life:
    """One thread: its own jobs and marks, so that one that was given up and comes back touches no other's."""

    jobs: "SimpleQueue[Job | None]" = field(default_factory=SimpleQueue)
    begun: int = 0
    busy: bool = False


class InferenceWorker:
    """Carries out jobs in order in one thread.

    Args:
        stall_s: seconds without progress on one job after which the worker counts as hung.

    Attributes:
        deaths: how many threads were given up.
    """

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self.deaths = 0
        self._notices: list[DeathNotice] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stalled_ticks = 0
        self._life = self._start()
        self._seen = (self._life, -1)

    def subscribe(self, notice: DeathNotice) -> None:
        """Call `notice` with the reason, in whatever thread saw it, after each death."""
        self._notices.append(notice)

    def unsubscribe(self, notice: DeathNotice) -> None:
        """Undo `subscribe`; nothing where that was done already, as when a server is stopped twice."""
        if notice in self._notices:
            self._notices.remove(notice)

    def submit(self, job: Job) -> None:
        """Carry out `job` after those before it; dropped if the worker dies first."""
        self._life.jobs.put(job)

    def close(self, wait_s: float) -> bool:
        """End the thread once what was submitted is done; whether all threads had ended within `wait_s` seconds."""
        self._life.jobs.put(None)
        end = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def check(self, tick_s: float) -> None:
        """To be called every `tick_s` seconds: declares the worker dead when it stalls.

        It counts calls and not time: a process that was stopped and goes on (SIGSTOP, a sleeping laptop, a
        clock that jumps) sees one tick, not an hour.
        """
        life = self._life
        progress = (life, life.begun)
        stalled = life.busy and progress == self._seen
        self._seen = progress
        self._stalled_ticks = self._stalled_ticks + 1 if stalled else 0
        if self._stalled_ticks * tick_s >= self.stall_s:
            self._stalled_ticks = 0
            self._die(life, f"the inference worker made no progress for {self.stall_s:g} s (--stall-s)")

    def _start(self) -> _Life:
        life = _Life()
        thread = threading.Thread(target=self._work, args=(life,), name="inference", daemon=True)
        self._threads = [*(old for old in self._threads if old.is_alive()), thread]
        thread.start()
        return life

    def _work(self, life: _Life) -> None:
        while job := life.jobs.get():
            life.begun += 1
            life.busy = True
            try:
                job()
            except BaseException as error:
                self._die(life, f"the inference worker died of {type(error).__name__}: {error}")
                return
            life.busy = False
            if life is not self._life:
                return  # given up meanwhile

    def _die(self, life: _Life, reason: str) -> None:
        with self._lock:
            if life is not self._life:
                return
            self.deaths += 1
            self._life = self._start()
        _log.error("%s; another one takes its place", reason)
        for notice in list(self._notices):
            notice(reason)
