"""Memory of the batch client while it scores many images: resident bytes at every step, and their slope.

    python benchmarks/client.py --model model.onnx                       100,000 small images
    python benchmarks/client.py --model model.onnx --images 5000 --step 1000

It starts a server of the model and `serve/client.py score` against it, each as a process of its own, and looks at
the client from outside: /proc/PID/status, and the parts on disk for how far it is. The images are JPEGs of 16 x 16
pixels, one file name each (hard links to a few files, to spare the disk).
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import tyro
from PIL import Image

from data.cli import run
from data.errors import InputError
from serve.config import DEFAULT_MODEL
from serve.parts import parts_folder

_SERVE = Path(__file__).resolve().parents[1] / "serve"
# A file may have about 65,000 hard links on ext4.
_LINKS = 10_000
_IN_A_FOLDER = 1000
_MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """What is scored.

    Attributes:
        model: model file, or a model of the registry.
        images: how many images.
        step: images between two looks.
        batch: images in one call.
        send: as of the client.
    """

    model: str = DEFAULT_MODEL
    images: int = 100_000
    step: int = 10_000
    batch: int = 64
    send: Literal["file", "pixels"] = "file"


@dataclass(frozen=True, slots=True)
class Look:
    """The client at one moment: images on disk, seconds since its start, resident bytes now and at most."""

    images: int
    seconds: float
    resident: int
    peak: int


def make_images(folder: Path, count: int) -> None:
    """`count` names of small JPEGs, 1000 in a folder."""
    source = folder / "source"
    source.mkdir()
    for number in range(count):
        base = source / f"{number // _LINKS}.bin"
        if not number % _LINKS:
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG")
            base.write_bytes(stream.getvalue())
        place = folder / f"{number // _IN_A_FOLDER:05d}"
        place.mkdir(exist_ok=True)
        os.link(base, place / f"{number:08d}.jpg")


@contextmanager
def server_of(model: str) -> Iterator[str]:
    """The address of a server of `model`, which is stopped at the end."""
    command = [sys.executable, str(_SERVE / "server.py"), "--model", model, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("ready "):
            raise InputError(f"the server of {model} did not start; its message is above")
        yield line.removeprefix("ready ").strip()
    finally:
        process.terminate()
        process.wait()


def watch(process: subprocess.Popen[bytes], out: Path, step: int) -> Iterator[Look]:
    """A look whenever `step` more images are on disk, and a last one as late as the process can be seen."""
    start, following = time.monotonic(), 0
    state = parts_folder(out) / "state.bin"
    done, last = 0, None
    while process.poll() is None:
        with suppress(OSError):  # not there yet, or there no more
            done = int(np.count_nonzero(np.fromfile(state, np.uint8)))
        memory = _memory(process.pid)
        if memory:
            last = Look(done, time.monotonic() - start, *memory)
            if done >= following and state.exists():
                yield last
                following = done - done % step + step
        time.sleep(0.05)
    if last:
        yield last


def _memory(process: int) -> tuple[int, int] | None:
    """Resident bytes now and at most; None where the process has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines())
    if "VmRSS" not in fields:
        return None
    now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def slope(looks: list[Look], images: int) -> float:
    """Bytes of growth an image: least squares over the looks after the first tenth of the work."""
    late = [look for look in looks if look.images >= images / 10]
    return float(np.polyfit([look.images for look in late], [look.resident for look in late], 1)[0])


def main(argv: list[str]) -> int:
    """Print the table; 1 where the client failed or lost an image."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "images", Path(name) / "scores.parquet"
        folder.mkdir()
        make_images(folder, options.images)
        with server_of(options.model) as address:
            command = [sys.executable, str(_SERVE / "client.py"), "score", "--server", address]
            command += ["--images", str(folder), "--out", str(out), "--batch", str(options.batch)]
            command += ["--send", options.send]
            print(f"{'images':>9} {'seconds':>8} {'images/s':>9} {'resident MiB':>13} {'peak MiB':>9}")
            looks = []
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                for look in watch(process, out, options.step):
                    looks.append(look)
                    rate = look.images / look.seconds
                    memory = f"{look.resident / _MIB:13.1f} {look.peak / _MIB:9.1f}"
                    print(f"{look.images:9d} {look.seconds:8.1f} {rate:9.1f} {memory}", flush=True)
        if process.returncode:
            return 1
        rows = pq.read_metadata(out).num_rows
        print(
            f"slope {slope(looks[:-1], options.images):.1f} bytes an image; {rows} of {options.images} images in "
            f"the score file, {out.stat().st_size / _MIB:.1f} MiB"
        )
        return 0 if rows == options.images else 1


if __name__ == "__main__":
    raise SystemExit(run(main))
