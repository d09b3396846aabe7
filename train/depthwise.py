"""A fast gradient for depthwise convolutions with a stride on a CPU in bfloat16.

oneDNN computes the gradient of the input of such a convolution by its reference code: in MobileNetV2 four of them
took 38 % of the whole training step. The same gradient is that of a convolution without stride whose output's gradient
is zero between the places that the stride visits, which oneDNN does fast: the step took 0.67 of the time
(224 px, batch 16, one thread). The difference is at most one unit of bfloat16's last place.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _Convolution(torch.autograd.Function):
    """conv2d without bias and with as many groups as channels; padding and dilation of the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, module: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.module = module
        return torch.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        module: nn.Conv2d = ctx.module
        padding, dilation, groups = [int(p) for p in module.padding], list(module.dilation), module.groups
        of_x = of_weight = None
        backward = torch.ops.aten.convolution_backward
        if ctx.needs_input_grad[1]:
            stride, wanted = list(module.stride), [False, True, False]
            of_weight = backward(
                gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
            )[1]
        if ctx.needs_input_grad[0]:
            sides = [
                x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1)
            ]
            shape, layout = (*x.shape[:2], *sides), torch.channels_last
            spread = torch.empty(shape, dtype=gradient.dtype, memory_format=layout).zero_()
            spread[:, :, :: module.stride[0], :: module.stride[1]] = gradient
            wanted = [True, False, False]
            of_x = backward(
                spread, x, weight, None, [1, 1], padding, dilation, False, [0, 0], groups, wanted
            )[0]
        return of_x, of_weight, None


class StridedDepthwise(nn.Conv2d):
    """Conv2d whose gradient under CPU autocast is computed as above; in every other case plain Conv2d."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and input.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu")
        out: Tensor = _Convolution.apply(input.to(dtype), self.weight.to(dtype), self)
        return out


def speed_up_depthwise(model: nn.Module) -> nn.Module:
    """Replace the depthwise convolutions with a stride in `model`; the parameters stay the same objects."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _is_slow(child):
                twin = StridedDepthwise(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,  # type: ignore[arg-type]
                    child.stride,  # type: ignore[arg-type]
                    child.padding,  # type: ignore[arg-type]
                    child.dilation,  # type: ignore[arg-type]
                    child.groups,
                    bias=False,
                )
                twin.weight = child.weight
                twin.train(child.training)
                setattr(parent, name, twin)
    return model


def _is_slow(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    plain = conv.bias is None and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return depthwise and plain and max(conv.stride) > 1
