import pytest
import torch

from train.config import ScheduleConfig
from train.schedule import learning_rate_factor, momentum


def test_learning_rate_factor__cosine_warms_up_and_ends_near_zero() -> None:
    schedule = ScheduleConfig(epochs=10, warmup=0.1)
    values = [learning_rate_factor(schedule, step, 10) for step in range(100)]
    assert values[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(values) == values[9] == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert 0 < values[-1] < 1e-3
    assert {momentum(schedule, step, 10) for step in range(100)} == {0.9}


def test_one_cycle__is_that_of_torch() -> None:
    schedule = ScheduleConfig(epochs=8, shape="one_cycle", warmup=0.3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    # torch counts its warm-up to pct_start * total - 1.
    torch_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=80, pct_start=25 / 80)
    for step in range(80):
        group = optimizer.param_groups[0]
        assert learning_rate_factor(schedule, step, 10) == pytest.approx(group["lr"], abs=1e-6)
        assert momentum(schedule, step, 10) == pytest.approx(group["betas"][0], abs=1e-6)
        optimizer.step()
        torch_cycle.step()
