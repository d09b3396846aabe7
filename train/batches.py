"""Training batches from the decoded cache: who sees which image, changed how, at which step.

The order of an epoch is a permutation seeded by (seed, epoch), the same in every process, and the random changes
of a step come from (seed, step); the global batch of a step is cut into equal shares. So the number of
processes does not change what a step sees, and any step can be found again after an interruption without
replaying the ones before it.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.errors import InputError
from train import augment
from train.config import AugmentConfig


@dataclass(frozen=True, slots=True)
class Rows:
    """Images with what is known of them and how they are changed.

    Attributes:
        pixels: uint8[n, S, S, 3].
        target, mask: float32[n, C].
        draws: the changes of these n images.
    """

    pixels: Tensor
    target: Tensor
    mask: Tensor
    draws: augment.Draws

    def to(self, device: torch.device) -> "Rows":
        """The same on another device; from pinned memory the copy does not wait."""
        if device.type == "cpu":
            return self
        pixels, target, mask = (
            part.to(device, non_blocking=True) for part in (self.pixels, self.target, self.mask)
        )
        return Rows(pixels, target, mask, self.draws)

    def pin(self) -> "Rows":
        """The same in memory that a GPU can copy from by itself."""
        return Rows(self.pixels.pin_memory(), self.target.pin_memory(), self.mask.pin_memory(), self.draws)


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a step.

    Attributes:
        step: within the epoch, from 0.
        first, last: its rows of the global batch.
        rows: its images.
        partners: the images that they are mixed with; None where nothing is mixed, or where the rows are the whole
            batch: then they are among them, at `rows.draws.partner`.
    """

    step: int
    first: int
    last: int
    rows: Rows
    partners: Rows | None


class Batches:
    """The training images in seeded order, read ahead by one thread.

    Args:
        pixels: uint8[*, S, S, 3], usually a memory map.
        index: int64[n], the rows of `pixels` that are trained on.
        target, mask: uint8[*, C] beside `pixels`.
        batch_size: images a step over all processes.
        seed: of the order and of the changes.
        change: how images are changed.
        rank, world: this process and how many there are.
        pin: for copies to a GPU.
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        index: npt.NDArray[np.int64],
        target: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8],
        batch_size: int,
        seed: int,
        change: AugmentConfig,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ) -> None:
        if batch_size % world:
            raise InputError(
                f"batch_size must be a multiple of the number of processes ({world}), got {batch_size}"
            )
        if len(index) < world:
            raise InputError(f"{len(index)} training images are fewer than the {world} processes")
        self.pixels, self.index, self.target, self.mask = pixels, index, target, mask
        self.seed, self.change, self.rank, self.world, self.pin = seed, change, rank, world, pin
        # A set smaller than one batch is one smaller batch; otherwise the remainder waits for the next
        # epoch's other order, since a batch of one or two would spoil the batch-norm statistics.
        self.batch_size = min(batch_size, len(index) // world * world)
        self.steps = len(index) // self.batch_size

    def images(self, epoch: int, step: int) -> npt.NDArray[np.int64]:
        """int64[batch_size]: the global batch of that step (from 0) of that epoch (from 1), as rows of `pixels`."""
        return self._batch(self._order(epoch), step)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.index)

    def _batch(self, order: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's share of every step of that epoch, from step `start` on."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=2)
        stopped = threading.Event()

        def put(item: Batch | BaseException | None) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read_ahead() -> None:
            try:
                for batch in self._read(epoch, start):
                    put(batch)
                    if stopped.is_set():
                        return
                put(None)
            except BaseException as error:  # handed to the thread that waits for the batch
                put(error)

        thread = threading.Thread(target=read_ahead, name="batches", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _read(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._order(epoch)
        share = self.batch_size // self.world
        first = self.rank * share
        for step in range(start, self.steps):
            images = self._batch(order, step)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + (epoch - 1) * self.steps + step)
            draws = augment.draw(self.change, self.batch_size, generator)
            own = torch.arange(first, first + share)
            yield Batch(
                step,
                first,
                first + share,
                self._rows(images, own, draws),
                None
                if draws.partner is None or self.world == 1
                else self._rows(images, draws.partner[own], draws),
            )

    def _rows(self, images: npt.NDArray[np.int64], chosen: Tensor, draws: augment.Draws) -> Rows:
        index = images[chosen.numpy()]
        rows = Rows(
            torch.from_numpy(self.pixels[index]),
            torch.from_numpy(self.target[index].astype(np.float32)),
            torch.from_numpy(self.mask[index].astype(np.float32)),
            draws.take(chosen),
        )
        return rows.pin() if self.pin else rows
