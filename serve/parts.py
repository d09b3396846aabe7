"""What a scoring run has finished so far, kept beside its output so that a killed run goes on.

`OUT.parts/` holds, for N images over C classes:

    run.json        what the parts belong to (images, classes), the models that gave them, the runs so far
    state.bin       uint8[N]: 0 to do, 1 failed, 2 + m scored by model m of run.json
    rows.bin        float32[N, 2, C]: logits and scores; of a failed image its first 8 bytes, an int64: where in
                    failures.jsonl its reason starts
    failures.jsonl  one reason a line, as JSON

Each image has its one place, so none can be there twice, and memory does not grow with N but for its one byte of
state. The state is written after what it speaks of is on disk, every few hundred images or every second: a kill -9,
or a power cut, loses at most what came since, and those images are scored again.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError

_FORMAT = 2
_FLUSH_IMAGES = 512
_FLUSH_SECONDS = 1.0
_TODO, _FAILED, _FIRST_MODEL = 0, 1, 2
MODEL_KEYS = ("model_version", "model_hash", "preprocessing")
MOST_MODELS = 256 - _FIRST_MODEL

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """The outcome of one image: its model, `logit` and `score` with C numbers each; or a reason and no numbers."""

    model: int = 0
    logit: tuple[float, ...] = ()
    score: tuple[float, ...] = ()
    reason: str = ""


def parts_folder(out: Path) -> Path:
    """Where the finished parts of the score file `out` stand."""
    return out.with_name(out.name + ".parts")


class PartStore:
    """The finished parts of one run. Get it from `open_parts`.

    Attributes:
        run: the content of run.json, written with every flush; the caller may add to it.
        before_flush: called then, to bring `run` up to date.
        state: uint8[N], see the module; read only.
        failed: how many images have no scores.
        resumed: how many images an earlier run left.
    """

    def __init__(self, folder: Path, images: int, classes: int, run: dict[str, Any]) -> None:
        self.folder, self.run = folder, run
        self.before_flush: Callable[[], None] = lambda: None
        self._classes, self._record = classes, 8 * classes
        self._rows = os.open(folder / "rows.bin", os.O_RDWR)
        self._states = os.open(folder / "state.bin", os.O_RDWR)
        self._failures = (folder / "failures.jsonl").open("ab+")
        for name, size in (("rows.bin", images * self._record), ("state.bin", images)):
            found = (folder / name).stat().st_size
            if found != size:
                raise InputError(
                    f"{folder / name} is damaged: {found} bytes where {size} belong; --restart forgets the parts"
                )
        self.state = np.frombuffer(os.pread(self._states, images, 0), np.uint8).copy()
        self._saved = self.state.copy()
        self.resumed = self.done
        self.failed = int(np.count_nonzero(self.state == _FAILED))
        self.added = 0
        self._unsaved = 0
        self._saved_at = time.monotonic()

    @property
    def done(self) -> int:
        """How many images have an outcome."""
        return int(np.count_nonzero(self.state))

    def missing(self) -> npt.NDArray[np.int64]:
        """The rows of the images that have no outcome, ascending."""
        return np.flatnonzero(self.state == _TODO)

    def scored_by(self, model: int) -> int:
        """How many images have scores from model `model`."""
        return int(np.count_nonzero(self.state == _FIRST_MODEL + model))

    def add(self, row: int, part: Part) -> None:
        """Take the outcome of image `row`; on disk after a few hundred images or a second.

        Raises:
            RuntimeError: the image has an outcome already, or the numbers are not finite or not C each.
        """
        if self.state[row] != _TODO:
            raise RuntimeError(f"the account does not close: image {row} has a second outcome")
        if part.reason:
            record = self._failures.seek(0, os.SEEK_END).to_bytes(8, "little")
            self._failures.write(json.dumps(part.reason).encode() + b"\n")
            self.failed += 1
        else:
            lengths = {len(part.logit), len(part.score)}
            numbers = np.array([*part.logit, *part.score], np.float32)
            if lengths != {self._classes} or not np.isfinite(numbers).all():
                raise RuntimeError(
                    f"image {row}: an answer must have {self._classes} finite logits and scores, got "
                    f"{list(part.logit)} and {list(part.score)}"
                )
            record = numbers.tobytes()
        _write(self._rows, record, row * self._record)
        self.state[row] = _FAILED if part.reason else _FIRST_MODEL + part.model
        self.added += 1
        self._unsaved += 1
        if self._unsaved >= _FLUSH_IMAGES or time.monotonic() - self._saved_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put on disk what is not there yet: rows and reasons first, then run.json, then the state."""
        self.before_flush()
        self._failures.flush()
        os.fdatasync(self._rows)
        os.fdatasync(self._failures.fileno())
        replace_json(self.folder / "run.json", self.run)
        changed = np.flatnonzero(self.state != self._saved)
        if len(changed):
            first, end = int(changed[0]), int(changed[-1]) + 1
            _write(self._states, self.state[first:end].tobytes(), first)
            self._saved[first:end] = self.state[first:end]
        self._unsaved, self._saved_at = 0, time.monotonic()

    def rows(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], Matrix]:
        """The scored images from `start` to `stop`: their rows int64[n], and float32[n, 2, C]."""
        data = os.pread(self._rows, (stop - start) * self._record, start * self._record)
        numbers = np.frombuffer(data, np.float32).reshape(stop - start, 2, self._classes)
        scored = np.flatnonzero(self.state[start:stop] >= _FIRST_MODEL)
        return scored + start, numbers[scored]

    def reasons(self) -> Iterator[tuple[int, str]]:
        """The failed images, ascending: row and reason."""
        self._failures.flush()
        with (self.folder / "failures.jsonl").open("rb") as stream:
            for row in np.flatnonzero(self.state == _FAILED).tolist():
                stream.seek(int.from_bytes(os.pread(self._rows, 8, row * self._record), "little"))
                yield row, json.loads(stream.readline())

    def remove(self) -> None:
        """Delete the folder, once the score file is complete."""
        shutil.rmtree(self.folder)

    def release(self) -> None:
        """Let go of the files."""
        os.close(self._rows)
        os.close(self._states)
        self._failures.close()


@contextmanager
def open_parts(
    out: Path, key: dict[str, Any], images: int, restart: bool = False, allow_model_change: bool = False
) -> Iterator[PartStore]:
    """The parts of the score file `out`; flushed at the end, however it comes.

    Args:
        out: the score file.
        key: what must be equal for the parts of an earlier run to count. Holds `classes`, a list of C names, and
            `MODEL_KEYS`.
        images: N.
        restart: forget the parts of an earlier run.
        allow_model_change: `MODEL_KEYS` need not be equal.

    Raises:
        InputError: they belong to another model or other images, or another client is writing them.
    """
    folder = parts_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock"), out):
        if restart:
            shutil.rmtree(folder)
            folder.mkdir()
        run = _open_run(folder, key, images, allow_model_change)
        store = PartStore(folder, images, len(key["classes"]), run)
        try:
            yield store
        finally:
            # Where the disk is full the error is on its way already; what is lost is scored again.
            with suppress(OSError):
                if folder.is_dir():
                    store.flush()
            store.release()


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    busy = InputError(f"another client is writing {out}; wait for it or choose another --out")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy from error
        # The one who had it may have removed the file between our opening and our locking.
        if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise busy
        try:
            yield
        finally:
            path.unlink()


def _open_run(folder: Path, key: dict[str, Any], images: int, allow_model_change: bool) -> dict[str, Any]:
    """The content of run.json, after a check; made with empty parts where there is none."""
    path = folder / "run.json"
    if not path.is_file():
        if any(folder.glob("*.parquet")):
            raise InputError(
                f"{folder} holds parts of an older version; --restart forgets them, or choose another --out"
            )
        for name, size in (("rows.bin", images * 8 * len(key["classes"])), ("state.bin", images)):
            with (folder / name).open("wb") as stream:
                stream.truncate(size)
        # Its presence says that the others are whole.
        run = {"format": _FORMAT, "key": key}
        replace_json(path, run)
        return run
    earlier: dict[str, Any] = json.loads(path.read_text())
    if earlier.get("format") != _FORMAT:
        raise InputError(
            f"{path} has format {earlier.get('format')}, this version writes {_FORMAT}; --restart forgets the parts"
        )
    for name, value in key.items():
        of_model = name in MODEL_KEYS
        if earlier["key"].get(name) != value and not (of_model and allow_model_change):
            keep = "--allow-model-change goes on beside them, " if of_model else ""
            raise InputError(
                f"{folder} holds parts of another run: {name.replace('_', ' ')} was {earlier['key'].get(name)}, "
                f"is now {value}; --restart forgets them, {keep}or choose another --out"
            )
    return earlier


def _write(descriptor: int, data: bytes, at: int) -> None:
    if os.pwrite(descriptor, data, at) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` by an atomic rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
