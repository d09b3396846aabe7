"""Training batches from the decoded cache: who sees which image at which step.

The order of an epoch is a permutation seeded by (seed, epoch), the same in every process; the global batch
of a step is cut into equal shares. So the number of processes does not change what a step sees, and any step
can be found again after an interruption without replaying the ones before it.
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


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a step.

    Attributes:
        first, last: its rows of the global batch.
        pixels: uint8[n, S, S, 3].
        target, mask: float32[n, C].
    """

    first: int
    last: int
    pixels: Tensor
    target: Tensor
    mask: Tensor


class Batches:
    """The training images in seeded order, read ahead by one thread.

    Args:
        pixels: uint8[*, S, S, 3], usually a memory map.
        index: int64[n], the rows of `pixels` that are trained on.
        target, mask: uint8[*, C] beside `pixels`.
        batch_size: images a step over all processes.
        seed: of the order.
        rank, world: this process and how many there are.
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        index: npt.NDArray[np.int64],
        target: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise InputError(
                f"batch_size must be a multiple of the number of processes ({world}), got {batch_size}"
            )
        if len(index) < world:
            raise InputError(f"{len(index)} training images are fewer than the {world} processes")
        self.pixels, self.index, self.target, self.mask = pixels, index, target, mask
        self.seed, self.rank, self.world = seed, rank, world
        # A set smaller than one batch is one smaller batch; otherwise the remainder waits for the next
        # epoch's other order, since a batch of one or two would spoil the batch-norm statistics.
        self.batch_size = min(batch_size, len(index) // world * world)
        self.steps = len(index) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of every step of that epoch."""
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
                for batch in self._read(epoch):
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

    def _read(self, epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.index)
        share = self.batch_size // self.world
        for step in range(self.steps):
            first = self.rank * share
            rows = order[step * self.batch_size + first : step * self.batch_size + first + share]
            yield Batch(
                first,
                first + share,
                torch.from_numpy(self.pixels[rows]),
                torch.from_numpy(self.target[rows].astype(np.float32)),
                torch.from_numpy(self.mask[rows].astype(np.float32)),
            )
