"""The scoring service, the bare loop that is its limit, and Seldon MLServer, side by side in one run.

    python benchmarks/serve.py                                          a short form: one model, seconds
    python benchmarks/serve.py --full --images DIR --mlserver-python ENV/bin/python --triton-python ENV/bin/python
                                                                        the table: 11 minutes on 2 cores

The environments: MLServer `mlserver==1.7.1 "uvloop<0.22"` with this project's versions of onnxruntime, simplejpeg
and pillow; tritonclient `"tritonclient[grpc]"`. What they cannot be asked for is left out. Every server is asked
by the same load generator (serving/load.py), which only moves bytes, turn and turn about: the bare loop and then
each server at one concurrency, then the next. Ratios are medians over the rounds of ratios within a round.
"""

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro
from serving.inputs import INFER, SCORE, first_logits, make_models, photographs, write_requests
from serving.running import ROOT, Rival, Server, child, mlserver, our_server, rivals

from data.cli import run
from data.errors import InputError

CORES = len(os.sched_getaffinity(0))
WAYS = ("workers:1", "workers:4", "pipeline:8", "pipeline:16")
BARE, ONE, RIVAL = "bare loop", "bare, one image at a time", "MLServer, OIP"
CLIENT = "ours, serve/client.py score: 4 calls of 16"
OVERLOAD = 10


@dataclass(frozen=True)
class Options:
    """What is measured and for how long.

    Attributes:
        models: with random weights where `model_dir` has no NAME.onnx.
        model_dir: folder of NAME.onnx files, and of NAME.int8.onnx for the int8 row; made ones are kept there.
        images: folder of JPEG files; None: the default devkit's.
        count: how many of them.
        mlserver_python: the Python of MLServer's environment; None: without MLServer.
        triton_python: of tritonclient's environment; None: without it.
        server: further options of our server, in one string.
        full: all models, concurrencies and loads, as the published table; otherwise about a minute.
        seconds: of one measurement; 0: 2, or 3 with --full.
        rounds: 0: 1, or 2 with --full.
        port: the first of six for MLServer.
    """

    models: tuple[str, ...] = ("mobilenet_v2", "resnet18")
    model_dir: Path = Path("runs/bench")
    images: Path | None = None
    count: int = 500
    mlserver_python: Path | None = None
    triton_python: Path | None = None
    server: str = ""
    full: bool = False
    seconds: float = 0
    rounds: int = 0
    port: int = 18765


class Bench:
    """One model, and everything that serves it."""

    def __init__(self, options: Options, model: Path, images: Path, work: Path) -> None:
        self.options, self.model, self.images, self.work = options, model, images, work
        self.name = model.name.removesuffix(".onnx")
        self.seconds = options.seconds or (3 if options.full else 2)
        self.rounds = options.rounds or (2 if options.full else 1)
        self.requests = write_requests(sorted(images.iterdir()), self.name, work)
        self.servers: dict[str, Server] = {}
        self.ratios: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.closed: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        self.way = WAYS[0]
        # The rival with its best setting for one call at a time, where that is another one.
        self.lone: Server | None = None

    def bare(self, way: str, seconds: float) -> dict[str, Any]:
        """The loop without a service."""
        arguments = ("--model", self.model, "--images", self.images, "--seconds", seconds, "--way", way)
        return child(sys.executable, "bare.py", *arguments)

    def load(self, server: Server, method: str, *arguments: object) -> dict[str, Any]:
        """A load on a server, with the CPU time that the server spent on each image."""
        before = server.cpu_seconds()
        common = ("--target", server.target, "--method", method, "--requests", self.requests[method])
        result = child(sys.executable, "load.py", *common, *arguments)
        result["cpu"] = (server.cpu_seconds() - before) / max(result["good"] + result["warmed"], 1)
        return result

    def triton(self, server: Server, concurrency: int) -> dict[str, Any]:
        """The closed loop through tritonclient."""
        assert self.options.triton_python is not None  # noqa: S101
        before = server.cpu_seconds()
        common = ("--target", server.target, "--name", self.name, "--images", self.images)
        rest = ("--concurrency", concurrency, "--seconds", self.seconds)
        result = child(self.options.triton_python, "triton_load.py", *common, *rest)
        result["cpu"] = (server.cpu_seconds() - before) / max(result["good"] + result["warmed"], 1)
        return result

    def rival(self, choice: Rival, port: int) -> AbstractContextManager[Server]:
        """MLServer with these settings."""
        python, log = self.options.mlserver_python, self.work / f"mlserver-{port}.log"
        assert python is not None  # noqa: S101
        return mlserver(python, self.model, self.name, choice, port, log)

    def tune_rival(self) -> dict[int, Rival]:
        """The fastest of the rival's settings at 16 calls in flight and at 1."""
        choices = rivals(CORES)
        if not self.options.full:
            return dict.fromkeys((16, 1), choices[0])
        rates: dict[int, dict[Rival, float]] = {16: {}, 1: {}}
        for choice in choices:
            with self.rival(choice, self.options.port) as server:
                for concurrency, found in rates.items():
                    arguments = ("--concurrency", concurrency, "--seconds", self.seconds / 2)
                    found[choice] = self.load(server, INFER, *arguments)["rate"]
            told = ", ".join(f"{found[choice]:.1f} at {concurrency}" for concurrency, found in rates.items())
            print(f"- MLServer {choice}: images/s {told}", flush=True)
        return {
            concurrency: max(found, key=lambda choice: found[choice]) for concurrency, found in rates.items()
        }

    def run(self) -> None:
        """Measure and print."""
        print(f"\n## {self.name}\n", flush=True)
        rates = {way: self.bare(way, self.seconds / 2)["rate"] for way in WAYS}
        self.way = max(rates, key=lambda way: rates[way])
        print(
            "- bare loop: "
            + ", ".join(f"{way} {rate:.1f}" for way, rate in rates.items())
            + f" -> {self.way}"
        )
        best = self.tune_rival() if self.options.mlserver_python else {}
        with ExitStack() as stack:
            ours = our_server(self.model, self.name, self.options.server.split(), self.work / "server.log")
            self.servers["ours"] = stack.enter_context(ours)
            if best:
                self.servers["MLServer"] = stack.enter_context(self.rival(best[16], self.options.port))
                print(f"- MLServer: {best[16]}; for one call at a time: {best[1]}")
                if best[1] != best[16]:
                    self.lone = stack.enter_context(self.rival(best[1], self.options.port + 3))
            cheaper = self.model.with_name(f"{self.name}.int8.onnx")
            if cheaper.is_file():
                int8 = our_server(cheaper, self.name, self.options.server.split(), self.work / "int8.log")
                self.servers["ours int8"] = stack.enter_context(int8)
            for name, server in self.servers.items():
                print(f"- {name}: start to ready {server.ready_s:.1f} s")
            banner = (self.work / "server.log").read_text().strip().replace("\n", "; ")
            print(f"- ours: {self.options.server or 'default options'}; {banner}", flush=True)
            self._same_answers()
            self._closed_loop()
            self._open_loop()

    def _same_answers(self) -> None:
        answers = {}
        for name, server in self.servers.items():
            for method in (SCORE, INFER) if name == "ours" else (INFER,):
                answers[f"{name} {method}"] = first_logits(server.target, method, self.requests[method])
        first = next(iter(answers.values()))
        for name, logit in answers.items():
            if "int8" not in name and not np.abs(logit - first).max() < 1e-3:
                raise InputError(f"{name} answers {logit[:3]}..., ours {first[:3]}...: it does other work")

    def _closed_loop(self) -> None:
        for _ in range(self.rounds):
            for concurrency in (1, 4, 16, 64) if self.options.full else (1, 16):
                self._round(concurrency)
        header = ("closed loop", "calls in flight", "images/s", "of the bare loop", "p50 ms", "p99 ms")
        _row(*header, "server's CPU ms an image", "load's share of a core", head=True)
        for (name, concurrency), results in sorted(
            self.closed.items(), key=lambda item: (item[0][1], item[0][0])
        ):
            middle = {key: _median(results, key) for key in ("rate", "p50", "p99", "cpu", "load_share")}
            ratio, cpu = median(self.ratios[name, concurrency]), _figure(middle["cpu"] * 1000, 1)
            times = (
                _figure(middle["rate"], 1),
                _figure(ratio, 2),
                _figure(middle["p50"], 1),
                _figure(middle["p99"], 1),
            )
            _row(name, concurrency, *times, cpu, _figure(middle["load_share"], 2))
        print()
        own = [result["p50"] - bare["p50"] for result, bare in self._pairs("ours", ONE, 1)]
        print(f"- the service adds {median(own):.1f} ms to the median of one call at a time")
        for name, base in (("ours", RIVAL), ("ours, OIP", RIVAL), ("ours int8, OIP", RIVAL)):
            ratios = {
                concurrency: median(a["rate"] / b["rate"] for a, b in self._pairs(name, base, concurrency))
                for row, concurrency in self.closed
                if row == name and self.closed.get((base, concurrency))
            }
            if ratios:
                told = ", ".join(
                    f"{value:.2f} at {concurrency}" for concurrency, value in sorted(ratios.items())
                )
                print(f"- {name} / {base}: {told}", flush=True)

    def _round(self, concurrency: int) -> None:
        """Everything once at one concurrency, the bare loop first."""
        limit = self.bare(self.way, self.seconds)
        self._note(BARE, concurrency, limit, limit)
        if concurrency == 1:
            self._note(ONE, 1, self.bare("single", self.seconds), limit)
        arguments = ("--concurrency", concurrency, "--seconds", self.seconds)
        for name, server in self.servers.items():
            if name == "ours int8" and concurrency not in (1, 16):
                continue
            if name == "MLServer" and concurrency == 1 and self.lone:
                server = self.lone
            rows = {"ours": SCORE, "ours, OIP": INFER} if name == "ours" else {f"{name}, OIP": INFER}
            for row, method in rows.items():
                self._note(row, concurrency, self.load(server, method, *arguments), limit)
        if self.options.triton_python and concurrency in (1, 16):
            self._note(
                "ours, tritonclient", concurrency, self.triton(self.servers["ours"], concurrency), limit
            )
        if concurrency == 64 and (CLIENT, 64) not in self.closed:
            self._note(CLIENT, 64, self.batch_client(), limit)

    def batch_client(self) -> dict[str, Any]:
        """The command that scores a folder into a file, from its start to its end."""
        server, out = self.servers["ours"], self.work / "scores.parquet"
        command = [sys.executable, str(ROOT / "serve/client.py"), "score", "--server", server.target]
        before, start = server.cpu_seconds(), time.perf_counter()
        done = subprocess.run(
            [*command, "--images", str(self.images), "--out", str(out), "--restart"],
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise InputError(f"serve/client.py failed: {done.stderr.strip()}")
        count = len(list(self.images.iterdir()))
        return {"rate": count / seconds, "cpu": (server.cpu_seconds() - before) / count}

    def _pairs(self, name: str, base: str, concurrency: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Results of two rows in the same rounds."""
        return list(zip(self.closed[name, concurrency], self.closed[base, concurrency], strict=True))

    def _note(self, row: str, concurrency: int, result: dict[str, Any], limit: dict[str, Any]) -> None:
        self.closed[row, concurrency].append(result)
        self.ratios[row, concurrency].append(result["rate"] / limit["rate"])

    def _open_loop(self) -> None:
        header = (
            "open loop, Poisson arrivals",
            "of its capacity",
            "offered/s",
            "answered/s",
            "p50 ms",
            "p99 ms",
        )
        _row(*header, "not answered", "refusal p50 ms", "refusal p99 ms", "load's share of a core", head=True)
        names = [
            name for name in self.servers if name == "ours" or (self.options.full and name == "MLServer")
        ]
        for part in (0.5, 0.8, OVERLOAD) if self.options.full else (0.5, OVERLOAD):
            for name in names:
                method = SCORE if name == "ours" else INFER
                row = (name if name == "ours" else f"{name}, OIP", 16)
                rate = part * _median(self.closed[row], "rate")
                arguments = ("--rate", rate, "--seconds", self.seconds, "--deadline", 10, "--channels", 4)
                result = self.load(self.servers[name], method, *arguments)
                bad = ", ".join(f"{count} {code}" for code, count in sorted(result["bad"].items())) or 0
                times = (rate, result["rate"], result["p50"], result["p99"])
                refusals = [_figure(value, 1) for value in result["refusal"]]
                share = _figure(result["load_share"], 2)
                _row(name, f"{part:g}", *(_figure(value, 1) for value in times), bad, *refusals, share)


def _row(*cells: object, head: bool = False) -> None:
    """A line of a table in Markdown; with `head` the first two."""
    print(("\n" if head else "") + f"| {' | '.join(map(str, cells))} |", flush=True)
    if head:
        print("|" + "---|" * len(cells))


def _median(results: list[dict[str, Any]], key: str) -> float:
    values = [result[key] for result in results if result.get(key) is not None]
    return median(values) if values else float("nan")


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def main(arguments: list[str]) -> int:
    """Prepare, measure each model, print."""
    options = tyro.cli(Options, args=arguments)
    for python in (options.mlserver_python, options.triton_python):
        if python and not python.is_file():
            raise InputError(f"no Python at {python}")
    photos = photographs(options.images, options.count)
    names = list(options.models if options.full else options.models[:1])
    models = make_models(names, photos, options.model_dir)
    load = os.getloadavg()[0]
    size = sum(path.stat().st_size for path in photos) / len(photos) / 1000
    print(f"{CORES} cores, {len(photos)} JPEG files, {size:.0f} KB on average")
    if load > 0.5:
        print(
            f"The machine is not quiet (load {load:.1f}): only the ratios mean something, and those roughly."
        )
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for path in photos:
            shutil.copy(path, images / path.name)
        for model in models:
            Bench(options, model, images, Path(folder)).run()
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
