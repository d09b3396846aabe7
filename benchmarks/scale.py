"""Images/s of the plain server and of Ray Serve with one and two replicas, one after the other, by the same load.

    python benchmarks/scale.py --model model.onnx --images DIR                 the folder's images, three rounds each
    python benchmarks/scale.py --model model.onnx --images DIR --rounds 1      a short look

The load is `serve/client.py score`, its start included. Each replica has one core and the plain server all, so on two
cores two replicas, the proxy and the client share what the plain server shares with the client alone: this shows what
the proxy costs there, and nothing of how replicas on machines of their own scale.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def served(*command: str) -> Iterator[str]:
    """Run a server; its address."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("ready "):
            raise SystemExit(f"error: {' '.join(command)} did not become ready")
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def images_per_second(address: str, images: str, folder: Path) -> float:
    """Score the folder once."""
    out = folder / "scores.parquet"
    command = [
        sys.executable,
        str(ROOT / "serve/client.py"),
        "score",
        "--server",
        address,
        "--images",
        images,
    ]
    began = time.monotonic()
    subprocess.run([*command, "--out", str(out), "--restart"], check=True, capture_output=True)
    seconds = time.monotonic() - began
    return sum(path.suffix in (".jpg", ".png") for path in Path(images).iterdir()) / seconds


def main() -> None:
    """Print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="an ONNX file")
    parser.add_argument("--images", required=True, help="a folder of .jpg and .png files")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    common = ("--model", options.model, "--listen", "127.0.0.1:0", "--device", "cpu")
    kinds = {"plain server": (str(ROOT / "serve/server.py"), *common)}
    for count in ("1", "2"):
        kinds[f"Ray Serve, {count} replicas"] = (
            str(ROOT / "serve/ray_app.py"),
            *common,
            "--replicas",
            count,
            count,
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, command in kinds.items():
            with served(*command) as address:
                rates = [
                    images_per_second(address, options.images, Path(folder)) for _ in range(options.rounds)
                ]
            print(
                f"{name}: median {statistics.median(rates):.1f} images/s of {len(rates)} rounds", flush=True
            )


if __name__ == "__main__":
    main()
