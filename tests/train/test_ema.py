import torch
from torch import nn

from train.ema import ExponentialMovingAverage


def test_update__warms_up_then_decays() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = ExponentialMovingAverage(model, 0.9)
    nn.init.constant_(model.weight, 1.0)
    average.update(model, 1)  # decay (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.model.weight, torch.full((1, 1), 1 - 2 / 11))
    before = average.model.weight.clone()
    average.update(model, 10_000)
    torch.testing.assert_close(average.model.weight, before * 0.9 + 0.1)


def test_update__copies_batch_norm_statistics() -> None:
    model = nn.BatchNorm1d(2).train()
    average = ExponentialMovingAverage(model, 0.99)
    model(torch.randn(8, 2) + 5)
    average.update(model, 1)
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert not average.model.training
