"""How much memory the process holds, for the guard `--limits.memory`. Linux alone."""

import contextlib
import ctypes
import logging
import os
from pathlib import Path

from data.errors import InputError
from serve.admission import Admission

_log = logging.getLogger(__name__)

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """What of this process lies in memory: pixels that are being decoded, messages that are being received, models."""
    return int(_STATM.read_bytes().split()[1]) * _PAGE


def give_back_unused() -> None:
    """Hand the free memory that the allocator keeps back to the machine; otherwise a peak would count for ever."""
    with contextlib.suppress(AttributeError, OSError):  # another libc than glibc
        ctypes.CDLL(None).malloc_trim(0)


class MemoryGuard:
    """Tells `admission` what the process holds, where there is a limit. Raises nothing but in `check`."""

    def __init__(self, limit: int, admission: Admission) -> None:
        self._limit, self._admission = limit, admission

    def check(self) -> None:
        """Raise `InputError` where the process holds more than the limit before the first request."""
        held = resident_bytes() if self._limit else 0
        if held > self._limit:
            raise InputError(
                f"--limits.memory must be above the {held} bytes that the server holds with its models loaded, got "
                f"{self._limit}"
            )

    def refresh(self) -> None:
        """Look again, and say where it has come above the limit or below it."""
        if not self._limit:
            return
        before = self._admission.resident
        try:
            held = resident_bytes()
            if held > self._limit:
                give_back_unused()
                held = resident_bytes()
        except OSError:  # no file descriptor is left: whoever looks after the server must go on
            return
        self._admission.resident = held
        if (held > self._limit) != (before > self._limit):
            what = "refuses" if held > self._limit else "takes"
            _log.warning(
                "%d bytes of memory, the limit is %d: the server %s requests", held, self._limit, what
            )
