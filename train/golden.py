"""The golden logits of a model file: what the exported graph gives for `data.golden.golden_image`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from data.golden import golden_image
from data.model_file import ModelInfo
from train.onnx_session import logits, open_model

SEED = 1
# ONNX Runtime's own kernels differ from CPU to CPU and from a CPU to a GPU by up to about 1e-4 in float32.
TOLERANCE = 1e-3


def add_golden(path: Path, tolerance: float = TOLERANCE) -> ModelInfo:
    """Score the golden image with the model file at `path`, at batch 1 on the CPU, and write the logits into it.

    Args:
        path: a model file of ours, written anew in place.
        tolerance: the largest |difference| of a logit at which a server still becomes ready.

    Returns:
        The metadata as it is in the file now.
    """
    import onnx

    session = open_model(path)
    info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
    (logit,) = logits(session, golden_image(info.size, SEED)[None])
    info = replace(
        info,
        golden_seed=SEED,
        golden_logit=tuple(float(value) for value in logit),
        golden_tolerance=tolerance,
    )
    model: Any = onnx.load(path)
    onnx.helper.set_model_props(model, info.to_metadata())
    onnx.save_model(model, path)
    return info
