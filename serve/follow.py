"""The server follows an alias of the model registry: another version takes over without a pause.

    python serve/server.py --model models:/tailacc@champion --follow-s 30

The new version is fetched, checked and warmed beside the one that serves, in a thread of its own. Then, between two
events of the loop, new requests go to it; the old one answers what it has accepted and is freed. A version that does
not pass the checks is refused, and the old one goes on. Rollback is to move the alias back.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from data.errors import InputError
from data.model_file import ModelInfo
from serve.loading import LoadedModel, Loader
from serve.registry import RegistryError, find_version, pinned
from serve.service import Models, ServedModel

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Following:
    """What came of following one alias. Written on the event loop; read from any thread.

    Attributes:
        name: of the model on the wire.
        source: models:/NAME@ALIAS.
        version: of the registry, that serves now.
        swaps: how often another version took over.
        refusals: how often a version did not pass the checks.
        refused_version, refused_reason: what the alias names, where that was refused; else "".
        away: whether the last look found no answer: the registry is away, the alias is not there, or no memory.
        last_error: what is wrong as of the last look; "" where the alias is what serves.
        last_checked: `time.time()` of the last look that found an answer; 0 = none yet.
    """

    name: str
    source: str
    version: str
    swaps: int = 0
    refusals: int = 0
    refused_version: str = ""
    refused_reason: str = ""
    away: bool = False
    last_error: str = ""
    last_checked: float = 0.0


class Follower:
    """Looks at the aliases, one after the other. For the event loop's thread.

    Args:
        models: with what is served and, in `following`, what is to be followed.
        loader: runs what would block.
        load: (name on the wire, source) -> a model, checked and warm. Called in a thread of `loader`.
        serve: begin to serve a model in place of the one of its name.
    """

    def __init__(
        self,
        models: Models,
        loader: Loader,
        load: Callable[[str, str], LoadedModel],
        serve: Callable[[LoadedModel], None],
    ) -> None:
        self._models, self._loader, self._load, self._serve = models, loader, load, serve
        self._old: ServedModel | None = None

    async def run(self, every_s: float) -> None:
        """Look every `every_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            for one in self._models.following:
                await self.look(one)

    async def look(self, one: Following) -> None:
        """Look where the alias stands, and change the model where it has moved.

        It returns when the old model is gone: there are never more than two versions of a model in memory.
        """
        version, tried = "", False
        try:
            version = await self._loader.run(partial(find_version, one.source))
            tried = version not in (one.version, one.refused_version)
            if tried:
                await self._change(one, version)
        except RegistryError as error:
            self._lose(one, str(error))
        except InputError as error:
            one.refusals += 1
            one.refused_version, one.refused_reason = version, f"version {version} is refused: {error}"
            _log.error("%s: version %s goes on: %s", one.name, one.version, one.refused_reason)
            self._answered(one, version)
        except Exception as error:  # a full disk, no memory: not the file's fault, so it is tried again
            what = f"version {version} cannot be loaded" if version else f"{one.source} cannot be looked up"
            self._lose(one, f"{what}: {type(error).__name__}: {error}")
        else:
            self._answered(one, version)
        await self.close_old()
        if tried:
            # MLflow leaves the threads of each download in cycles, to end when these are collected.
            await self._loader.run(gc.collect)

    async def close_old(self) -> None:
        """Wait until the model that was replaced last has answered what it holds, and free it."""
        if self._old:
            await self._old.close()
            self._old = None

    async def _change(self, one: Following, version: str) -> None:
        began = time.monotonic()
        loaded = await self._loader.run(partial(self._load, one.name, pinned(one.source, version)))
        old = self._models.get(one.name)
        try:
            _require_same_classes(old.info.classes, loaded.model.info.classes)
        except InputError:
            loaded.files.close()
            raise
        # No await from here to the end: a request sees the one or the other.
        self._old = old
        self._serve(loaded)
        _log.info(
            "%s: version %s serves in place of %s (%s); fetched, checked and warm in %.1f s%s",
            *(one.name, version, one.version, one.source, time.monotonic() - began),
            _other_pixels(old.info, loaded.model.info),
        )
        one.version = version
        one.swaps += 1

    def _lose(self, one: Following, reason: str) -> None:
        """The look found no answer. Logged once until one does: the messages differ in times and addresses."""
        if not one.away:
            _log.warning(
                "%s: version %s goes on; %s cannot be followed: %s", one.name, one.version, one.source, reason
            )
        one.away, one.last_error = True, reason

    def _answered(self, one: Following, version: str) -> None:
        if one.away:
            _log.info("%s: %s is followed again, it names version %s", one.name, one.source, version)
        if version != one.refused_version:
            one.refused_version = one.refused_reason = ""
        one.away, one.last_error, one.last_checked = False, one.refused_reason, time.time()


def _require_same_classes(old: Sequence[str], new: Sequence[str]) -> None:
    """Callers read scores by their place: who asked for the classes before would name them wrongly, unseen."""
    if new == old:
        return
    changes = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("without", [name for name in old if name not in new]),
            ("with", [name for name in new if name not in old]),
        )
        if names
    ]
    raise InputError(
        f"its classes must be those of the version that serves, in the same order, got {len(new)} "
        f"{' and '.join(changes) or 'in another order'}: callers read scores by their place; to serve it, start the "
        "server again"
    )


def _other_pixels(old: ModelInfo, new: ModelInfo) -> str:
    """For the log: those who decode and resize themselves are refused until they ask for the size again."""
    if new.preprocessing == old.preprocessing:
        return ""
    return f"; callers that send pixels must make them anew: {new.size} px, {old.size} before"
