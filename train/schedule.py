"""How the learning rate goes over a run. Every value depends on the step alone, so a resumed run needs no state."""

import math

from train.config import ScheduleConfig

# One-cycle as in Smith and Topin 2018 (arXiv:1708.07120), with torch.optim.lr_scheduler.OneCycleLR's numbers.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25e4
_MOMENTUM_HIGH, _MOMENTUM_LOW = 0.95, 0.85
ADAM_MOMENTUM = 0.9


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps_per_epoch: int) -> float:
    """Share of the peak learning rate at a step (from 0).

    "cosine": a linear warm-up over `warmup` of all steps, then a cosine to zero (Loshchilov and Hutter 2017,
    arXiv:1608.03983). "one_cycle": a cosine from 1/25 up over `warmup` of all steps, then one down to 4e-6.
    """
    total = schedule.epochs * steps_per_epoch
    warm = int(schedule.warmup * total)
    if schedule.shape == "one_cycle":
        if step < warm:
            return _cosine(_ONE_CYCLE_START, 1.0, step / warm)
        return _cosine(1.0, _ONE_CYCLE_END, (step - warm) / max(total - warm - 1, 1))
    if step < warm:
        return (step + 1) / warm
    return _cosine(1.0, 0.0, (step - warm) / max(total - warm, 1))


def momentum(schedule: ScheduleConfig, step: int, steps_per_epoch: int) -> float:
    """AdamW's first beta at a step: 0.9, or for "one_cycle" down from 0.95 to 0.85 and up again."""
    if schedule.shape != "one_cycle":
        return ADAM_MOMENTUM
    total = schedule.epochs * steps_per_epoch
    warm = int(schedule.warmup * total)
    if step < warm:
        return _cosine(_MOMENTUM_HIGH, _MOMENTUM_LOW, step / warm)
    return _cosine(_MOMENTUM_LOW, _MOMENTUM_HIGH, (step - warm) / max(total - warm - 1, 1))


def _cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * position))
