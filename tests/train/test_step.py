import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train.batches import Batches
from train.config import AugmentConfig, LossConfig, OptimizerConfig, TrainConfig
from train.examples import Examples, open_examples
from train.step import Stepper


def stepped(
    config: TrainConfig, steps: int = 2, examples: Examples | None = None
) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of some steps and the weights after them, with batch norms that do not see the batch."""
    examples = examples or open_examples(config.data)
    labels = examples.labels
    batches = Batches(
        examples.cache.pixels, examples.train, labels.target, labels.mask, 32, config.seed, config.augment
    )
    share = torch.from_numpy(examples.positive_share()).float()
    stepper = Stepper(config, 20, share, Accelerator(cpu=True), batches.steps, 32)
    stepper.frozen_norms = [m for m in stepper.model.modules() if isinstance(m, nn.BatchNorm2d)]
    stepper.train_mode()
    losses = []
    for batch in batches.epoch(1):
        if batch.step == steps:
            break
        losses.append(float(stepper.step(batch, batch.step).loss))
    return losses, {name: p.detach().clone() for name, p in stepper.model.named_parameters()}


@pytest.mark.parametrize("name", ["bce", "asl", "zlpr"])
@pytest.mark.parametrize("parts", [2, 5])
def test_step__accumulated_parts_are_the_whole_batch(smoke: TrainConfig, name: str, parts: int) -> None:
    # A plain step shows a wrong gradient; AdamW's hardly depends on its length.
    config = dataclasses.replace(
        smoke, loss=LossConfig(name=name), optimizer=OptimizerConfig(lr=1e-3, backbone_lr=1e-3, clip=0.01)
    )
    whole, weights = stepped(config)
    cut, others = stepped(dataclasses.replace(config, accumulate=parts))
    assert cut == pytest.approx(whole, rel=1e-5)
    for key, value in weights.items():
        assert torch.allclose(value, others[key], atol=1e-5), key


def test_step__masked_pairs_change_nothing_through_mixing(smoke: TrainConfig) -> None:
    """Other targets under the mask give the same weights, bit for bit, MixUp and all."""
    config = dataclasses.replace(smoke, augment=AugmentConfig(flip=0.0, mixup=0.8, mix_probability=1.0))
    examples = open_examples(config.data)
    labels = examples.labels
    assert (labels.mask == 0).sum() > 50
    other = dataclasses.replace(labels, target=labels.target | (labels.mask == 0).astype(np.uint8))
    _, first = stepped(config)
    _, second = stepped(config, examples=dataclasses.replace(examples, labels=other))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
