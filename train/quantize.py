"""A cheaper copy of a model file: int8 (static QDQ of ONNX Runtime) or float16, with the sensitive parts in float32.

    graph = Graph(onnx.load("model.onnx"))
    ranges = measure_ranges(graph, images)["minmax"]
    proto = to_int8(graph, ranges, graph.body)

What is made cheaper is the body: from the first convolutions or matrix products to the last ones, which stay in
float32 as the preprocessing before and the calibration after them do. Weights are int8 for each output
channel, activations uint8 (Jacob et al. 2018, arXiv:1712.05877). The range of an activation is either the smallest
and largest value seen on the calibration images ("minmax"), or that range shrunk to the size that makes the
squared error of rounding and clipping least ("mse"; Banner et al. 2019, arXiv:1810.05723).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME
from train.fold_norms import fold_batch_norms
from train.onnx_session import Floats, Pixels, logits, open_model

Ranges = Mapping[str, tuple[float, float]]

LINEAR = ("Conv", "Gemm", "MatMul")
# What ONNX Runtime's CPU kernels compute in int8 between two of those; anything else stays in float32.
_CHEAP = (*LINEAR, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu")
_ACTIVATIONS = ("Clip", "Relu")
# Values kept of each tensor and image: 256 images and the 100 tensors of a mobilenet_v2 take 0.8 GB.
_SAMPLE = 8192
# Of those, how many the choice of a range looks at.
_SEARCHED = 1 << 17
_SHRINK = np.linspace(0.2, 1, 33)


class Graph:
    """A model file's graph, and which of its nodes may become cheaper.

    Attributes:
        proto: the float32 model with its batch normalisations folded; never changed.
        body: names of the nodes that may be quantised, in topological order.
        layers: of the body, what is worth searching. Each holds the name of a node, then those that do the same with
            the same weights (on the mirror image), then the activations right after them: one that is quantised behind
            a node that is not would round what it is about to clip.
        tensors: names of the activations that go in or out of the body.
    """

    def __init__(self, proto: Any) -> None:
        import onnx

        self.proto = proto = onnx.ModelProto.FromString(proto.SerializeToString())
        fold_batch_norms(proto)
        nodes = list(proto.graph.node)
        # Shapes are computed in the graph too, by nodes of the same kinds on integers.
        known = onnx.shape_inference.infer_shapes(proto).graph
        floats = {
            value.name
            for value in (*known.value_info, *known.output)
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        }
        constants = {item.name for item in proto.graph.initializer}
        producer = {output: node.name for node in nodes for output in node.output}
        # Whether a linear node lies before (after) each node, by name.
        before: dict[str, bool] = {}
        linear_of = {node.name: node.op_type in LINEAR for node in nodes}
        for node in nodes:
            sources = [producer[name] for name in node.input if name in producer]
            before[node.name] = any(before[name] or linear_of[name] for name in sources)
        after = dict.fromkeys(before, False)
        wanted = _needed(nodes)
        for node in reversed(nodes):
            if node.name in wanted:
                for name in node.input:
                    if name in producer:
                        after[producer[name]] |= after[node.name] or linear_of[node.name]
        self.body = [
            node.name
            for node in nodes
            if node.name in wanted
            and node.op_type in _CHEAP
            and node.output[0] in floats
            and after[node.name]
            and (before[node.name] or linear_of[node.name])
        ]
        inside = set(self.body)
        touched = [
            name for node in nodes if node.name in inside for name in (*node.input, *node.output) if name
        ]
        self.tensors = [name for name in dict.fromkeys(touched) if name in producer and name not in constants]

        past = [node for node in nodes if before[node.name] or linear_of[node.name]]
        kinds = {node.name: node.op_type for node in nodes}
        layers = [
            names
            for names in _alike(past, constants)
            if names[0] in inside and kinds[names[0]] in (*LINEAR, "Add", "Mul")
        ]
        after_of: dict[str, list[str]] = {}
        for node in nodes:
            if node.name in inside and node.op_type in _ACTIVATIONS:
                after_of.setdefault(producer.get(node.input[0], ""), []).append(node.name)
        self.layers = [
            (*names, *(active for name in names for active in after_of.get(name, ()))) for names in layers
        ]


def _alike(nodes: Sequence[Any], constants: set[str]) -> list[tuple[str, ...]]:
    """Names of the nodes, those together that compute the same from whatever comes in from outside of `nodes`."""
    number: dict[str, tuple[int, int]] = {}
    groups: dict[Any, list[str]] = {}
    place: dict[Any, int] = {}
    for node in nodes:
        sources = tuple(number.get(name, name if name in constants else "") for name in node.input)
        attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
        key = (node.op_type, attributes, sources)
        groups.setdefault(key, []).append(node.name)
        place.setdefault(key, len(place))
        number |= {output: (place[key], i) for i, output in enumerate(node.output)}
    return [tuple(names) for names in groups.values()]


def measure_ranges(graph: Graph, images: Pixels) -> dict[str, Ranges]:
    """Ranges of the activations over uint8[N, S, S, 3] calibration images, by each method."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph.proto)
    shown = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in graph.tensors
        if name not in shown
    )
    session = open_model(model)
    random = np.random.default_rng(0)
    low, high = dict.fromkeys(graph.tensors, 0.0), dict.fromkeys(graph.tensors, 0.0)
    kept: dict[str, list[Floats]] = {name: [] for name in graph.tensors}
    for start in range(0, len(images), 4):  # small batches: every activation of one is in memory at once
        batch = np.ascontiguousarray(images[start : start + 4])
        for name, value in zip(graph.tensors, session.run(graph.tensors, {INPUT_NAME: batch}), strict=True):
            low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
            flat = value.reshape(-1)
            step = max(1, flat.size // (_SAMPLE * len(batch)))
            kept[name].append(flat[random.integers(step) :: step].copy())
    bounds = {name: (low[name], high[name]) for name in graph.tensors}
    return {
        "minmax": bounds,
        "mse": {name: _least_error(np.concatenate(kept[name]), bounds[name], random) for name in bounds},
    }


def _least_error(
    values: Floats, bounds: tuple[float, float], random: np.random.Generator
) -> tuple[float, float]:
    if len(values) > _SEARCHED:
        values = random.choice(values, _SEARCHED, replace=False)
    if bounds[1] <= bounds[0]:
        return bounds
    errors = []
    for factor in _SHRINK:
        low, high = bounds[0] * factor, bounds[1] * factor
        step = (high - low) / 255
        rounded = np.clip(np.round((values - low) / step), 0, 255) * step + low
        errors.append(float(np.square(rounded - values).mean()))
    best = float(_SHRINK[int(np.argmin(errors))])
    return bounds[0] * best, bounds[1] * best


def to_int8(graph: Graph, ranges: Ranges, quantized: Sequence[str]) -> Any:
    """The model with the nodes `quantized` of the body in int8."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    model = onnx.ModelProto()
    model.CopyFrom(graph.proto)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=not _has_vnni(),
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=list(quantized),
        nodes_to_exclude=[],
        op_types_to_quantize=list(_CHEAP),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def to_float16(graph: Graph) -> Any:
    """The model with its body in float16."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.ModelProto()
    model.CopyFrom(graph.proto)
    body = set(graph.body)
    blocked = [node.name for node in model.graph.node if node.name not in body]
    cheap = ONNXModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=blocked))
    cheap.topological_sort()
    return cheap.model


def sensitivity(graph: Graph, ranges: Ranges, images: Pixels, reference: Floats) -> list[tuple[str, ...]]:
    """The layers of the graph, the most sensitive first.

    That of a layer is the squared error of the logits on uint8[N, S, S, 3] where it alone is quantised, against
    `reference` float32[N, C].
    """
    errors = {
        layer: squared_error(to_int8(graph, ranges, layer), images, reference) for layer in graph.layers
    }
    return sorted(errors, key=lambda layer: (-errors[layer], layer))


def squared_error(proto: Any, images: Pixels, reference: Floats) -> float:
    """Of the model's logits on uint8[N, S, S, 3] against `reference` float32[N, C], the mean over both."""
    return float(np.square(logits(open_model(proto), images) - reference).mean())


def set_calibration(proto: Any, scale: npt.ArrayLike, bias: npt.ArrayLike) -> None:
    """Give the model another line on its logits, in place: score = sigmoid(scale * logit + bias)."""
    import onnx

    needed = _needed(proto.graph.node)
    kept = [node for node in proto.graph.node if node.name in needed]
    make = onnx.helper.make_node
    names = ("calibration.scale", "calibration.bias")
    kept += [
        make("Mul", [LOGIT_NAME, names[0]], ["calibration.scaled"], "calibration.Mul"),
        make("Add", ["calibration.scaled", names[1]], ["calibration.line"], "calibration.Add"),
        make("Sigmoid", ["calibration.line"], [SCORE_NAME], "calibration.Sigmoid"),
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    constants = [item for item in proto.graph.initializer if item.name in used and item.name not in names]
    for name, values in zip(names, (scale, bias), strict=True):
        constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(constants)
    del proto.graph.value_info[:]  # of the model before it was changed


def _needed(nodes: Sequence[Any]) -> set[str]:
    """Names of the nodes that the logits depend on; `nodes` in topological order."""
    names, found = {LOGIT_NAME}, set()
    for node in reversed(nodes):
        if names.intersection(node.output):
            found.add(node.name)
            names.update(node.input)
    return found


def _has_vnni() -> bool:
    """Whether int8 products add up exactly here: an x86 core without VNNI needs weights of 7 bits, or it saturates."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.is_file() else ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not flags or any(name in flags.split() for name in ("avx512_vnni", "avx_vnni"))
