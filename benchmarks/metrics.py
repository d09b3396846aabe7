"""Times average precision against scikit-learn and against the sorts alone, and the bootstrap.

python benchmarks/metrics.py                              # 100,000 images x 20 classes
python benchmarks/metrics.py --images 1000000 --classes 80
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro
from sklearn.metrics import average_precision_score

from eval.intervals import bootstrap
from eval.metrics import average_precision
from eval.ranking import rankings


@dataclass(frozen=True)
class Options:
    """Size of the drawn data and what to time on it."""

    images: int = 100_000
    """Images N."""
    classes: int = 20
    """Classes C; one pair in 20 is positive, one in 50 ignored."""
    repeats: int = 3
    """Repeats of each timing; the best counts."""
    replicates: int = 20
    """Bootstrap replicates (time is proportional to them)."""


def timed(call: Callable[[], object], repeats: int) -> float:
    """Best wall-clock seconds of `repeats` calls."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Draw the data, time each way, and print seconds and ratios."""
    options = tyro.cli(Options, description=__doc__)
    rng = np.random.default_rng(0)
    shape = (options.images, options.classes)
    logit = rng.standard_normal(shape, dtype=np.float32)
    target = (rng.random(shape, dtype=np.float32) < 0.05).astype(np.uint8)
    mask = (rng.random(shape, dtype=np.float32) >= 0.02).astype(np.uint8)
    logit += target

    def by_scikit_learn() -> list[float]:
        columns = range(options.classes)
        valid = [mask[:, c] == 1 for c in columns]
        return [float(average_precision_score(target[valid[c], c], logit[valid[c], c])) for c in columns]

    def sorts_alone() -> None:
        for column in np.ascontiguousarray(logit.T):
            np.sort(column)

    ours = timed(lambda: average_precision(logit, target, mask, kind="sklearn"), options.repeats)
    headline = timed(lambda: average_precision(logit, target, mask), options.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sorts = timed(sorts_alone, options.repeats)
    theirs = timed(by_scikit_learn, 1)
    gap = np.abs(average_precision(logit, target, mask, kind="sklearn") - by_scikit_learn()).max()
    ranked = list(rankings(logit, target, mask))
    sampled = timed(lambda: bootstrap(ranked, options.images, replicates=options.replicates), 1)

    print(f"{options.images} images x {options.classes} classes, best of {options.repeats}")
    print(f"average precision, scikit-learn's definition   {ours:8.3f} s")
    print(f"average precision, VOC 2010                    {headline:8.3f} s")
    print(f"sorts of the float32 scores alone              {sorts:8.3f} s   ours / sorts {ours / sorts:.2f}")
    print(
        f"a loop of average_precision_score              {theirs:8.3f} s   theirs / ours {theirs / ours:.2f}"
    )
    print(f"largest difference between the two             {gap:.1e}")
    print(f"bootstrap of three APs, {options.replicates} replicates         {sampled:8.3f} s")
    print(f"peak memory after the average precisions       {peak:8.2f} GiB")


if __name__ == "__main__":
    main()
