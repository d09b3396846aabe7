"""The scoring server: ONNX Runtime behind gRPC.

    python serve/server.py                                        models:/tailacc@champion on 127.0.0.1:8001
    python serve/server.py --model model.onnx --listen 0.0.0.0:8001 --device cpu

Prints a banner on stderr and one line `ready HOST:PORT` on stdout once it serves. SIGTERM or Ctrl-C drains
and stops it; a second one stops at once.
"""

import asyncio

import tyro

from data.cli import run
from serve.config import ServerConfig


def main(argv: list[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    config = tyro.cli(ServerConfig, args=argv, description=__doc__)
    # Imported here: `--help` should not wait for gRPC and ONNX Runtime.
    from serve.lifecycle import serve

    return asyncio.run(serve(config, lambda address: print(f"ready {address}", flush=True)))


def cli() -> None:
    """The console script."""
    raise SystemExit(run(main))


if __name__ == "__main__":
    cli()
