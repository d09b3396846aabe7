"""Opening models beside the event loop: fetch, check and warm in a daemon thread.

A thread of its own rather than a pool's: a registry that does not answer can take minutes, and neither SIGTERM nor
the end of the process may wait for it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from serve.config import ServerConfig, cores
from serve.decode import DecodePool
from serve.engine import Engine
from serve.model import OnnxModel
from serve.registry import open_source
from serve.service import ServedModel
from serve.worker import InferenceWorker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is checked and warm.

    Attributes:
        name: on the wire.
        files: what it was opened from, and is opened again from after a death of the worker; close it after the model.
    """

    name: str
    model: OnnxModel
    files: contextlib.ExitStack

    def served(self, pool: DecodePool, worker: InferenceWorker, config: ServerConfig) -> ServedModel:
        """With an engine of its own, to be added to the models of the server. For the event loop's thread."""
        model, version = self.model, self.model.ref.version
        engine = Engine(model, pool, worker, config.max_delay_ms / 1000, config.limits.image_bytes)
        return ServedModel(self.name, version if version.isdecimal() else "1", engine, self.files)


class Loader:
    """Runs functions in daemon threads. For one event loop's thread."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises. Cancelling this leaves the thread to itself; its result is dropped."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        thread = threading.Thread(target=_work, args=(function, loop, done), name="load", daemon=True)
        self._threads.add(thread)
        thread.start()
        try:
            return await done
        finally:
            # An exception, its traceback, this frame and the future would hold each other, and with them a model that
            # was refused, until the garbage collector comes by.
            del done

    async def ended(self, wait_s: float) -> bool:
        """Whether no thread is left, after at most `wait_s` seconds."""
        end = asyncio.get_running_loop().time() + wait_s
        while any(thread.is_alive() for thread in self._threads):
            if asyncio.get_running_loop().time() >= end:
                return False
            await asyncio.sleep(0.01)
        return True


def _work(function: Callable[[], T], loop: asyncio.AbstractEventLoop, done: "asyncio.Future[T]") -> None:
    with contextlib.suppress(RuntimeError):  # of the loop, where it is closed: nobody waits any more
        try:
            result = function()
        except Exception as error:
            loop.call_soon_threadsafe(_settle, done, partial(done.set_exception, error))
        else:
            loop.call_soon_threadsafe(_settle, done, partial(done.set_result, result))


def _settle(done: "asyncio.Future[T]", act: Callable[[], None]) -> None:
    if not done.done():  # else it was cancelled meanwhile
        act()


def load_model(name: str, source: str, config: ServerConfig, folder: str | None) -> LoadedModel:
    """Open, check and warm the model of `source`; what has to be fetched lies in a folder in `folder`.

    Raises:
        RegistryError: MLflow is away, or does not have it.
        InputError: as `open_source`, `OnnxModel` and `OnnxModel.warm`.
    """
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_source(source, folder))
        model = OnnxModel(opened, config.device, config.threads or cores(), config.max_batch)
        model.warm()
        return LoadedModel(name, model, stack.pop_all())
