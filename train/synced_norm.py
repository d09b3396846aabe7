"""Batch norm over the batch of all processes together, on a CPU as well as on GPUs.

torch's SyncBatchNorm runs on GPUs only; where it cannot, this one does the same with any backend of
torch.distributed (gloo). Its parameters, buffers and names are those of `BatchNorm2d`, and in evaluation and
export it is one.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm

M = TypeVar("M", bound=nn.Module)


def synchronise_norms(model: M) -> M:
    """Make every batch norm of `model` normalise by the batch of all processes.

    On a GPU: the model with torch's SyncBatchNorm in their place. Elsewhere: the same model, whose
    `BatchNorm2d`s become `SyncedBatchNorm2d`s in place. With one process nothing changes in what is computed.
    """
    if any(parameter.is_cuda for parameter in model.parameters()):
        synced: M = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synced
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
    return model


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` with mean and variance of float[N, C, H, W] over the N of all processes.

    The shares may differ in N. Running variances are unbiased over the global count, as torch's are over the
    local one. In the backward pass the gradients of weight and bias are this process's part of the sum, as
    with every other parameter; averaging them is up to the caller (DistributedDataParallel).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (
            self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        ):
            return super().forward(x)
        self._check_input_dim(x)
        out, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, var * (count / (count - 1)))
        normalised: Tensor = out
        return normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        running: Any = self  # buffers, which a norm without running statistics lacks
        running.num_batches_tracked.add_(1)
        factor = 1 / float(running.num_batches_tracked) if self.momentum is None else self.momentum
        running.running_mean.lerp_(mean, factor)
        running.running_var.lerp_(var, factor)


class _Normalise(torch.autograd.Function):
    """Normalise by the statistics of all processes; returns (output, mean[C], biased variance[C], count)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var, count = _global_statistics(x)
        out = batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), count)
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3, with their sums over all processes."""
        x, weight, mean, rstd, count = ctx.saved_tensors
        grad32 = grad.float()
        centred = _along(rstd) * (x.float() - _along(mean))
        own = torch.stack([grad32.sum((0, 2, 3)), (grad32 * centred).sum((0, 2, 3))])
        total = _gather(own).sum(0) / count
        out = grad32 - _along(total[0]) - centred * _along(total[1])
        return (out * _along(weight * rstd)).to(x.dtype), own[1], own[0], None


def _along(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1)


def _gather(own: Tensor) -> Tensor:
    """[world, ...] in the order of the processes. Summed in that order, all of them get the same bits."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts)


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean[C], biased variance[C] and count over all processes, in float32.

    Each process sums squares around its own mean; the parts are joined as in Chan et al. 1979 ("Updating
    formulae and a pairwise algorithm for computing sample variances"), since a sum of squares around zero
    would lose the variance of a channel whose mean is large.
    """
    x32 = x.float()
    mean = x32.mean((0, 2, 3))
    squares = (x32 - _along(mean)).square_().sum((0, 2, 3))
    own = torch.cat([mean, squares, mean.new_tensor([x.numel() / len(mean)])])
    parts = _gather(own)
    means, squares, counts = parts[:, : len(mean)], parts[:, len(mean) : -1], parts[:, -1:]
    count = counts.sum()
    total = (means * counts).sum(0) / count
    var = (squares.sum(0) + ((means - total).square() * counts).sum(0)) / count
    return total, var, count
