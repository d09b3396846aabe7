"""Which parameter learns how fast, and when."""

import math
from typing import Any

from train.config import OptimizerConfig, ScheduleConfig
from train.heads import Classifier


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps_per_epoch: int) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then a cosine to zero."""
    total = schedule.epochs * steps_per_epoch
    warm = int(schedule.warmup * total)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def parameter_groups(model: Classifier, config: OptimizerConfig) -> tuple[list[float], list[dict[str, Any]]]:
    """AdamW's groups: backbone and head, each with and without weight decay.

    Biases and norms (tensors of one dimension) are not decayed. The head's weight and bias are both in the
    head's groups. Returns the peak learning rate of each group, and the groups; the head's come last.
    """
    groups: list[dict[str, Any]] = []
    for module, lr in ((model.backbone, config.backbone_lr), (model.head, config.lr)):
        parameters = list(module.parameters())
        for decay, chosen in (
            (0.0, [p for p in parameters if p.ndim <= 1]),
            (config.weight_decay, [p for p in parameters if p.ndim > 1]),
        ):
            groups.append({"params": chosen, "lr": lr, "weight_decay": decay})
    groups = [group for group in groups if group["params"]]
    return [group["lr"] for group in groups], groups
