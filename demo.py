"""The whole chain on one machine, step by step, with the time of each: what `make demo` runs.

    python demo.py                                 synthetic images
    python demo.py --voc DEVKIT --weights PATH     real ones, with weights for torchvision's mobilenet_v2

Every step is the command that a user types, and is printed before it runs. All results go to runs/demo/<time>.
"""

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from data.cache import open_cache
from data.cli import run
from data.errors import InputError
from data.voc import SYNTHETIC_ROOT, read_voc

_NAME = "tailacc-demo"  # of the registered model


@dataclass(frozen=True)
class DemoOptions:
    """Run the whole chain.

    Attributes:
        voc: a real devkit, the folder that holds VOC2012/; None: the synthetic one.
        weights: ImageNet weights of torchvision's mobilenet_v2, "imagenet" to download them, or "none".
        epochs: of each trial.
    """

    voc: Path | None = None
    weights: str = "none"
    epochs: int | None = None


@dataclass
class Demo:
    """The steps, and what each took.

    Attributes:
        out: where everything goes.
        seconds: step name -> wall time in seconds.
    """

    out: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, name: str, *command: str) -> None:
        """Run one command of ours with this Python; a failure ends the demo."""
        self._say(name, command)
        start = time.monotonic()
        code = subprocess.run(_python(command), check=False).returncode
        self.seconds[name] = time.monotonic() - start
        if code:
            raise InputError(f"step '{name}' ended with exit code {code}; its output is above")

    def serve(self, *command: str) -> tuple[subprocess.Popen[str], str]:
        """Start the server and wait for its line `ready HOST:PORT`."""
        self._say("server", command)
        start = time.monotonic()
        server = subprocess.Popen(_python(command), stdout=subprocess.PIPE, text=True)
        line = server.stdout.readline() if server.stdout else ""
        self.seconds["server start"] = time.monotonic() - start
        if not line.startswith("ready "):
            raise InputError(f"the server ended with exit code {server.wait()}; its output is above")
        print(line, end="", flush=True)
        return server, line.split()[1]

    def _say(self, name: str, command: tuple[str, ...]) -> None:
        print(f"\n== {name}\n$ python {shlex.join(command)}", flush=True)


def main(arguments: list[str]) -> int:
    """Run every step, then print the times and where the results are."""
    options = tyro.cli(DemoOptions, args=arguments, prog="demo.py")
    demo = Demo(Path("runs/demo") / time.strftime("%Y%m%d-%H%M%S"))
    root = options.voc or SYNTHETIC_ROOT
    if options.voc is None and not root.is_dir():
        demo.step("devkit", "data/synthetic.py", "--out", str(root))
    search, size = _search_flags(options)
    # A name of its own, whose champion is always this demo's: a user's champion stays as it is.
    search += ["--search.register", _NAME, "--search.promote", "always"]
    _cache(demo, root, size)
    model = demo.out / "search" / "model.onnx"
    demo.step(
        "search", "tune/search.py", "--data.root", str(root), "--out", str(demo.out / "search"), *search
    )
    server, address = demo.serve(
        "serve/server.py", "--model", f"models:/{_NAME}@champion", "--listen", "127.0.0.1:0"
    )
    scores, images = demo.out / "scores.parquet", demo.out / "val.txt"
    try:
        images.write_text("".join(f"{path.absolute()}\n" for path in read_voc(root, "val").paths))
        demo.step(
            "client",
            "serve/client.py",
            "score",
            "--server",
            address,
            "--images",
            str(images),
            "--out",
            str(scores),
        )
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    report = demo.out / "report"
    demo.step(
        "report",
        "eval/report.py",
        "--scores",
        str(scores),
        "--data",
        str(root),
        "--split",
        "val",
        "--out",
        str(report),
    )
    print("\n== time of each step")
    for name, seconds in demo.seconds.items():
        print(f"{name:<14}{seconds:7.1f} s")
    print(f"{'all':<14}{sum(demo.seconds.values()):7.1f} s")
    print(f"\nmodel    {model}\nscores   {scores}\nreport   {report / 'report.html'}")
    print("compare the runs:  .venv/bin/mlflow ui      (then open the printed address)")
    return 0


def _python(command: tuple[str, ...]) -> list[str]:
    """The command for this Python, whose script lies beside this file whatever the current folder is."""
    script, *flags = command
    return [sys.executable, str(Path(__file__).resolve().parent / script), *flags]


def _search_flags(options: DemoOptions) -> tuple[list[str], int]:
    """The search's flags and the size of its images in pixels."""
    epochs = ["--schedule.epochs", str(options.epochs)] if options.epochs else []
    if options.voc is None:
        return ["--preset", "quick", *epochs], 64
    # Real photographs: a pre-trained network beside one from scratch, few epochs at a small size.
    backbones = [f"mobilenet_v2={options.weights}", "tiny_resnet"]
    space = [
        "--space.backbone",
        *backbones,
        "--space.lr",
        "1e-3",
        "3e-3",
        "--space.backbone-lr-ratio",
        "0.2",
        "0.5",
    ]
    epochs = epochs or ["--schedule.epochs", "3"]
    return ["--preset", "quick", "--data.size", "128", "--batch-size", "32", *epochs, *space], 128


def _cache(demo: Demo, root: Path, size: int) -> None:
    """Decode the training images once, before the trials share them."""
    print("\n== cache", flush=True)
    start = time.monotonic()
    open_cache(read_voc(root, "train"), size, Path("runs/cache"))
    demo.seconds["cache"] = time.monotonic() - start


if __name__ == "__main__":
    sys.exit(run(main))
