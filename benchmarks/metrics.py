"""Times average precision against scikit-learn and against the sorts alone, and the bootstrap; and the peak memory.

python benchmarks/metrics.py                              # 100,000 images x 20 classes
python benchmarks/metrics.py --images 1000000 --classes 80 --repeats 1
"""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro
from sklearn.metrics import average_precision_score

from eval.intervals import bootstrap
from eval.metrics import average_precision, tailacc, tailacc_absolute
from eval.ranking import in_threads, rankings


@dataclass(frozen=True)
class Options:
    """Size of the drawn data and what to time on it."""

    images: int = 100_000
    """Images N."""
    classes: int = 20
    """Classes C; one pair in 20 is positive, one in 50 ignored."""
    repeats: int = 3
    """Repeats of each timing; the best counts."""
    replicates: int = 16
    """Bootstrap replicates (time is proportional to them)."""


def timed(call: Callable[[], object], repeats: int) -> float:
    """Best wall-clock seconds of `repeats` calls."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def peak() -> float:
    """GiB of memory that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Draw the data, time each way, and print seconds and ratios."""
    options = tyro.cli(Options, description=__doc__)
    rng = np.random.default_rng(0)
    shape = (options.images, options.classes)
    logit = rng.standard_normal(shape, dtype=np.float32)
    target = np.empty(shape, np.uint8)
    mask = np.empty(shape, np.uint8)
    for c in range(options.classes):
        target[:, c] = rng.random(options.images, dtype=np.float32) < 0.05
        mask[:, c] = rng.random(options.images, dtype=np.float32) >= 0.02
    logit += target
    base = peak()

    def by_scikit_learn() -> list[float]:
        columns = range(options.classes)
        valid = [mask[:, c] == 1 for c in columns]
        return [float(average_precision_score(target[valid[c], c], logit[valid[c], c])) for c in columns]

    ours = timed(lambda: average_precision(logit, target, mask, kind="sklearn"), options.repeats)
    headline = timed(lambda: average_precision(logit, target, mask), options.repeats)
    average_peak = peak()

    start = time.perf_counter()
    ranked = list(rankings(logit, target, mask))
    curves = {"relative": tailacc(ranked), "absolute": tailacc_absolute(ranked)}
    tails = time.perf_counter() - start
    sampled = timed(lambda: bootstrap(ranked, options.images, curves, options.replicates), 1)
    bootstrap_peak = peak()

    columns = np.ascontiguousarray(logit.T)
    keys = np.empty(columns.shape, np.uint64)
    for c, column in enumerate(columns):
        keys[c] = rng.permutation(options.images).astype(np.uint64) << np.uint64(32) | column.view(np.uint32)
    alone = timed(
        lambda: list(in_threads(lambda c: np.sort(columns[c]), options.classes, options.images)),
        options.repeats,
    )
    words = timed(
        lambda: list(in_threads(lambda c: np.sort(keys[c]), options.classes, options.images)), options.repeats
    )

    theirs: list[float] = []
    loop = timed(lambda: theirs.extend(by_scikit_learn()), 1)
    gap = np.abs(average_precision(logit, target, mask, kind="sklearn") - theirs).max()

    cores = len(os.sched_getaffinity(0))
    print(f"{options.images} images x {options.classes} classes, {cores} cores, best of {options.repeats}")
    print(f"average precision, scikit-learn's definition   {ours:8.3f} s")
    print(f"average precision, VOC 2010                    {headline:8.3f} s")
    print(f"a loop of average_precision_score              {loop:8.3f} s   theirs / ours {loop / ours:.2f}")
    print(f"sorts of the float32 scores alone, threaded    {alone:8.3f} s   ours / sorts {ours / alone:.2f}")
    print(f"sorts of uint64 (score, image, truth), threaded{words:8.3f} s   ours / sorts {ours / words:.2f}")
    print(f"largest difference between the two             {gap:.1e}")
    print(f"rankings and two Tailacc curves                {tails:8.3f} s")
    per = sampled / (options.images * options.classes * options.replicates)
    print(
        f"bootstrap, {options.replicates} replicates, 3 APs, 2 curves     {sampled:8.3f} s   {1e9 * per:.2f} ns a pair"
    )
    print(
        f"peak memory, GiB: {base:.2f} with the data, {average_peak:.2f} after the average precisions, "
        f"{bootstrap_peak:.2f} after the bootstrap"
    )


if __name__ == "__main__":
    main()
