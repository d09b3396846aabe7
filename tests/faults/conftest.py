"""What the fault drills share: whether they run long, the servers of tests/serve, and what a server says of itself.

`make test` runs the short form, `make drill` (TAILACC_DRILL=long) the long one.
"""

import asyncio
import os
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from tests.serve import conftest as served

# The small models and server processes of tests/serve, whose conftest pytest gives to its own folder alone.
make_model, model_file, encode = served.make_model, served.model_file, served.encode
start_server, free_port, run_async = served.start_server, served.free_port, served.run_async


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether this is the long form."""
    return os.environ.get("TAILACC_DRILL") == "long"


class Watched:
    """A server process with --metrics, seen from outside."""

    def __init__(self, server: object) -> None:
        self.server, self.address, self.pid = server, server.address, server.process.pid
        self.port = int(server.address.rpartition(":")[2])
        end = time.monotonic() + 20
        while not (found := re.search(r"http://(\S+)/metrics", self.log())):
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)
        self._metrics = found[0]

    def log(self) -> str:
        """What it wrote on stderr so far."""
        return "".join(self.server._errors)

    def values(self) -> dict[str, float]:
        """Its metrics: `name{labels}` -> value."""
        text = urllib.request.urlopen(self._metrics, timeout=20).read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def held(self) -> dict[str, float]:
        """What is in flight: requests, images and bytes, and images in the model's queue."""
        return {
            name: value
            for name, value in self.values().items()
            if name.startswith(("tailacc_inflight{", "tailacc_images{")) and value
        }

    def resident(self) -> int:
        """Bytes of memory that it holds."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

    def descriptors(self) -> int:
        """How many files and connections it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        """How many threads it has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    async def empty(self) -> None:
        """Wait until nothing is in flight."""
        while await asyncio.to_thread(self.held):
            await asyncio.sleep(0.05)

    def sane(self) -> None:
        """It runs, and has logged no error of its own."""
        assert self.server.process.poll() is None
        assert "Traceback" not in self.log(), self.log()


@pytest.fixture
def watched(start_server: Callable[..., object]) -> Callable[..., Watched]:
    """Start a server process that is seen from outside."""
    return lambda *options, **where: Watched(start_server("--metrics", "0", *options, **where))


@pytest.fixture
def golden(encode: Callable[..., bytes]) -> Callable[[str], tuple[float, ...]]:
    """Ask a server for the logits of one good image, on a connection of its own."""
    request = pb.ScoreRequest(images=[pb.Image(id="golden", content=encode(7))])

    def ask(address: str) -> tuple[float, ...]:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            answer = scoring_pb2_grpc.ScoringStub(channel).Score(request, timeout=60, wait_for_ready=True)
        assert answer.results[0].status.code == pb.ImageStatus.CODE_OK
        return tuple(answer.results[0].logits)

    return ask
