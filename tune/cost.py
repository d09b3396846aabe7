"""The serving cost of an architecture: what an image takes of one core, in ONNX Runtime.

It depends on backbone, head and image size, not on the weights, so it is measured once for each.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune.points import apply_point
from tune.space import SearchConfig

_BATCH = 8
_ROUNDS = 5


def measure_cost(config: SearchConfig, point: Mapping[str, Any], classes: int) -> float:
    """Milliseconds of one core an image: float32 on the CPU, batches of 8, the best of five rounds.

    Args:
        config: the search.
        point: of which backbone, head and size count.
        classes: C.
    """
    import dataclasses

    import numpy as np

    from data.model_file import INPUT_NAME, LOGIT_NAME
    from train.heads import make_model
    from train.onnx_graph import ServedModel, trace
    from train.onnx_session import open_model

    trial = apply_point(config, point, Path())
    size = trial.data.size
    model = make_model(dataclasses.replace(trial.model, weights="none"), classes, size).eval()
    served = ServedModel(model, (1.0,) * classes, (0.0,) * classes, trial.flip_test)
    images = np.random.default_rng(0).integers(256, size=(_BATCH, size, size, 3), dtype=np.uint8)
    session = open_model(trace(served, images[:2]), threads=1)
    best = float("inf")
    for _ in range(_ROUNDS + 1):  # the first is slower: memory is taken then
        start = time.perf_counter()
        session.run([LOGIT_NAME], {INPUT_NAME: images})
        best = min(best, time.perf_counter() - start)
    return 1000 * best / _BATCH
