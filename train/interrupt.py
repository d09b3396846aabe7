"""Being asked to stop: Ctrl-C and SIGTERM wait for the step in progress, so that the run can be saved.

Batch systems announce the end of a job with SIGTERM some seconds ahead. A training that is told so saves where it
is, in the middle of an epoch too, and leaves with exit code 75 (EX_TEMPFAIL of sysexits.h: try again), which a
job script can tell from success, bad input (2), an error (1) and Ctrl-C (130).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_TERMINATED = 75


class Terminated(SystemExit):
    """The run was saved and stopped because of SIGTERM."""

    def __init__(self) -> None:
        super().__init__(EXIT_TERMINATED)


class Interrupts:
    """Which signal has come, if any.

    Attributes:
        received: SIGINT or SIGTERM; 0 = none. The second SIGINT is not waited for: it raises at once.
    """

    def __init__(self) -> None:
        self.received = 0

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    @contextmanager
    def watched(self) -> Iterator["Interrupts"]:
        """Catch the signals; outside the main thread (a trial of a search) nothing is caught."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def leave(received: int) -> None:
    """Raise what ends the program for that signal: KeyboardInterrupt, or `Terminated`."""
    raise KeyboardInterrupt if received == signal.SIGINT else Terminated
