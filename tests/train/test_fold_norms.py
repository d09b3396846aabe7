import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from train.fold_norms import fold_batch_norms
from train.onnx_session import open_model

rng = np.random.default_rng(0)
CONSTANTS = {
    "weight": rng.normal(size=(4, 3, 3, 3)),
    "bias": rng.normal(size=4),
    "scale": rng.uniform(0.5, 2, 4),
    "shift": rng.normal(size=4),
    "mean": rng.normal(size=4),
    "variance": rng.uniform(0.1, 3, 4),
}


def convolution(name: str, source: str, *bias: str) -> list[onnx.NodeProto]:
    norm = [f"{name}.conv", "scale", "shift", "mean", "variance"]
    return [
        helper.make_node("Conv", [source, "weight", *bias], [f"{name}.conv"], f"{name}.conv"),
        helper.make_node("BatchNormalization", norm, [name], f"{name}.norm", epsilon=1e-3),
    ]


def model(nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.ModelProto:
    def value(name: str, channels: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, None, None])

    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", 3), value("y", 3)],
        [value(name, 4) for name in outputs],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in CONSTANTS.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def run(proto: onnx.ModelProto) -> list[np.ndarray]:
    images = np.random.default_rng(1).normal(size=(2, 2, 3, 6, 6)).astype(np.float32)
    found: list[np.ndarray] = open_model(proto).run(None, {"x": images[0], "y": images[1]})
    return found


def test_fold_batch_norms__the_same_outputs_and_weights_that_are_shared_stay_so() -> None:
    proto = model(
        [*convolution("a", "x"), *convolution("b", "y"), *convolution("c", "y", "bias")], list("abc")
    )
    wanted = run(proto)
    fold_batch_norms(proto)
    onnx.checker.check_model(proto)
    for one, two in zip(wanted, run(proto), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    a, b, c = proto.graph.node
    assert {node.op_type for node in (a, b, c)} == {"Conv"}
    assert list(a.input[1:]) == list(b.input[1:])
    assert a.input[1] != c.input[1]
    # One weight and one bias for the pair, one of each for the third, and nothing of the old ones.
    assert len(proto.graph.initializer) == 4


def test_fold_batch_norms__what_is_needed_elsewhere_or_follows_no_convolution_stays() -> None:
    second = helper.make_node(
        "BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"], "late"
    )
    proto = model([*convolution("a", "x"), second], ["a.conv", "b"])
    wanted = run(proto)
    fold_batch_norms(proto)
    assert [node.op_type for node in proto.graph.node] == ["Conv", "BatchNormalization", "BatchNormalization"]
    for one, two in zip(wanted, run(proto), strict=True):
        np.testing.assert_array_equal(one, two)
