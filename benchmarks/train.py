"""Times our training loop beside its limit, a plain DataLoader and Hugging Face's Trainer, in alternating rounds.

    python benchmarks/train.py                                         # MobileNetV2 at 224 px, synthetic devkit
    python benchmarks/train.py --backbone resnet50 --batch-size 128 --steps 100 --precision bfloat16     # a GPU
    python benchmarks/train.py --backbone tiny_cnn --size 64 --steps 4 --rounds 1             # does it run?

Each way runs in processes of its own, a round is one process of each, and each ratio is taken within a round, so
that what else runs on the machine meets all alike. On a busy machine the CPU time an image says more than the
images a second; OMP_WAIT_POLICY=PASSIVE keeps waiting threads out of it. For Hugging Face's row make an
environment and name its Python:

    .venv/bin/python -m uv venv runs/hf
    .venv/bin/python -m uv pip install --python runs/hf transformers "accelerate>=1.1" torch==V torchvision==W
    python benchmarks/train.py --hf-python runs/hf/bin/python

with V and W as in requirements/dev.txt.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from data.cli import run
from data.errors import InputError
from data.voc import default_devkit, read_voc

FOLDER = Path(__file__).resolve().parent
NAMES = {
    "bare": "(a) bare step, the limit",
    "ours": "(b) train.loop.fit",
    "plain": "(c) DataLoader, Pillow",
    "loader": "(c') (c) with our step",
    "hf": "(d) Hugging Face Trainer",
}
# Ratio of (b) to each other way, and the goal for it on a CPU and on a GPU.
GOALS = {"bare": (0.92, 0.90), "plain": (1.5, 1.5), "hf": (1.0, 1.0)}


@dataclass(frozen=True)
class Options:
    """What is trained, and how long it is timed.

    Attributes:
        data: devkit; None: $VOC_ROOT, or else the synthetic one.
        backbone: a name of `train.backbones.BACKBONES`; Hugging Face's row takes torchvision's names alone.
        size: side of the input in pixels.
        batch_size: images a step.
        steps: timed steps of each process, after 3 that are not.
        rounds: processes of each way.
        precision: of forward and backward.
        device: "auto": the GPU where there is one.
        workers: of the DataLoaders; 0: the best of half the cores, the cores and twice the cores, tried first.
        hf_python: Python of an environment with transformers; None: that row is not measured.
        cache: folder of the decoded images.
    """

    data: Path | None = None
    backbone: str = "mobilenet_v2"
    size: int = 224
    batch_size: int = 32
    steps: int = 10
    rounds: int = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = 0
    hf_python: Path | None = None
    cache: Path = Path("runs/cache")

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hf_python and not self.hf_python.is_file():
            raise InputError(f"no Python at {self.hf_python}; the module's docstring says how to make one")


def start(way: str, settings: dict[str, Any], hf_python: Path | None) -> dict[str, Any]:
    """Run one process; its JSON, with `memory` = the peak of it and its workers in bytes."""
    script = FOLDER / "training" / ("hf.py" if way == "hf" else "variants.py")
    python = str(hf_python) if way == "hf" else sys.executable
    environment = dict(os.environ)
    if settings["device"] == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    argument = json.dumps(settings | {"variant": way, "started": time.time()})
    process = subprocess.Popen(
        [python, str(script), argument],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    lines = out.strip().splitlines()
    if process.returncode or not lines:
        last = (err.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{NAMES.get(way, way)} failed with exit code {process.returncode}: {last}")
    measured: dict[str, Any] = json.loads(lines[-1])
    return measured | {"memory": peak[0]}


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep in `peak` the largest memory of a process and all below it, four times a second."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_resident(pid) for pid in _tree(process.pid)))
        time.sleep(0.25)


def _tree(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        for file in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in file.read_text().split()]
            except OSError:  # it has ended in between
                continue
    return found


def _resident(pid: int) -> int:
    """Bytes in memory, a page that k processes share counted as 1/k: plain RSS would count forks over and over."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def best_workers(settings: dict[str, Any], cores: int) -> int:
    """The number of workers with which the plain DataLoader is fastest, over half the steps."""
    short = settings | {"steps": max(3, settings["steps"] // 2)}
    rates = {
        workers: start("plain", short | {"workers": workers}, None)["images_per_second"]
        for workers in sorted({max(1, cores // 2), cores, 2 * cores})
    }
    for workers, rate in rates.items():
        print(f"tried {workers:3d} workers: {rate:8.1f} images/s", flush=True)
    return max(rates, key=lambda workers: rates[workers])


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    middle, low, high = (format(f(values), form) for f in (statistics.median, min, max))
    return f"{middle} [{low}, {high}]"


def main(arguments: list[str]) -> int:
    """Prepare, run the rounds, print the table."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    devkit = (options.data or default_devkit()).resolve()
    labels = read_voc(devkit, "train")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, "photographs.json")
        paths = [str(path) for path in labels.paths]
        listing.write_text(json.dumps({"paths": paths, "targets": labels.target.tolist()}))
        settings: dict[str, Any] = {
            "devkit": str(devkit),
            "cache": str(options.cache.resolve()),
            "listing": str(listing),
            "out": str(Path(folder, "run")),
            "backbone": options.backbone,
            "size": options.size,
            "batch_size": options.batch_size,
            "wanted_precision": options.precision,
            "device": options.device,
            "threads": cores,
            "warm": 3,
            "steps": options.steps,
        }
        ready = start("prepare", settings, None)
        settings["precision"] = ready["precision"]
        settings["device"] = "cuda" if ready["cuda"] else "cpu"
        if options.device == "cuda" and not ready["cuda"]:
            raise InputError("--device cuda, but PyTorch sees no GPU here")
        settings["workers"] = options.workers or best_workers(settings, cores)
        ways = ["bare", "ours", "plain", "loader"] + (["hf"] if options.hf_python else [])
        results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for number in range(options.rounds):
            for way in ways:
                results[way].append(start(way, settings, options.hf_python))
            rates = "  ".join(f"{way} {results[way][-1]['images_per_second']:.1f}" for way in ways)
            print(f"round {number + 1}/{options.rounds}, images/s: {rates}", flush=True)
    print_table(options, settings, ready, results)
    return 0


def print_table(
    options: Options,
    settings: dict[str, Any],
    ready: dict[str, Any],
    results: dict[str, list[dict[str, Any]]],
) -> None:
    """One row a way: median [smallest, largest] over the rounds."""
    device, on_gpu = settings["device"], settings["device"] == "cuda"
    how = "built" if ready["built"] else "found"
    print(
        f"\n{options.backbone} at {options.size} px, batch {options.batch_size}, {settings['precision']}, "
        f"channels-last, {device}, {settings['threads']} threads, {settings['workers']} workers, "
        f"{options.steps} steps x {options.rounds} rounds, load {os.getloadavg()[0]:.1f}; "
        f"decoded cache {how} in {ready['cache_seconds']:.1f} s, once for all runs"
    )
    memory = "GPU memory, GB" if on_gpu else "memory, GB"
    titles = f"{'images/s':>22s} {'(b) is x times it':>20s} {'CPU ms/image':>20s} {'its / (b)':>20s}"
    print(f"{'':26s} {titles} {'first step, s':>20s} {memory:>14s}")
    for way, name in NAMES.items():
        if way not in results:
            print(f"{name:26s} {'not measured':>22s} (--hf-python PATH)")
            continue
        rows = results[way]
        rates = [row["images_per_second"] for row in rows]
        ratios = [row["images_per_second"] / rate for row, rate in zip(results["ours"], rates, strict=True)]
        peaks = [row["gpu_bytes" if on_gpu else "memory"] / 1e9 for row in rows]
        costs = [row["cpu_ms"] for row in rows]
        cheaper = [cost / row["cpu_ms"] for row, cost in zip(results["ours"], costs, strict=True)]
        cells = [
            spread(rates, ".1f"),
            "" if way == "ours" else spread(ratios, ".2f"),
            spread(costs, ".1f"),
            "" if way == "ours" else spread(cheaper, ".2f"),
            spread([row["first_step"] for row in rows], ".1f"),
        ]
        print(
            f"{name:26s} {cells[0]:>22s} {' '.join(f'{cell:>20s}' for cell in cells[1:])} {max(peaks):14.2f}"
        )
        results[way][0]["ratio"] = statistics.median(ratios)
    for way, goals in GOALS.items():
        if way in results:
            goal, reached = goals[on_gpu], results[way][0]["ratio"]
            word = "reached" if reached >= goal else "missed"
            print(f"goal (b) >= {goal:.2f} x {NAMES[way]}: {word} ({reached:.3f})")


def _step_aside() -> None:
    """Give the name `train` to the package: a script beside this file that imports it would find this file first."""
    here = [path for path in sys.path if Path(path).resolve() == FOLDER]
    sys.path[:] = [path for path in sys.path if path not in here]
    del sys.modules["train"]
    importlib.import_module("train")
    sys.path[:0] = here


if __name__ == "__main__":
    sys.exit(run(main))
elif __name__ == "train":
    _step_aside()
