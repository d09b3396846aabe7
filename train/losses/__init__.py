"""Losses for C independent yes/no outputs, by name.

    loss = make_loss(LossConfig(name="tail"), positive_share).to(device)
    terms = loss(logit, target, mask)        # float[N, C] each; mask 0 = ignored
    reduce_terms(terms).backward()

A masked pair's gradient is exactly 0 in every loss, and all are finite in value and gradient at logits of +-50, in
float32 and under autocast. Which to take, and the derivation of our own: docs/losses.md.
"""

from train.losses.base import Loss, Terms, divisor, reduce_terms
from train.losses.gather import gather_rows
from train.losses.registry import LOSSES, LossSpec, make_loss

__all__ = ["LOSSES", "Loss", "LossSpec", "Terms", "divisor", "gather_rows", "make_loss", "reduce_terms"]
