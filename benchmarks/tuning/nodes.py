"""A Ray cluster whose nodes are groups of processes of this machine, and their sudden end. The tests use it too."""

import contextlib
import os
import secrets
import socket
import sys
import time
from pathlib import Path

import psutil

_SECONDS = 120.0  # for a node to start, on a machine that starts several


class Cluster:
    """No node yet. What joins needs `environment`, since the cluster has a token of its own.

    Args:
        folder: for the token and the nodes' logs.

    Attributes:
        address: HOST:PORT of the head.
        environment: of whoever joins it.
        nodes: those that were started.
    """

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        with socket.socket() as probe:  # below 10000: Ray's workers take their ports above
            self._port = next(p for p in range(7300, 9900) if probe.connect_ex(("127.0.0.1", p)))
        self.address = f"127.0.0.1:{self._port}"
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self._folder = folder
        self.nodes: list[psutil.Process] = []

    def start(self, *flags: str) -> psutil.Process:
        """One more node, the first one as head; returns once it belongs to the cluster.

        Raises:
            RuntimeError: it did not start; the message has its log.
        """
        where = ["--address", self.address]
        if not self.nodes:
            where = ["--head", "--port", str(self._port), "--include-dashboard", "false"]
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            *where,
            "--node-ip-address",
            "127.0.0.1",
        ]
        command += ["--disable-usage-stats", "--object-store-memory", "100000000", "--block", *flags]
        log = self._folder / f"node-{len(self.nodes)}.log"
        with log.open("w") as stream:
            node = psutil.Popen(command, env=self.environment, stdout=stream, stderr=stream)
        self.nodes.append(node)
        end = time.monotonic() + _SECONDS
        while "Ray runtime started" not in log.read_text():
            if node.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"a node did not start: {log.read_text()}")
            time.sleep(0.1)
        return node

    def stop(self) -> None:
        """All nodes, the head last."""
        for node in reversed(self.nodes):
            kill_family(node)


def kill_family(process: psutil.Process) -> None:
    """What a machine that goes down takes with it: the process and all that it started, at once. None may be left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=10)
