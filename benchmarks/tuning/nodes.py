"""A Ray cluster of many nodes on this machine, each the processes of one `ray start`, with a token of its own."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PORT = 7399  # below 10000: Ray's workers take their ports above
_SECONDS = 120.0


@contextlib.contextmanager
def nodes(count: int, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of who joins a cluster of `count` nodes of one CPU each, whose head listens on `PORT`.

    Raises:
        RuntimeError: a node did not start.
    """
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(count):
            node = _start(number, folder / f"node-{number}.log", environment)
            started.append(node)
        yield environment
    finally:
        for node in reversed(started):
            family = [*psutil.Process(node.pid).children(recursive=True), node]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            node.wait()


def _start(number: int, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    where = ["--address", f"127.0.0.1:{PORT}"]
    if number == 0:
        where = ["--head", "--port", str(PORT), "--include-dashboard", "false"]
    command = [str(Path(sys.executable).parent / "ray"), "start", *where, "--node-ip-address", "127.0.0.1"]
    command += ["--num-cpus", "1", "--object-store-memory", "100000000", "--block"]
    with log.open("wb") as stream:
        node = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    end = time.monotonic() + _SECONDS
    while "Ray runtime started" not in log.read_text():
        if node.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"a node did not start: {log.read_text()}")
        time.sleep(0.1)
    return node
