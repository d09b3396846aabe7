"""The manifest of a scoring run: a JSON file beside the score file that says how it came about.

    scores.file, .sha256            the score file that it belongs to
    images.name, .data_fingerprint  what was scored, and the counts sent = scored + failed
    models[]                        name, version, hash, preprocessing, server version and images of each model;
                                    more than one only with --allow-model-change
    options                         of the client, of the last of the runs
    pixels                          with --send pixels: the decode and resize that made them, in words
    runs[]                          of each start of the client: begin, end (UTC), images done, how it ended,
                                    calls tried again by status, calls and images of each server

A run that was killed says "killed" and as its end the last time at which it wrote.
"""

import dataclasses
import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.image import describe
from serve.config import ScoreConfig
from serve.parts import MOST_MODELS, PartStore, replace_json
from serve.remote import Servers
from serve.sources import ImageList


def manifest_path(out: Path) -> Path:
    """Where the manifest of the score file `out` stands."""
    return out.with_name(out.stem + ".manifest.json")


class Record:
    """Keeps the models and runs in the store's run.json, and writes the manifest from them.

    Attributes:
        models: those of run.json; a part's `model` is a place in this list.
        ended: how the run ended; "killed" until it is told otherwise.
    """

    def __init__(self, config: ScoreConfig, images: ImageList, servers: Servers, store: PartStore) -> None:
        self._config, self._images, self._servers, self._store = config, images, servers, store
        self.models: list[dict[str, Any]] = store.run.setdefault("models", [])
        self._place: dict[int, int] = {}
        self._run: dict[str, Any] = {"begin": self._now(), "client_version": version("tailacc")}
        store.run.setdefault("runs", []).append(self._run)
        self.place(0)
        self.ended = "killed"
        store.before_flush = self._update

    def place(self, model: int) -> int:
        """The place in `models` of the servers' model number `model`."""
        if model not in self._place:
            said = self._servers.models[model]
            entry = {
                "name": said.model.name,
                "version": said.model.version,
                "hash": said.model.hash,
                "description": said.description,
                "preprocessing": said.preprocessing,
                "server_version": said.server_version,
            }
            if entry not in self.models:
                if len(self.models) == MOST_MODELS:
                    raise RuntimeError(f"the model changed more than {MOST_MODELS} times")
                self.models.append(entry)
            self._place[model] = self.models.index(entry)
        return self._place[model]

    def used(self) -> list[dict[str, Any]]:
        """The models that gave scores; the one of the start where none did."""
        used = [entry for place, entry in enumerate(self.models) if self._store.scored_by(place)]
        return used or self.models[:1]

    def publish(self) -> None:
        """Write the manifest of the finished score file, by an atomic rename."""
        self.ended = "done"
        self._update()
        store, out = self._store, self._config.out
        failed = store.failed
        options = dataclasses.asdict(self._config)
        with out.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        content: dict[str, Any] = {
            "format": 1,
            "scores": {"file": out.name, "sha256": digest},
            "images": {
                "name": self._images.name,
                "data_fingerprint": self._images.fingerprint,
                "sent": len(self._images),
                "scored": len(self._images) - failed,
                "failed": failed,
            },
            "models": [entry | {"images": store.scored_by(place)} for place, entry in enumerate(self.models)],
            "options": {**options.pop("connection"), **options, "out": str(out)},
            "runs": store.run["runs"],
        }
        if self._config.send == "pixels":
            content["pixels"] = describe(self._servers.model.image_size)
        replace_json(manifest_path(out), content)

    def _update(self) -> None:
        self._run |= {
            "end": self._now(),
            "ended": self.ended,
            "images": self._store.added,
            "retries": dict(self._servers.retries),
            "servers": self._servers.account(),
        }

    @staticmethod
    def _now() -> str:
        return datetime.now(UTC).isoformat(timespec="milliseconds")
