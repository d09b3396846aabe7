"""The load: calls over gRPC from a process of its own, one image in each, answered or refused.

    python benchmarks/serving/load.py --target HOST:PORT --method /tailacc.v1.Scoring/Score --requests FILE
        --concurrency 16 --seconds 5                        closed loop
    python benchmarks/serving/load.py ... --rate 80 --seconds 5     open loop: Poisson arrivals, whatever the answers

It only moves bytes: the requests were written by benchmarks/serve.py and answers are not parsed, so it takes little
of the cores that it shares with the server (its share is in what it prints, one line of JSON), and every server
is loaded by the same code. In the open loop a latency counts from the moment at which the call was due.
"""

import argparse
import asyncio
import json
import random
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np

LARGEST = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def read_requests(path: Path) -> list[bytes]:
    """The messages of a file: each its length in 4 bytes, then its bytes."""
    data, out, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        out.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return out


class Load:
    """Calls on a few connections, and what became of them."""

    def __init__(
        self, target: str, method: str, requests: list[bytes], deadline: float, channels: int
    ) -> None:
        self._requests, self._deadline = requests, deadline
        self._channels = [
            grpc.aio.insecure_channel(target, options=[*LARGEST, ("grpc.use_local_subchannel_pool", 1)])
            for _ in range(channels)
        ]
        self._calls = [channel.unary_unary(method) for channel in self._channels]
        self.good: list[float] = []
        self.bad: dict[str, list[float]] = {}
        self.sent = 0

    async def call(self, due: float) -> None:
        """One call that should have begun at `due`."""
        which, self.sent = self.sent, self.sent + 1
        request: Any = self._requests[which % len(self._requests)]
        try:
            await self._calls[which % len(self._calls)](request, timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            self.bad.setdefault(error.code().name, []).append(time.perf_counter() - due)
        else:
            self.good.append(time.perf_counter() - due)

    async def closed(self, concurrency: int, seconds: float) -> None:
        """`concurrency` callers, each of which waits for its answer before it calls again."""
        until = time.perf_counter() + seconds

        async def caller() -> None:
            while (now := time.perf_counter()) < until:
                await self.call(now)

        await asyncio.gather(*(caller() for _ in range(concurrency)))

    async def open(self, rate: float, seconds: float) -> None:
        """Calls at random times, on average `rate` a second."""
        arrivals = random.Random(0)
        start = due = time.perf_counter()
        running = set()
        while due < start + seconds:
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            task = asyncio.create_task(self.call(due))
            running.add(task)
            task.add_done_callback(running.discard)
            if len(running) % 32 == 0:
                await asyncio.sleep(0)  # where it is late: let the calls begin
            due += arrivals.expovariate(rate)
        await asyncio.gather(*running)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


def percentiles(values: list[float]) -> tuple[float | None, float | None]:
    """Median and 99th percentile in ms."""
    if not values:
        return None, None
    p50, p99 = np.percentile(values, [50, 99]) * 1000
    return float(p50), float(p99)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, load, and say what happened."""
    requests = read_requests(options.requests)
    load = Load(options.target, options.method, requests, options.deadline, options.channels)
    await load.closed(min(options.concurrency, 16), options.warm)
    warmed = len(load.good)
    load.good, load.bad = [], {}
    start, used = time.perf_counter(), time.process_time()
    if options.rate:
        await load.open(options.rate, options.seconds)
    else:
        await load.closed(options.concurrency, options.seconds)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    await load.close()
    p50, p99 = percentiles(load.good)
    refused = load.bad.get("RESOURCE_EXHAUSTED", [])
    return {
        "rate": len(load.good) / seconds,
        "good": len(load.good),
        "warmed": warmed,
        "p50": p50,
        "p99": p99,
        "load_share": cpu / seconds,
        "bad": Counter({code: len(values) for code, values in load.bad.items()}),
        "refusal": percentiles(refused),
    }


def main() -> None:
    """Parse, load, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm", type=float, default=0.5)
    parser.add_argument("--deadline", type=float, default=10)
    parser.add_argument("--channels", type=int, default=1)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
