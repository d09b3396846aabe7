"""Times a whole search beside its pure training time, and the search's own cost over many trials.

    python benchmarks/tune.py                                # trials of 60 s, one and two at a time: 15 minutes
    python benchmarks/tune.py --seconds 5 --trials 2         # does it run?
    python benchmarks/tune.py --scale 1000                   # trials that train nothing
    python benchmarks/tune.py --scale 200 --nodes 10         # on ten nodes of one CPU, all on this machine

Pure training time is what the trials' own clocks give for their steps (history.csv, time/seconds); evaluation,
checkpoints, start-up, pictures, export and registration all count as the search's. The wall time is that of the
command, `python tune/search.py`, from its start to its end; each trial has one core. With two trials at a time the
cores share their memory, which the trials' clocks have seen: the ratio is of what the search adds.
"""

import csv
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro
from tuning.nodes import Cluster, kill_family

from data.cli import run
from data.errors import InputError
from data.synthetic import write_devkit

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.25  # of wall time to pure training time, for trials of 60 s
SEARCH_GOAL, TRIAL_GOAL = 8.0, 3.0  # seconds of start-up
_LINE = re.compile(r"^\[(\d+) of (\d+) trials ended")


@dataclass(frozen=True)
class Options:
    """What is searched.

    Attributes:
        seconds: of pure training of each trial, about.
        trials: how many.
        slots: how many at a time, one measurement each.
        images: of the synthetic devkit.
        size: side of the input in pixels.
        scale: trials that train nothing, in place of all this; 0 = not.
        nodes: of the cluster that `scale` runs on; 1 = the search starts Ray itself.
        folder: for what is written; None: a temporary one.
    """

    seconds: float = 60.0
    trials: int = 8
    slots: tuple[int, ...] = (1, 2)
    images: int = 400
    size: int = 64
    scale: int = 0
    nodes: int = 1
    folder: Path | None = None


def main(arguments: list[str]) -> None:
    """Measure and print."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    cores = len(os.sched_getaffinity(0))
    if max(options.slots) > cores:
        raise InputError(f"--slots must be at most the number of cores, {cores}, got {max(options.slots)}")
    with tempfile.TemporaryDirectory(prefix="tailacc-bench-") as temporary:
        home = options.folder or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        if options.scale and options.nodes > 1:
            cluster = Cluster(home)
            try:
                for _ in range(options.nodes):
                    cluster.start("--num-cpus", "1")
                _scale(options, home, cluster.environment, ["--search.ray-address", cluster.address])
            finally:
                cluster.stop()
            return
        if options.scale:
            _scale(options, home, dict(os.environ), [])
            return
        write_devkit(home / "devkit", options.images, 20, seed=0)
        epochs = _calibrate(options, home)
        print(
            f"trials of {epochs} epochs on {options.images} images at {options.size} px, tiny_resnet, one core each"
        )
        for slots in options.slots:
            _measure(options, home, slots, epochs)


def _calibrate(options: Options, home: Path) -> int:
    """Epochs that take `seconds`, from a search of one short trial, which also fills the cache of images."""
    out = home / "calibrate"
    _search(options, home, out, 1, 1, 3)
    seconds = statistics.median(_seconds(out)[1:])  # not the first epoch, which warms up
    return max(2, math.ceil(options.seconds / seconds))


def _measure(options: Options, home: Path, slots: int, epochs: int) -> None:
    out = home / f"slots-{slots}"
    wall, printed = _search(options, home, out, options.trials, slots, epochs)
    pure = sum(_seconds(out))
    with (out / "trials.csv").open() as stream:
        states = [row["state"] for row in csv.DictReader(stream)]
    if states != ["completed"] * options.trials:
        raise InputError(f"the trials ended as {states}: see {out}")
    ratio = wall / (pure / slots)
    start = next(
        (line for line in printed.splitlines() if line.startswith("start-up")), "start-up   not known"
    )
    print(
        f"{slots} at a time: {options.trials} trials of {pure / options.trials:.1f} s, {pure:.0f} s of pure training, "
        f"wall {wall:.1f} s: {ratio:.3f} (goal at most {GOAL} for trials of 60 s)\n"
        f"  {start} (goals {SEARCH_GOAL:g} and {TRIAL_GOAL:g})",
        flush=True,
    )


def _search(
    options: Options, home: Path, out: Path, trials: int, slots: int, epochs: int
) -> tuple[float, str]:
    """Wall seconds of the command, and what it printed."""
    flags = ["--data.root", str(home / "devkit"), "--data.size", str(options.size), "--out", str(out)]
    flags += ["--data.cache", str(home / "cache"), "--batch-size", "32", "--search.sampler", "random"]
    flags += ["--space.backbone", "tiny_resnet", "--space.loss", "bce,asl", "--search.scheduler", "none"]
    flags += [
        "--search.trials",
        str(trials),
        "--search.concurrency",
        str(slots),
        "--schedule.epochs",
        str(epochs),
    ]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tune" / "search.py"), *flags],
        cwd=home,
        env=os.environ | _store(home),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise InputError(f"the search ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - begun, done.stdout


def _store(home: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}


def _seconds(out: Path) -> list[float]:
    """Of pure training, of every epoch of every trial."""
    found = []
    for path in sorted(out.glob("trials/*/history.csv")):
        with path.open() as stream:
            found += [float(row["time/seconds"]) for row in csv.DictReader(stream)]
    return found


def _scale(options: Options, home: Path, environment: dict[str, str], flags: list[str]) -> None:
    """Trials that train nothing: killed when nine tenths have ended, then resumed to the end."""
    write_devkit(home / "devkit", 40, 10, seed=0)
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "tuning" / "trivial.py"),
        str(options.scale),
        str(home),
        *flags,
    ]
    enough, tenth = options.scale * 9 // 10, max(2, options.scale // 10)
    first = _follow(command, home, environment, enough)
    if first.ended < enough:
        raise InputError(f"the search ended after {first.ended} of {options.scale} trials")
    again = _follow([*command, "--resume"], home, environment, options.scale + 1)
    ended = first.at[enough] - first.at[1]
    at_once = options.nodes if options.nodes > 1 else len(os.sched_getaffinity(0))
    print(
        f"{options.scale} trials that train nothing, {at_once} at a time\n"
        f"  until the first ended {first.at[1]:.1f} s, then {1000 * ended / (enough - 1):.0f} ms a trial over "
        f"{enough} trials\n"
        f"  a trial at the start and at the end: {1000 * first.pace(1, tenth):.0f} and "
        f"{1000 * first.pace(enough - tenth, enough):.0f} ms\n"
        f"  memory of the driver at the end: {first.memory / 2**20:.0f} MiB, "
        f"{(first.memory - first.memory_before) / enough / 1024:.0f} KiB more for each trial\n"
        f"  MLflow (SQLite): {first.rows} rows of runs, parameters, tags and metrics in {first.at[enough]:.0f} s, "
        f"{first.rows / first.at[enough]:.0f} a second\n"
        f"  --resume after kill -9: {again.first:.1f} s until the first trial that was not done before ended, "
        f"{again.wall:.1f} s in all; {again.done} of {options.scale} trials in the table, {again.twice} tried again"
    )


@dataclass
class _Followed:
    """What was seen of a search of trivial trials."""

    at: dict[int, float]
    wall: float
    memory: int = 0
    memory_before: int = 0
    rows: int = 0
    first: float = math.nan
    done: int = 0
    twice: int = 0

    @property
    def ended(self) -> int:
        return max(self.at, default=0)

    def pace(self, low: int, high: int) -> float:
        """Seconds a trial between two counts."""
        return (self.at[high] - self.at[low]) / (high - low)


def _follow(command: list[str], home: Path, environment: dict[str, str], kill_at: int) -> _Followed:
    """Run it, note when each trial ended, and kill it with all its processes at `kill_at`."""
    begun = time.monotonic()
    process = psutil.Popen(
        command, cwd=home, env=environment | _store(home), stderr=subprocess.PIPE, text=True
    )
    seen, printed = _Followed({}, 0.0), ""
    if process.stderr is None:
        raise InputError("no stderr")
    for line in process.stderr:
        printed += line
        match = _LINE.match(line)
        if not match or not (count := int(match[1])):
            continue
        now = time.monotonic() - begun
        for number in range(seen.ended + 1, count + 1):
            seen.at[number] = now
        seen.memory_before = seen.memory_before or process.memory_info().rss
        seen.first = now if math.isnan(seen.first) else seen.first
        if count >= kill_at:
            seen.memory, seen.rows = process.memory_info().rss, _rows(home)
            kill_family(process)
            break
    process.wait()
    seen.wall = time.monotonic() - begun
    if process.returncode not in (0, -signal.SIGKILL):
        raise InputError(f"the search ended with {process.returncode}: {printed[-2000:]}")
    table = home / "scale" / "trials.csv"
    if table.is_file():
        with table.open() as stream:
            seen.done = sum(row["state"] == "completed" for row in csv.DictReader(stream))
    runs = sum(len(path.read_text().splitlines()) for path in home.glob("scale/trials/*/ran"))
    # Under the same id or, as a trial that was forgotten, under another.
    seen.twice = runs - seen.done
    return seen


def _rows(home: Path) -> int:
    """In the tables of MLflow's store that a trial writes to."""
    import sqlite3

    with sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True) as store:
        counts: list[Any] = [
            store.execute(f"select count(*) from {name}").fetchone()[0]
            for name in ("runs", "params", "tags", "metrics")
        ]
    return sum(counts)


if __name__ == "__main__":
    sys.exit(run(main))
