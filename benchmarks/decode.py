"""Speed and fidelity of JPEG decoders and resizers: why `data.image` is simplejpeg and Pillow.

    python benchmarks/decode.py --images voc/VOC2012/JPEGImages
    python benchmarks/decode.py                                      on synthetic pictures

Images/s is the best of three passes, on one thread and on two, since the decoding pool and the cache use threads.
The difference is in levels of 255 from torchvision's decoder and antialiased resize: the yardstick, which cannot
be the choice because serving carries no torch. The figures behind the choice stand in `data/image.py`.
"""

import io
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize as torch_resize

from data.cli import run
from data.errors import InputError
from data.image import load

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[bytes], Pixels]
Resize = Callable[[Pixels], Pixels]
SIDE = 224


def decode_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode_simplejpeg(data: bytes) -> Pixels:
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))


def decode_opencv(data: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


def decode_torchvision(data: bytes) -> Pixels:
    coded = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
    return np.asarray(decode_jpeg(coded, mode=ImageReadMode.RGB).permute(1, 2, 0))


def resize_pillow(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def resize_torchvision(pixels: Pixels) -> Pixels:
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    return np.asarray(torch_resize(planes, [SIDE, SIDE], antialias=True).permute(1, 2, 0))


def resize_opencv_area(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def resize_opencv_linear(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR))


DECODERS: dict[str, Decode] = {
    "Pillow": decode_pillow,
    "simplejpeg": decode_simplejpeg,
    "OpenCV": decode_opencv,
    "torchvision": decode_torchvision,
}
RESIZERS: dict[str, Resize] = {
    "Pillow bilinear": resize_pillow,
    "OpenCV area": resize_opencv_area,
    "OpenCV linear": resize_opencv_linear,
    "torchvision antialias": resize_torchvision,
}


@dataclass(frozen=True)
class Options:
    """Compare JPEG decoders and resizers."""

    images: Path | None = None
    """Folder with *.jpg; without it, synthetic pictures are drawn."""
    count: int = 200
    """How many images to use."""


def images_per_second(function: Callable[[bytes], object], files: list[bytes], threads: int) -> float:
    """The best of three passes over `files`."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(function, files))
            best = min(best, time.perf_counter() - start)
    return len(files) / best


def read_files(options: Options) -> list[bytes]:
    """The JPEG files to measure on."""
    if options.images is None:
        from data.scenes import compose

        files = []
        for index in range(options.count):
            stream = io.BytesIO()
            compose(index, seed=0)[0].save(stream, "JPEG", quality=90)
            files.append(stream.getvalue())
        return files
    paths = sorted(options.images.glob("*.jpg"))[: options.count]
    if not paths:
        raise InputError(f"no *.jpg in {options.images}")
    return [path.read_bytes() for path in paths]


def compare(files: list[bytes]) -> None:
    """Print the table."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # only read here
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    wanted = [resize_torchvision(decode_torchvision(data)).astype(np.int16) for data in files]
    rows: dict[str, Callable[[bytes], Pixels]] = dict(DECODERS)
    for decoder, decode in DECODERS.items():
        for resizer, resize in RESIZERS.items():
            if decoder in ("Pillow", "simplejpeg") or decoder == resizer.split()[0]:
                rows[f"{decoder} + {resizer}"] = lambda data, d=decode, r=resize: r(d(data))  # type: ignore[misc]
    rows["data.image.load"] = lambda data: load(data, SIDE)
    print(f"{len(files)} JPEG files of {np.mean([len(data) for data in files]) / 1000:.0f} KB on average")
    print(f"{'':40} {'1 thread':>9} {'2 threads':>9} {'largest':>8} {'mean':>7}")
    for name, function in rows.items():
        one, two = (images_per_second(function, files, threads) for threads in (1, 2))
        line = f"{name:40} {one:9.0f} {two:9.0f}"
        if name not in DECODERS:
            gaps = [np.abs(function(data) - want) for data, want in zip(files, wanted, strict=True)]
            line += f" {max(int(gap.max()) for gap in gaps):8d} {np.mean([gap.mean() for gap in gaps]):7.3f}"
        print(line, flush=True)


def main(arguments: list[str]) -> int:
    import tyro

    options = tyro.cli(Options, prog="benchmarks/decode.py", args=arguments)
    compare(read_files(options))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
