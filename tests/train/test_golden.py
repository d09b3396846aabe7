from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from data.golden import golden_image
from data.image import fingerprint
from data.model_file import ModelInfo
from train.golden import SEED, TOLERANCE, add_golden


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model whose logits are three times the mean of each channel."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "three"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("logit", "score")],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(np.array(3, np.float32), "three"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    numbers = (1.0,) * 3
    info = ModelInfo("m", ("a", "b", "c"), 8, fingerprint(8), numbers, numbers, (0.5,) * 3)
    helper.set_model_props(model, info.to_metadata())
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_add_golden__writes_the_logits_and_changes_nothing_else(path):
    before = onnx.load(path)
    info = add_golden(path)
    wanted = 3 * golden_image(8, SEED).astype(np.float64).mean(axis=(0, 1))
    np.testing.assert_allclose(info.golden_logit, wanted, rtol=1e-6)
    assert (info.golden_seed, info.golden_tolerance) == (SEED, TOLERANCE)
    after = onnx.load(path)
    assert after.graph == before.graph
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, "m") == info


def test_add_golden__a_wider_tolerance(path):
    assert add_golden(path, 0.25).golden_tolerance == 0.25
