"""What a scoring run has finished so far, kept beside its output so that a killed run goes on.

`OUT.parts/` holds `manifest.json` (which model, which images) and numbered Parquet files, each written by an
atomic rename: image_id, logit and score (float32 lists, null where the image failed), reason (null where it
did not). A kill loses at most what was not yet flushed, and those images are scored again.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import InputError

_FLUSH_ROWS = 512
_FLUSH_SECONDS = 2.0
_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("logit", pa.list_(pa.float32())),
        ("score", pa.list_(pa.float32())),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """The outcome of one image: `logit` and `score` with C numbers each, or both empty and a reason."""

    image_id: str
    logit: tuple[float, ...] = ()
    score: tuple[float, ...] = ()
    reason: str = ""


def parts_folder(out: Path) -> Path:
    """Where the finished parts of the score file `out` stand."""
    return out.with_name(out.name + ".parts")


class PartStore:
    """The finished parts of one run. Get it from `open_parts`.

    Attributes:
        done: image id -> its outcome.
        failed: how many of them have no scores.
        resumed: how many of them an earlier run left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[str, Part] = {}
        self._unsaved: list[Part] = []
        self._saved_at = time.monotonic()
        files = sorted(folder.glob("*.parquet"))
        for file in files:
            for row in pq.read_table(file).to_pylist():
                part = Part(
                    row["image_id"], tuple(row["logit"] or ()), tuple(row["score"] or ()), row["reason"] or ""
                )
                self.done[part.image_id] = part
        self.failed = sum(1 for part in self.done.values() if part.reason)
        self.resumed = len(self.done)
        self._next = int(files[-1].stem) + 1 if files else 0

    def add(self, part: Part) -> None:
        """Take one outcome; written to disk every few hundred images or seconds."""
        self.done[part.image_id] = part
        self.failed += bool(part.reason)
        self._unsaved.append(part)
        if len(self._unsaved) >= _FLUSH_ROWS or time.monotonic() - self._saved_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        self._saved_at = time.monotonic()
        if not self._unsaved:
            return
        rows = [
            {
                "image_id": part.image_id,
                "logit": None if part.reason else part.logit,
                "score": None if part.reason else part.score,
                "reason": part.reason or None,
            }
            for part in self._unsaved
        ]
        file = self.folder / f"{self._next:06d}.parquet"
        partial = file.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), partial)
        os.replace(partial, file)
        self._next += 1
        self._unsaved = []

    def remove(self) -> None:
        """Delete the folder, once the score file is complete."""
        shutil.rmtree(self.folder)


@contextmanager
def open_parts(out: Path, manifest: dict[str, str], restart: bool) -> Iterator[PartStore]:
    """The parts of the score file `out`; flushed at the end, however it comes.

    Args:
        out: the score file.
        manifest: what must be equal for the parts of an earlier run to count.
        restart: forget the parts of an earlier run.

    Raises:
        InputError: they belong to another model or other images, or another client is writing them.
    """
    folder = parts_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock_path = folder.with_name(f".{folder.name}.lock")
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another client is writing {out}; wait for it or choose another --out"
            ) from error
        if restart:
            shutil.rmtree(folder)
            folder.mkdir()
        _check_manifest(folder / "manifest.json", manifest)
        store = PartStore(folder)
        try:
            yield store
        finally:
            if folder.is_dir():
                store.flush()
            lock_path.unlink()


def _check_manifest(path: Path, manifest: dict[str, str]) -> None:
    if not path.is_file():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(manifest, indent=1))
        os.replace(partial, path)
        return
    earlier = json.loads(path.read_text())
    for key, value in manifest.items():
        if earlier.get(key) != value:
            raise InputError(
                f"{path.parent} holds parts of another run: {key.replace('_', ' ')} was {earlier.get(key)}, "
                f"is now {value}; --restart forgets them, or choose another --out"
            )
