"""The closed loop again, through the unmodified tritonclient. It runs in tritonclient's own environment.

PYTHON-WITH-TRITONCLIENT benchmarks/serving/triton_load.py --target HOST:PORT --name MODEL --images FOLDER
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton


async def run(options: argparse.Namespace) -> dict[str, object]:
    """`concurrency` callers on one client, each with one JPEG at a time."""
    photos = [np.array([path.read_bytes()], dtype=np.object_) for path in sorted(options.images.iterdir())]
    latency: list[float] = []
    sent = warmed = 0
    async with triton.InferenceServerClient(options.target) as client:

        async def caller(until: float) -> None:
            nonlocal sent
            while (start := time.perf_counter()) < until:
                image = triton.InferInput("jpeg", [1], "BYTES")
                image.set_data_from_numpy(photos[sent % len(photos)])
                sent += 1
                answer = await client.infer(options.name, [image])
                answer.as_numpy("logit")
                latency.append(time.perf_counter() - start)

        for seconds in (options.warm, options.seconds):
            warmed = len(latency)
            latency.clear()
            start, used = time.perf_counter(), time.process_time()
            await asyncio.gather(*(caller(start + seconds) for _ in range(options.concurrency)))
    taken = time.perf_counter() - start
    p50, p99 = (float(value) for value in np.percentile(latency, [50, 99]) * 1000)
    share = (time.process_time() - used) / taken
    return {
        "rate": len(latency) / taken,
        "good": len(latency),
        "warmed": warmed,
        "p50": p50,
        "p99": p99,
        "load_share": share,
        "bad": {},
    }


def main() -> None:
    """Parse, load, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm", type=float, default=0.5)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
