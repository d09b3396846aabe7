import copy

import pytest
import torch
from torch import Tensor, nn

from train.backbones import make_backbone
from train.depthwise import StridedDepthwise, speed_up_depthwise


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    weight_of_each = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    (out.float() * weight_of_each).sum().backward()  # type: ignore[no-untyped-call]
    parameter = next(module.parameters())
    assert x.grad is not None
    assert parameter.grad is not None
    return out.detach(), x.grad, parameter.grad


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 2, 1, 1), (5, 2, 2, 1), (3, 3, 0, 2)]
)
def test_strided_depthwise__has_the_gradients_of_conv2d(
    side: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, stride, padding, dilation, groups=6, bias=False)
    fast = speed_up_depthwise(nn.Sequential(copy.deepcopy(plain)))
    assert isinstance(fast[0], StridedDepthwise)  # type: ignore[index]
    x = torch.randn(2, 6, side, side)
    for one, two in zip(gradients(plain, x), gradients(fast, x), strict=True):
        assert torch.allclose(one.float(), two.float(), rtol=1e-2, atol=1e-3)
        assert one.abs().max() > 0.1


def test_speed_up_depthwise__keeps_parameters_and_what_the_network_says() -> None:
    torch.manual_seed(0)
    plain = make_backbone("mobilenet_v2", "none", 64)
    fast = speed_up_depthwise(copy.deepcopy(plain))
    assert sum(isinstance(module, StridedDepthwise) for module in fast.modules()) == 4
    assert list(plain.state_dict()) == list(fast.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(plain.eval()(x).pooled, fast.eval()(x).pooled)
    # Float32 in training is not touched.
    assert torch.equal(plain.train()(x).pooled, fast.train()(x).pooled)
