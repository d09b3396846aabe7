"""Batch normalisation folded into the convolution before it, in an ONNX graph.

    y = s * (w * x + b - mean) / sqrt(var + eps) + shift   is a convolution with other weights and another bias.

The exporter folds by itself where a weight is used once; a model that also looks at the mirror image uses each
twice. ONNX Runtime would fold those at load, but not once a convolution's output is quantised: there the
normalisation stays, in float32, after an output whose channels span very different ranges. Nodes that share
their weights still share the folded ones.
"""

from typing import Any

import numpy as np


def fold_batch_norms(proto: Any) -> None:
    """Fold every batch normalisation that follows a convolution, in place; the outputs keep their names."""
    import onnx

    graph = proto.graph
    constants = {item.name: item for item in graph.initializer}
    uses: dict[str, int] = {}
    for name in [*(name for node in graph.node for name in node.input), *(o.name for o in graph.output)]:
        uses[name] = uses.get(name, 0) + 1
    producer = {node.output[0]: node for node in graph.node}
    folded: dict[tuple[str, ...], tuple[str, str]] = {}
    gone = []
    for norm in graph.node:
        conv = producer.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        parts = [*(conv.input[1:] if conv else ()), *norm.input[1:]]
        if (
            conv is None
            or conv.op_type != "Conv"
            or uses[norm.input[0]] > 1
            or any(name not in constants for name in parts)
        ):
            continue
        if tuple(parts) not in folded:
            weight, *bias = (onnx.numpy_helper.to_array(constants[name]) for name in conv.input[1:])
            scale, shift, mean, variance = (
                onnx.numpy_helper.to_array(constants[name]).astype(np.float64) for name in norm.input[1:]
            )
            epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
            factor = scale / np.sqrt(variance + epsilon)
            names = (f"{conv.input[1]}.folded.{len(folded)}", f"{norm.input[2]}.folded.{len(folded)}")
            values = (
                weight * factor.reshape(-1, *(1,) * (weight.ndim - 1)),
                shift + factor * ((bias[0] if bias else 0) - mean),
            )
            for name, value in zip(names, values, strict=True):
                graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
            folded[tuple(parts)] = names
        data, output = conv.input[0], norm.output[0]
        del conv.input[:]
        conv.input.extend([data, *folded[tuple(parts)]])
        conv.output[0] = output
        gone.append(norm)
    for norm in gone:
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # of the graph before it was changed
