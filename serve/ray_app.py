"""The scoring service as a Ray Serve deployment: replicas on one machine or a cluster, behind Ray's gRPC proxies.

    python serve/ray_app.py --model models:/tailacc@champion --listen 127.0.0.1:9000 --replicas 1 4 --address auto
    python serve/ray_app.py --model model.onnx --replicas 1 1                       a Ray of its own, on this machine

Prints one line `ready HOST:PORT` on stdout once it serves. SIGTERM or Ctrl-C ends the deployment, and Ray Serve on
that cluster with it.
"""

import tyro

from data.cli import run
from serve.scale_config import ScaleConfig


def main(argv: list[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    config = tyro.cli(ScaleConfig, args=argv, description=__doc__)
    # Imported here: `--help` should not wait for Ray.
    from serve.scaling import run_cluster

    return run_cluster(config, lambda address: print(f"ready {address}", flush=True))


def cli() -> None:
    """The console script."""
    raise SystemExit(run(main))


if __name__ == "__main__":
    cli()
