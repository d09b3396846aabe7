"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Counts `total` units of work. Use as a context manager and call `advance`.

    Args:
        description: what is being done, such as "decode".
        total: how many units there are.
        unit: the plural name of one unit, for the rate.
    """

    def __init__(self, description: str, total: int, unit: str = "images") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        # In a worker of Ray, stderr is a stand-in without `isatty`.
        if getattr(sys.stderr, "isatty", lambda: False)():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(description, total=total, rate="")

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self.done and time.monotonic() - self._start > _SECONDS_BETWEEN_LINES:
            self._line()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more units are done; `note` is shown behind the rate."""
        self.done += count
        rate = f"{self.done / max(time.monotonic() - self._start, 1e-9):.1f} {self.unit}/s {note}".rstrip()
        if self._bar:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._line(note)

    def _line(self, note: str = "") -> None:
        now = time.monotonic()
        self._last_line = now
        rate = self.done / max(now - self._start, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        text = f"{self.description}: {self.done}/{self.total}, {rate:.1f} {self.unit}/s, {left:.0f} s left"
        print(f"{text} {note}".rstrip(), file=sys.stderr, flush=True)
