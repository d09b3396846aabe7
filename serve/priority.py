"""Which threads go first where there are more of them than cores."""

import contextlib
import os
import sys
import threading


def stand_behind(nice: int) -> None:
    """Make the calling thread `nice` steps nicer than the process's main thread. On Linux; elsewhere nothing happens.

    Under overload the event loop, which only receives and refuses, would otherwise share the cores evenly with
    threads that always have work, and refusals would wait for their turns.
    """
    if sys.platform == "linux":
        # Counted from the main thread: a thread inherits what the one that started it has. Beyond 19 is 19.
        with contextlib.suppress(OSError):
            os.setpriority(
                os.PRIO_PROCESS,
                threading.get_native_id(),
                os.getpriority(os.PRIO_PROCESS, os.getpid()) + nice,
            )
