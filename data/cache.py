"""The decoded cache: every image of a set decoded once, as one uint8 memory map that all processes share.

    cache = open_cache(labels, size=224, folder=Path("runs/cache"))
    cache.pixels[i]     uint8[224, 224, 3] of labels.image_ids[i], read from disk where it is used

A file's name holds a key over what its pixels depend on: the image ids in order, each file's size and time of
change, the side S, and the fingerprint of `data.image`. Where one of these differs there is no such
file, and it is built: a changed data set never meets old pixels. One process builds while others that want the
same wait at a lock; it appears by a rename, so an interrupted build leaves no cache.

Cost: N * S * S * 3 bytes (5,717 images at 224 are 861 MB), and about 1,000 images/s on two cores at 224, less
than one epoch of any training. Decoding runs in threads: both libraries let go of the GIL, so a second
thread brings 1.9 times the speed, without a second process's memory and start (`benchmarks/decode.py`).
"""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from data.image import ImageError, Pixels, fingerprint, load
from data.labels import LabelSet
from data.progress import ProgressBar

_MOST_NAMED = 10  # bad files named in an error; the rest are counted
# Left free beside the cache, for the checkpoints and logs that the same disk has to take.
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Cache:
    """The pixels of a label set.

    Attributes:
        pixels: read-only memory map uint8[N, S, S, 3], RGB, in the order of `LabelSet.image_ids`.
        path: the file.
        seconds: what opening it took, with the build or the wait for another process's build.
        megabytes: its size on disk, in units of 1e6 bytes.
        built: whether this call decoded the images; False: they were there.
    """

    pixels: Pixels
    path: Path
    seconds: float
    megabytes: float
    built: bool

    def describe(self) -> str:
        """One line: images, size, whether built or reused, and the cost."""
        count, side = self.pixels.shape[:2]
        how = "built" if self.built else "reused"
        return (
            f"cache: {count:,} images at {side} px, {self.megabytes:,.1f} MB, {how} in {self.seconds:.1f} s "
            f"({self.path})"
        )


def open_cache(labels: LabelSet, size: int, folder: Path, workers: int | None = None) -> Cache:
    """Open the decoded images of `labels`, decoding them first where that has not been done.

    Prints one line with size and cost on stderr. Older caches of other data or sizes are left alone.

    Args:
        labels: with `paths`.
        size: S, the side in pixels.
        folder: where caches lie; made where it is missing.
        workers: decoding threads; None: one a core.

    Raises:
        InputError: labels without images, images that cannot be read (up to ten are named), a full disk.
    """
    start = time.monotonic()
    if not labels.paths:
        raise InputError(f"'{labels.name}' has labels only, no image files to decode")
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    path = folder / f"{_key(labels, size)}-{size}px.u8"
    shape = (len(labels), size, size, 3)
    built = False
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():  # else another process built it while we waited
                _build(labels, shape, path, workers or os.cpu_count() or 1)
                built = True
    pixels = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    cache = Cache(pixels, path, time.monotonic() - start, pixels.nbytes / 1e6, built)
    print(cache.describe(), file=sys.stderr)
    return cache


def _key(labels: LabelSet, size: int) -> str:
    """16 hex digits of everything that the pixels depend on."""
    digest = hashlib.sha256(fingerprint(size).encode())
    missing = []
    for image_id, path in zip(labels.image_ids, labels.paths, strict=True):
        try:
            status = path.stat()
        except OSError as error:
            missing.append(f"{path} ({error.strerror})")
            continue
        digest.update(f"{image_id}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    if missing:
        raise _bad_files(labels, missing)
    return digest.hexdigest()[:16]


def _build(labels: LabelSet, shape: tuple[int, int, int, int], path: Path, workers: int) -> None:
    need = int(np.prod(shape, dtype=np.int64))
    free = shutil.disk_usage(path.parent).free
    if need + _SPARE_BYTES > free:
        raise InputError(
            f"the cache of '{labels.name}' needs {need / 1e6:,.0f} MB in {path.parent}, which has "
            f"{free / 1e6:,.0f} MB free; choose another folder, fewer images or a smaller size"
        )
    # The lock is ours, so no other process writes this name; a file that a killed build left is written over.
    partial = path.with_name(path.name + ".part")
    try:
        pixels = np.memmap(partial, dtype=np.uint8, mode="w+", shape=shape)
        # Claims the blocks now: a disk that fills up later would kill the process at a write to the map.
        with partial.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, need)
        _decode_all(labels, pixels, workers)
        pixels.flush()
        del pixels
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write the cache {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _decode_all(labels: LabelSet, pixels: npt.NDArray[np.uint8], workers: int) -> None:
    """Fill `pixels[N, S, S, 3]`. Goes on after a bad file, so that one error can name them all."""
    size = pixels.shape[1]

    def decode_into(index: int) -> str:
        path = labels.paths[index]
        try:
            pixels[index] = load(path.read_bytes(), size)
        except ImageError as error:
            return f"{path} ({error})"
        except OSError as error:
            return f"{path} ({error.strerror})"
        return ""

    bad = []
    with ThreadPoolExecutor(workers) as pool, ProgressBar("decode", len(labels)) as bar:
        try:
            for fault in pool.map(decode_into, range(len(labels))):
                bar.advance()
                if fault:
                    bad.append(fault)
        except BaseException:  # Ctrl-C: leave now, not after the images that are still in line
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if bad:
        raise _bad_files(labels, bad)


def _bad_files(labels: LabelSet, bad: list[str]) -> InputError:
    named = "; ".join(bad[:_MOST_NAMED])
    rest = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
    return InputError(
        f"{len(bad)} of the {len(labels)} images of '{labels.name}' cannot be read: {named}{rest}"
    )
