"""Telling a training that has gone wrong from one that is only noisy."""

import math
from collections.abc import Callable, Sequence

from data.errors import InputError

START_STEPS = 10
SMOOTHING = 0.9
LIMIT = 10.0
_SHOWN = 8


class Diverged(InputError):
    """The loss is not finite, or far above where it began.

    Attributes:
        step: counted from 0 over the whole run.
        image_ids: of the whole batch of that step.
    """

    def __init__(self, message: str, step: int, image_ids: Sequence[str]) -> None:
        # All of it goes to the base class, so that the error can be pickled on its way out of a search's trial.
        super().__init__(message, step, image_ids)
        self.step, self.image_ids = step, tuple(image_ids)

    def __str__(self) -> str:
        return str(self.args[0])


class LossWatch:
    """Watches the loss of every step.

    A loss that is not finite stops the run at once. So does a loss whose moving average (0.9 a step) is ten
    times the mean of the first ten steps: no run that recovers goes there, and what it learned before is gone.
    """

    def __init__(self) -> None:
        self.first: list[float] = []
        self.average = 0.0

    def see(self, value: float, step: int, image_ids: Callable[[], Sequence[str]]) -> None:
        """Take in the loss of a step.

        Raises:
            Diverged: with the step, the images and a hint.
        """
        if not math.isfinite(value):
            raise _diverged(f"the loss is not finite ({value})", step, image_ids())
        if len(self.first) < START_STEPS:
            self.first.append(value)
            self.average = sum(self.first) / len(self.first)
            return
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * value
        start = sum(self.first) / len(self.first)
        if self.average > LIMIT * max(start, 1e-6):
            raise _diverged(
                f"the loss diverges: its moving average is {self.average:.3g}, and it began at {start:.3g}",
                step,
                image_ids(),
            )

    def state(self) -> list[float]:
        """What `restore` takes: the moving average, then the first losses."""
        return [self.average, *self.first]

    def restore(self, state: Sequence[float]) -> None:
        """Go on where `state` was taken."""
        self.average, self.first = state[0], list(state[1:])


def _diverged(what: str, step: int, image_ids: Sequence[str]) -> Diverged:
    shown = ", ".join(image_ids[:_SHOWN])
    more = f" and {len(image_ids) - _SHOWN} more" if len(image_ids) > _SHOWN else ""
    return Diverged(
        f"{what} at step {step}, in the batch of {shown}{more}; lower --optimizer.lr and "
        "--optimizer.backbone-lr, or use --precision float32, or look at these images",
        step,
        image_ids,
    )
