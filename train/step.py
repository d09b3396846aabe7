"""One step of training: the network, what it learns with, and what a batch does to it."""

import itertools
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from train import augment
from train.batches import Batch, Rows
from train.config import TrainConfig
from train.depthwise import speed_up_depthwise
from train.ema import ExponentialMovingAverage
from train.freezing import freeze
from train.heads import make_model
from train.losses import divisor, make_loss
from train.noise import noise_of
from train.optimization import parameter_groups
from train.schedule import ADAM_MOMENTUM, learning_rate_factor, momentum
from train.synced_norm import synchronise_norms

ADAM_BETA2 = 0.999


class Stepped(NamedTuple):
    """What a step gave, over all processes: the loss float[] and the weight float[] behind it (valid pairs)."""

    loss: Tensor
    weight: Tensor


class Stepper:
    """Everything that a step changes, and the step itself.

    Args:
        config: of the run.
        classes: C.
        positive_share: float32[C], for losses that balance classes.
        accelerator: of this process.
        steps_per_epoch: for the schedule.
        batch_size: of the global batch, for the noise.
    """

    def __init__(
        self,
        config: TrainConfig,
        classes: int,
        positive_share: Tensor,
        accelerator: Accelerator,
        steps_per_epoch: int,
        batch_size: int,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.size = config.data.train_size or config.data.size
        torch.manual_seed(config.seed)
        model = make_model(config.model, classes, config.data.size)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        model.to(accelerator.device)
        self.ema = ExponentialMovingAverage(model, config.ema)
        if accelerator.device.type == "cpu":
            speed_up_depthwise(model)
        if accelerator.num_processes > 1 and config.sync_norms:
            model = synchronise_norms(model)
        self.frozen_norms = freeze(model.backbone, config.model.frozen_blocks)
        self.noise = noise_of(model)
        self.loss = make_loss(config.loss, positive_share).to(accelerator.device)
        self.peak_lr, groups = parameter_groups(model, config.optimizer)
        optimizer = torch.optim.AdamW(
            groups, lr=config.optimizer.lr, betas=(ADAM_MOMENTUM, ADAM_BETA2), fused=True
        )
        if config.compile:
            model.compile()
        self.bare = model  # what `self.model` wraps where there are several processes
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def lr(self) -> float:
        """The head's learning rate at the last step."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def train_mode(self) -> None:
        """Make the model ready for steps."""
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()

    def step(self, batch: Batch, step: int) -> Stepped:
        """Learn from one batch; `step` is counted from 0 over the whole run."""
        config, accelerator = self.config, self.accelerator
        self._set_rates(step)
        pixels, target, mask = self._examples(batch)
        self.optimizer.zero_grad()
        if config.accumulate == 1:
            self.noise.start(config.seed, step, batch.first, batch.last, self.batch_size)
            with accelerator.autocast():
                logit = self.model(pixels)
            terms = self.loss(logit, target, mask)
            total = (terms.value * terms.weight).sum()
            loss, weight = self._reduced(total.detach(), terms.weight.detach().sum())
            accelerator.backward(total / divisor(weight))
        else:
            loss, weight = self._accumulated(batch, step, pixels, target, mask)
        if config.optimizer.clip:
            accelerator.clip_grad_norm_(self.model.parameters(), config.optimizer.clip)
        self.optimizer.step()
        self.ema.update(self.bare, step + 1)
        return Stepped(loss, weight)

    def _set_rates(self, step: int) -> None:
        schedule, steps = self.config.schedule, self.steps_per_epoch
        factor = learning_rate_factor(schedule, step, steps)
        beta1 = momentum(schedule, step, steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lr, strict=True):
            group["lr"], group["betas"] = peak * factor, (beta1, ADAM_BETA2)

    def _examples(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The changed and mixed images of a batch, their targets and masks, on the device."""
        device, rows = self.accelerator.device, batch.rows.to(self.accelerator.device)
        pixels = augment.apply(rows.pixels, rows.draws, self.size)
        partner = rows.draws.partner
        if partner is None:
            return pixels, rows.target, rows.mask
        if batch.partners is None:
            at = partner.to(device)
            others = (pixels[at], rows.target[at], rows.mask[at])
        else:
            far: Rows = batch.partners.to(device)
            others = (augment.apply(far.pixels, far.draws, self.size), far.target, far.mask)
        return augment.mix(pixels, rows.target, rows.mask, *others, rows.draws)

    def _reduced(self, total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The loss over all processes, and the mean over them of the weight, by which each divides its part.

        Averaging the gradients of the processes then gives that of the whole batch.
        """
        both = self.accelerator.reduce(torch.stack([total, weight]).float(), reduction="mean")
        return both[0] / divisor(both[1]), both[1]

    def _accumulated(
        self, batch: Batch, step: int, pixels: Tensor, target: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward of the batch in `accumulate` parts.

        The weight of the whole batch is known only after its last part, so the parts' gradients are summed
        over a provisional weight, all valid pairs, and set right at the end.
        """
        accelerator, parts = self.accelerator, self.config.accumulate
        provisional = mask.numel()
        sums = torch.zeros(2, device=pixels.device)
        bounds = torch.linspace(0, len(pixels), parts + 1).round().long().tolist()
        chunks = [(a, b) for a, b in itertools.pairwise(bounds) if b > a]
        for number, (a, b) in enumerate(chunks):
            first = batch.first + a
            self.noise.start(self.config.seed, step, first, batch.first + b, self.batch_size)
            last = number == len(chunks) - 1
            with accelerator.no_sync(self.model) if not last else accelerator.autocast():
                with accelerator.autocast():
                    logit = self.model(pixels[a:b])
                terms = self.loss(logit, target[a:b], mask[a:b])
                total = (terms.value * terms.weight).sum()
                sums += torch.stack([total.detach(), terms.weight.detach().sum()]).float()
                accelerator.backward(total / provisional)
        loss, weight = self._reduced(sums[0], sums[1])
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, float(provisional / divisor(weight)))
        return loss, weight

    def state(self) -> dict[str, Any]:
        """What `restore` takes: weights, their average, optimiser, the loss's memory, and the fp16 scale."""
        scaler = self.accelerator.scaler
        return {
            "model": self.bare.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.bare.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
