"""Model files through ONNX Runtime on the CPU: what the export compares, measures and writes into them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.model_file import DISABLED_OPTIMIZERS, INPUT_NAME, LOGIT_NAME

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_BATCH = 16


def open_model(model: Any, threads: int = 0) -> Any:
    """A session on the CPU for a model proto or the path of a model file; threads 0: one a core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Spinning threads take the cores from whatever else runs, and from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
    )


def logits(session: Any, images: Pixels) -> Floats:
    """Score uint8[N, S, S, 3] -> logit float32[N, C]."""
    batches = (np.ascontiguousarray(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH))
    return np.concatenate([session.run([LOGIT_NAME], {INPUT_NAME: batch})[0] for batch in batches])
