"""The limit: decode, resize and ONNX Runtime in one process, without a service.

    python benchmarks/serving/bare.py --model m.onnx --images FOLDER --seconds 5 --way pipeline:8

Ways of running it, of which the fastest is the limit:
    pipeline:B   a pool of one decoding thread a core feeds batches of B to one session of one thread a core
    workers:B    one worker a core: each decodes B images and scores them with one thread of a shared session
    single       one image after the other, for the latency: decode, then a session of one thread a core
Prints one line of JSON: images/s, CPU seconds an image, median and 99th percentile in ms (single).
"""

import argparse
import json
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from data.image import load
from data.model_file import DISABLED_OPTIMIZERS, INPUT_NAME, LOGIT_NAME, SCORE_NAME

CORES = len(os.sched_getaffinity(0))


def open_session(model: Path, threads: int) -> Any:
    """A session on the CPU whose threads don't spin: decoding needs the cores."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
    )


def score(session: Any, pixels: list[Any]) -> None:
    """Both outputs of a batch, as the server computes them."""
    session.run([LOGIT_NAME, SCORE_NAME], {INPUT_NAME: np.stack(pixels)})


def pipeline(session: Any, photos: list[bytes], size: int, batch: int, until: float) -> int:
    """Images scored until the clock says `until`; two batches are always being decoded ahead."""
    done = at = 0
    with ThreadPoolExecutor(CORES) as pool:
        ahead: deque[Future[Any]] = deque()
        while time.perf_counter() < until:
            while len(ahead) < 3 * batch:
                ahead.append(pool.submit(load, photos[at % len(photos)], size))
                at += 1
            score(session, [ahead.popleft().result() for _ in range(batch)])
            done += batch
        pool.shutdown(cancel_futures=True)
    return done


def workers(session: Any, photos: list[bytes], size: int, batch: int, until: float) -> int:
    """Images scored until the clock says `until`, by one thread a core that does everything."""
    done = [0] * CORES

    def work(which: int) -> None:
        at = which * len(photos) // CORES
        while time.perf_counter() < until:
            score(session, [load(photos[(at + i) % len(photos)], size) for i in range(batch)])
            at += batch
            done[which] += batch

    threads = [threading.Thread(target=work, args=(which,)) for which in range(CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def main() -> None:
    """Run one way and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--way", default="pipeline:8")
    options = parser.parse_args()
    way, _, batch = options.way.partition(":")
    session = open_session(options.model, 1 if way == "workers" else CORES)
    size = session.get_inputs()[0].shape[1]
    photos = [path.read_bytes() for path in sorted(options.images.iterdir())]
    for _ in range(3):
        score(session, [load(photos[0], size)] * int(batch or 1))
    latency: list[float] = []
    start, used = time.perf_counter(), time.process_time()
    until = start + options.seconds
    if way == "single":
        while time.perf_counter() < until:
            before = time.perf_counter()
            score(session, [load(photos[len(latency) % len(photos)], size)])
            latency.append(time.perf_counter() - before)
        done = len(latency)
    else:
        run = pipeline if way == "pipeline" else workers
        done = run(session, photos, size, int(batch), until)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    p50, p99 = np.percentile(latency, [50, 99]) * 1000 if latency else (None, None)
    print(json.dumps({"rate": done / seconds, "cpu": cpu / max(done, 1), "p50": p50, "p99": p99}))


if __name__ == "__main__":
    main()
