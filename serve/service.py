"""The scoring service as both servicers (tailacc.v1 and the Open Inference Protocol) call it, free of gRPC.

`Models` -> `ServedModel.score(images) -> outcomes`. Everything here is for the event loop's thread.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data.model_file import ModelInfo
from serve.call import CURRENT
from serve.counters import Ledger, ModelStatistics
from serve.device import Device
from serve.faults import ModelNotFound
from serve.outcome import Failure, Outcome, Row, Trouble

if TYPE_CHECKING:
    from serve.engine import Engine
    from serve.follow import Following
    from serve.model import ModelRef

__all__ = ["Failure", "ModelStatistics", "Models", "Outcome", "Row", "ServedModel", "Trouble"]


class ServedModel:
    """One loaded model with its batcher.

    Attributes:
        name: on the wire: the registered name, or the one given with `--model NAME=...`, else "tailacc".
        version: of the registry, or "1".
        engine: runs it.
        files: what the engine opens it from again after a death of the worker.
    """

    def __init__(self, name: str, version: str, engine: "Engine", files: ExitStack | None = None) -> None:
        self.name, self.version = name, version
        self.engine, self.files = engine, files or ExitStack()

    @property
    def info(self) -> ModelInfo:
        """The metadata of the file."""
        return self.engine.model.info

    @property
    def ref(self) -> "ModelRef":
        """Name, version and SHA-256 of the file as they stand in answers and score files."""
        return self.engine.model.ref

    @property
    def device(self) -> Device:
        """Where inference runs."""
        return self.engine.model.device

    @property
    def ready(self) -> bool:
        """Whether it takes requests: checked, warm, its worker alive, and not draining."""
        return self.engine.ready

    @property
    def max_batch(self) -> int:
        """The most images in one execution. A request may hold more; it is then cut over several."""
        return self.buckets[-1]

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that are executed, ascending."""
        return self.engine.model.buckets

    @property
    def runners(self) -> int:
        """How many batches are executed at once."""
        return self.engine.model.runners

    @property
    def max_delay(self) -> float:
        """Seconds that an image waits, while the model is idle, for others that are being decoded."""
        return self.engine.batcher.max_delay

    @property
    def statistics(self) -> ModelStatistics:
        """What it has done so far."""
        return self.engine.statistics

    async def score(
        self,
        images: Sequence[bytes | npt.NDArray[np.uint8]],
        deadline: float | None = None,
        priority: int = 0,
    ) -> list[Outcome]:
        """One outcome for each image, in order. Cancelling it drops all work that has not begun.

        Args:
            images: each an encoded JPEG or PNG, or pixels uint8[S, S, 3] as `data.image.load` gives them.
            deadline: `time.monotonic()` at which the answer is worth nothing any more; None: never.
            priority: 1 is served first, then 2 and so on; 0, the default, after all others.

        Raises:
            InputError: an array of another shape or dtype, or a negative priority.
            ServerFull: the images before it take longer than the deadline leaves.
            TimeoutError: the deadline passed.
            ModelDown: the inference worker died; try again.
            NotAccepting: the model is draining.
        """
        if call := CURRENT.get():
            call.model, call.version = self.name, self.version
        return await self.engine.score(images, deadline, priority)

    async def close(self) -> None:
        """Take nothing new, answer what is held, then give back the files."""
        await self.engine.drain()
        self.files.close()


class Models:
    """The models of the server, by name. The first one is what a request without a name means.

    Attributes:
        ledger: the statistics of all that were ever served here.
        following: the aliases that are followed.
    """

    def __init__(self, models: Iterable[ServedModel] = ()) -> None:
        self._models: dict[str, ServedModel] = {}
        self.ledger = Ledger()
        self.following: tuple[Following, ...] = ()
        for model in models:
            self.add(model)

    @property
    def ready(self) -> bool:
        """Whether there are models and each is ready."""
        return bool(self._models) and all(model.ready for model in self._models.values())

    def all(self) -> list[ServedModel]:
        """In the order of the command line."""
        return list(self._models.values())

    def add(self, model: ServedModel) -> None:
        """Serve one more, in place of one of the same name."""
        self._models[model.name] = model
        self.ledger.add(model.name, model.version, model.statistics)

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model; "" as name means the first one, "" as version whichever is served.

        Raises:
            ModelNotFound: there is none; the message lists what there is.
        """
        model = self._models.get(name) if name else next(iter(self._models.values()), None)
        if model is None or version not in ("", model.version):
            choices = [f"{model.name} (version {model.version})" for model in self._models.values()]
            raise ModelNotFound(name, version, choices or ["none yet"])
        return model
