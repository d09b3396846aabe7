import numpy as np
import pytest
import torch

from train.config import LossConfig
from train.losses import LOSSES, make_loss, masked_mean

SHARE = torch.tensor([0.5, 0.1, 0.01])


def loss_of(name: str, logit: torch.Tensor, target: torch.Tensor, **settings: float) -> torch.Tensor:
    return make_loss(LossConfig(name=name, **settings), SHARE)(logit, target)


def transcribed(name: str, x: float, y: float, c: int, config: LossConfig) -> float:
    """Each formula as its paper prints it, in float64."""
    p = 1 / (1 + np.exp(-x))
    if name == "bce":
        return float(-y * np.log(p) - (1 - y) * np.log(1 - p))
    if name == "pos_weighted":
        share = float(SHARE[c])
        weight = min((1 - share) / share, config.max_pos_weight)
        return float(-weight * y * np.log(p) - (1 - y) * np.log(1 - p))
    if name == "focal":
        return float(-y * (1 - p) ** config.gamma * np.log(p) - (1 - y) * p**config.gamma * np.log(1 - p))
    q = max(p - config.margin, 0)
    positive = -((1 - p) ** config.gamma_pos) * np.log(p)
    return float(y * positive + (1 - y) * -(q**config.gamma_neg) * np.log(1 - q))


@pytest.mark.parametrize("name", LOSSES)
def test_loss__equals_its_formula(name: str) -> None:
    config = LossConfig(name=name, gamma_pos=1.0)
    random = np.random.default_rng(0)
    x, y = random.normal(0, 3, (40, 3)), random.integers(0, 2, (40, 3)).astype(float)
    y[:5] = 0.3  # soft targets of mixed images
    got = make_loss(config, SHARE)(torch.tensor(x, dtype=torch.float32), torch.tensor(y)).numpy()
    wanted = [[transcribed(name, x[i, c], y[i, c], c, config) for c in range(3)] for i in range(40)]
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss__is_finite_with_its_gradient_at_50(name: str, dtype: torch.dtype) -> None:
    logit = torch.tensor([[50.0, -50.0, 0.0], [-50.0, 50.0, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    loss = loss_of(name, logit, target, gamma_pos=0.5, gamma_neg=0.5, gamma=0.5)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logit.grad is not None
    assert torch.isfinite(logit.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_masked_mean__masked_pairs_have_no_gradient_and_no_weight(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(6, 3, generator=generator, requires_grad=True)
    target = (torch.rand(6, 3, generator=generator) < 0.4).float()
    mask = torch.ones(6, 3)
    mask[1, 2] = mask[4, 0] = 0
    pairs = loss_of(name, logit, target)
    value = masked_mean(pairs, mask)
    value.backward()
    assert logit.grad is not None
    assert logit.grad[1, 2] == 0
    assert logit.grad[4, 0] == 0
    assert (logit.grad[mask > 0] != 0).any()
    torch.testing.assert_close(value, pairs[mask > 0].mean())


def test_masked_mean__nothing_valid_is_zero() -> None:
    assert float(masked_mean(torch.ones(2, 3), torch.zeros(2, 3))) == 0.0


def test_focal__gamma_0_is_bce() -> None:
    logit, target = torch.linspace(-5, 5, 12).view(4, 3), torch.eye(4)[:, :3]
    torch.testing.assert_close(loss_of("focal", logit, target, gamma=0.0), loss_of("bce", logit, target))


def test_asl__easy_negatives_give_no_gradient() -> None:
    logit = torch.tensor([[-4.0, -4.0, 1.0]], requires_grad=True)  # p = 0.018, below the margin of 0.05
    loss_of("asl", logit, torch.zeros(1, 3)).sum().backward()
    assert logit.grad is not None
    assert logit.grad[0, 0] == 0
    assert logit.grad[0, 2] > 0
