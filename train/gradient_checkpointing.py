"""Gradient checkpointing: keep a block's input alone and compute its inside again in the backward pass.

Chen et al. 2016, arXiv:1604.06174: memory for about a third more computation. The gradients are the same to
the bit: our noise is a function of step and row (`train.noise`), and the second pass leaves batch norm's
running statistics alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run(layer: nn.Module, x: Tensor, again: Iterable[nn.Module] = ()) -> Tensor:
    """`layer(x)`, with the blocks of `again`, wherever in nested `Sequential`s, computed again for gradients."""
    chosen = {id(block) for block in again}
    if not chosen or not torch.is_grad_enabled():
        out: Tensor = layer(x)
        return out
    return _run(layer, x, chosen)


def _run(layer: nn.Module, x: Tensor, chosen: set[int]) -> Tensor:
    if id(layer) in chosen:
        # torch.compile takes no contexts of this kind and needs none: its graph updates each statistic once.
        contexts: dict[str, Any] = (
            {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, layer)}
        )
        # The random state is not saved: nothing in a block draws from it.
        out: Tensor = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False, **contexts)
        return out
    if type(layer) is nn.Sequential:
        for part in layer:
            x = _run(part, x, chosen)
        return x
    out = layer(x)
    return out


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch as before, but their running statistics and counts stay.

    By a momentum of 0, not by `track_running_stats`: torch keeps the running statistics for the backward pass
    too, and would find fewer tensors the second time.
    """
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
