"""The whole batch on every process, and the memory of the batches before it.

Losses that compare images of a class need many of them: a batch of 32 holds one or two positives of a class whose
share is 5 %. Shapes: n rows of this process, G of all processes together, Q in the memory, C classes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [n, ...] of all processes in the order of their ranks, [G, ...]; n is the same on every process.

    The gradient of a row is the sum over all processes of what they ask of it. Where every process computes the same
    loss from the result, averaging the gradients of the weights over the processes then gives that loss's gradient.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    gathered: Tensor = _AllGather.apply(rows)
    return gathered


class _AllGather(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather is deprecated and warns at every call.
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.count
        return total[first : first + ctx.count]


class Memory(nn.Module):
    """The logits, targets and masks of the last Q images, without gradient.

    A buffer, so that it is saved and restored with the loss; its content depends on the global batches alone,
    not on the number of processes. Places not yet filled are masked.
    """

    rows: Tensor

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, 3, num_classes))

    def join(self, logit: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The global batch float[G, 3, C] (logit, target, mask; differentiable), and the memory float[Q, 3, C].

        While training, the batch is put into the memory after the memory was read.
        """
        batch = gather_rows(torch.stack([logit, target, mask], dim=1))
        before = self.rows.to(batch.dtype, copy=True)
        if self.training and torch.is_grad_enabled():
            both = torch.cat([self.rows, batch.detach().to(self.rows.dtype)])
            self.rows.copy_(both[len(both) - len(self.rows) :])
        return batch, before
