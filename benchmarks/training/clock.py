"""Times training steps alike in every trainer: from the end of one optimiser step to the end of a later one.

It hangs on PyTorch's global hook after `Optimizer.step`, so nothing of a trainer has to be rewritten to be timed.
Needs torch alone, since the other trainers' environment has none of our packages.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Enough(KeyboardInterrupt):
    """Ends a trainer from within, as Ctrl-C would, once enough steps are timed."""


class StepClock:
    """Counts and times the steps of this process, then raises `Enough`.

    What lies between two epochs (evaluation, checkpoint, starting over the data) is left out.

    Args:
        warm: first steps that are not timed, at least 1.
        steps: how many are timed.
        per_epoch: steps of an epoch; 0: it has no end.
        started: `time.time()` at which the process was started.
    """

    def __init__(self, warm: int, steps: int, per_epoch: int, started: float) -> None:
        self.warm, self.steps, self.per_epoch, self.started = warm, steps, per_epoch, started
        self.count = self.timed = 0
        self.seconds = self.cpu_seconds = self.first_step = 0.0
        self._opened: tuple[float, float] | None = None
        register_optimizer_step_post_hook(self._after_step)

    def result(self, batch_size: int) -> dict[str, float]:
        """What was measured.

        images_per_second; cpu_ms (CPU time of this process and its workers an image, which another load on the
        machine changes little); first_step (seconds from the start of the process); gpu_bytes (peak, 0 on a CPU).
        """
        images = self.timed * batch_size
        return {
            "images_per_second": images / self.seconds,
            "cpu_ms": 1000 * self.cpu_seconds / images,
            "first_step": self.first_step,
            "gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        }

    def _after_step(self, *_: Any) -> None:
        self.count += 1
        if self.count == 1:
            self._now()
            self.first_step = time.time() - self.started
        last = self.per_epoch > 0 and self.count % self.per_epoch == 0
        if self._opened is not None:
            self.timed += 1
            if last or self.timed == self.steps:
                wall, cpu = self._now()
                self.seconds += wall - self._opened[0]
                self.cpu_seconds += cpu - self._opened[1]
                self._opened = None
        elif self.count >= self.warm and not last:
            self._opened = self._now()
        if self.timed == self.steps:
            raise Enough

    @staticmethod
    def _now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # only where a window opens or closes: it would slow the trainer down
        return time.perf_counter(), time.process_time() + workers_seconds()


def workers_seconds() -> float:
    """CPU seconds of the processes that this one has started and that still run."""
    seconds = 0.0
    for file in Path("/proc/self/task").glob("*/children"):
        for child in file.read_text().split():
            # After the name in brackets come the state and, as fields 14 and 15 of the line, user and system time.
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds
