import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from data.errors import InputError
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, Gate, ModelInfo
from eval.calibration import fit_thresholds
from train import cheaper, export, quantize
from train.cheaper import Judged
from train.config import ModelConfig, ScheduleConfig, TrainConfig
from train.heads import make_model
from train.loop import fit
from train.onnx_graph import export_onnx
from train.onnx_session import logits, open_model
from train.publish import Exported, export_run
from train.quantize import Graph

PASSES, FAILS = 1.0, -1.0


_trained: list[Exported] = []  # by the first test that needs it: two epochs and an export take seconds


@pytest.fixture
def exported(
    smoke: TrainConfig,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Exported:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cheaper, "CALIBRATION_IMAGES", 32)
    if not _trained:
        run = tmp_path_factory.mktemp("trained") / "run"
        fit(dataclasses.replace(smoke, schedule=ScheduleConfig(epochs=2), out=run))
        _trained.append(export_run(run, run / "m.onnx"))
    shutil.copy(_trained[0].path, tmp_path / "m.onnx")
    return dataclasses.replace(_trained[0], path=tmp_path / "m.onnx")


def selection(exported: Exported) -> np.ndarray:
    return np.ascontiguousarray(exported.examples.cache.pixels[exported.examples.selection])


@pytest.mark.parametrize(("precision", "kind"), [("int8", "INT8"), ("fp16", "FLOAT16")])
def test_export_cheaper__is_calibrated_anew_and_says_what_it_is(
    exported: Exported, precision: cheaper.Cheap, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cheaper, "LIMIT", PASSES)
    made = cheaper.export_cheaper(exported, precision, "platt")
    assert made.path == exported.path.with_name(f"m.{precision}.onnx")
    session = open_model(made.path)
    info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, "m")
    assert info == made.info
    assert info.precision == {"int8": "int8", "fp16": "float16"}[precision]
    gate = Gate(**info.gate)
    assert gate == made.gate
    assert (gate.precision, gate.images) == (info.precision, len(exported.examples.selection))
    assert gate.float32_hash == hashlib.sha256(exported.path.read_bytes()).hexdigest()
    assert gate.bytes_float32 == exported.path.stat().st_size
    assert abs(gate.bytes - made.path.stat().st_size) < 2000
    assert 0 == gate.layers_left < gate.layers
    # The interface is that of the float32 file, and the scores are the new calibration of its own logits.
    assert [(i.name, i.type) for i in session.get_inputs()] == [(INPUT_NAME, "tensor(uint8)")]
    assert [o.type for o in session.get_outputs()] == ["tensor(float)"] * 2
    pixels, index = selection(exported), exported.examples.selection
    logit, score = session.run([LOGIT_NAME, SCORE_NAME], {INPUT_NAME: pixels})
    line = np.array(info.scale) * logit + np.array(info.bias)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-line)), atol=1e-5)
    labels = exported.examples.labels
    wanted = fit_thresholds(score, labels.target[index], labels.mask[index], "f1")
    np.testing.assert_allclose(info.thresholds, wanted, atol=1e-4)
    # It computes nearly what the float32 model does, but not with its numbers.
    first = logits(open_model(exported.path), pixels)
    assert 0 < np.abs(logit - first).max() < 0.2 * first.std()
    kinds = {item.data_type for item in onnx.load(made.path).graph.initializer}
    assert onnx.TensorProto.DataType.Value(kind) in kinds
    assert {path.name for path in exported.path.parent.glob("m.*")} == {"m.onnx", f"m.{precision}.onnx"}
    said = "\n".join(cheaper.describe_cheaper(made))
    assert ("On a CPU it brings nothing but a smaller file" in said) == (precision == "fp16")


def test_export_cheaper__below_the_gate_nothing_is_written_and_an_older_copy_goes(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cheaper, "LIMIT", FAILS)
    old = exported.path.with_name("m.fp16.onnx")
    old.write_bytes(b"of an earlier model")
    with pytest.raises(
        InputError, match=r"mAP on the \d+ images .* is 0\.\d{4} in float32 and 0\.\d{4} in fp16"
    ):
        cheaper.export_cheaper(exported, "fp16")
    assert {path.name for path in exported.path.parent.glob("m.*")} == {"m.onnx"}


def test_main__precision_writes_both_and_prints_the_gate(
    exported: Exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cheaper, "LIMIT", PASSES)
    assert export.main(["--run", str(_trained[0].path.parent), "--out", "n.onnx", "--precision", "int8"]) == 0
    printed = capsys.readouterr().out
    assert Path("n.onnx").is_file()
    assert "cheaper    n.int8.onnx" in printed
    assert "gate       mAP on the" in printed
    assert "next       python serve/server.py --model n.int8.onnx" in printed


def test_search_int8__leaves_ever_more_nodes_until_the_gate_opens(exported: Exported) -> None:
    graph = Graph(onnx.load(exported.path))
    images = np.ascontiguousarray(exported.examples.cache.pixels[:16])
    seen: list[int] = []

    def judge(proto: Any) -> Judged:
        seen.append(sum(node.op_type == "QuantizeLinear" for node in proto.graph.node))
        return Judged(None, 0.5 if len(seen) < 2 else 0.9, np.nan)

    before = Judged(None, 0.9, np.nan)
    found = cheaper._search_int8(graph, images, before, judge)
    assert len(found.left) == 1
    assert found.left[0] in graph.layers
    assert seen[1] < seen[0]
    # Where it never opens, the best that was seen comes back, for the message.
    worst = cheaper._search_int8(graph, images, before, lambda proto: Judged(None, 0.1, np.nan))
    assert (worst.judged.map, worst.left) == (0.1, ())


def test_judged__a_loss_over_the_frequent_classes_counts_even_where_rare_ones_gain() -> None:
    first = Judged(None, 0.5, 0.9)
    assert first.fall(Judged(None, 0.51, 0.88)) == pytest.approx(0.02)
    assert first.fall(Judged(None, 0.49, 0.91)) == pytest.approx(0.01)
    assert Judged(None, 0.5, np.nan).fall(Judged(None, 0.6, np.nan)) == pytest.approx(-0.1)


@given(st.integers(1, 80), st.integers(0, 100))
def test_fewest__is_the_smallest_count_that_passes(most: int, needed: int) -> None:
    asked: list[int] = []

    def passes(count: int) -> bool:
        asked.append(count)
        return count >= needed

    assert cheaper.fewest(passes, most) == (needed if needed <= most else None)
    assert len(asked) == len(set(asked)) <= 2 + 2 * most.bit_length()
    assert max(asked) <= most


def test_sensitivity__a_node_with_a_ruined_range_moves_ahead(exported: Exported) -> None:
    graph = Graph(onnx.load(exported.path))
    images = np.ascontiguousarray(exported.examples.cache.pixels[:16])
    ranges = dict(quantize.measure_ranges(graph, images)["minmax"])
    reference = logits(open_model(graph.proto), images)
    before = quantize.sensitivity(graph, ranges, images, reference)
    assert set(before) == set(graph.layers)
    victim = graph.layers[-1]
    # Of the layer's last node, which is what is quantised: a convolution's own output, before its ReLU, is not.
    (output,) = next(node for node in graph.proto.graph.node if node.name == victim[-1]).output
    error = quantize.squared_error(quantize.to_int8(graph, ranges, victim), images, reference)
    ranges[output] = (0.0, 1e-3)  # clips nearly all of it
    ruined = quantize.squared_error(quantize.to_int8(graph, ranges, victim), images, reference)
    assert ruined > error
    # Not always the first: on a CPU without VNNI the sums of int8 saturate, and another layer's error may be larger.
    after = quantize.sensitivity(graph, ranges, images, reference)
    assert after.index(victim) <= before.index(victim)
    assert after.index(victim) < len(after) // 2


def test_graph__body_is_floating_and_ends_before_the_last_linear(exported: Exported) -> None:
    graph = Graph(onnx.load(exported.path))
    nodes = {node.name: node for node in graph.proto.graph.node}
    linear = [node.name for node in graph.proto.graph.node if node.op_type in quantize.LINEAR]
    assert set(linear) - set(graph.body) == {linear[-1]}
    assert graph.body[0] == linear[0]  # the preprocessing stays in float32
    produced_late = {
        output for node in graph.proto.graph.node for output in node.output if "Sigmoid" in node.op_type
    }
    assert not any(produced_late.intersection(nodes[name].output) for name in graph.body)


def test_graph__a_layer_is_a_node_of_the_image_and_the_same_of_its_mirror_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model(ModelConfig(backbone="tiny_resnet", weights="none"), 3, 32)
    nn.init.normal_(model.head.linear.weight)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3)).astype(np.uint8)
    graphs = []
    for flip in (False, True):
        info = ModelInfo("m", ("a", "b", "c"), 32, "p", (1.0,) * 3, (0.0,) * 3, (0.5,) * 3, flip=flip)
        export_onnx(model, info, pixels, tmp_path / "m.onnx")
        graphs.append(Graph(onnx.load(tmp_path / "m.onnx")))
    plain, flipped = graphs
    assert len(plain.layers) == len(flipped.layers)
    kinds = {node.name: node.op_type for node in flipped.proto.graph.node}
    for one, two in zip(plain.layers, flipped.layers, strict=True):
        assert len(two) == 2 * len(one)
        assert kinds[two[0]] == kinds[two[1]]
    # A convolution goes back to float32 with what clips its output.
    activations = {name for name, kind in kinds.items() if kind == "Relu" and name in flipped.body}
    assert activations
    assert activations <= {name for layer in flipped.layers for name in layer}
    assert not any(node.op_type == "BatchNormalization" for node in flipped.proto.graph.node)
    first = logits(open_model(tmp_path / "m.onnx"), pixels)
    np.testing.assert_allclose(logits(open_model(flipped.proto), pixels), first, atol=1e-4)


def test_least_error__narrows_a_range_that_few_values_reach() -> None:
    random = np.random.default_rng(0)
    even = random.uniform(0, 1, 100_000).astype(np.float32)
    assert quantize._least_error(even, (0.0, 100.0), random) == (
        0.0,
        pytest.approx(20),
    )  # the narrowest tried
    assert quantize._least_error(even, (0.0, 1.0), random)[1] > 0.95


def test_to_int8__a_layer_left_in_float32_is_computed_with_its_own_weights(tmp_path: Path) -> None:
    """ONNX Runtime's own optimiser would give it int8 weights, without regard to what they are."""
    torch.manual_seed(0)

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)
            with torch.no_grad():
                self.middle.weight *= torch.logspace(-2, 1, 8)[:, None, None, None]

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.first(image.permute(0, 3, 1, 2).float() / 255).relu()
            x = self.last(self.middle(x).clip(0, 6)).relu()
            logit = self.head(x.mean((2, 3)))
            return logit, logit.sigmoid()

    path = tmp_path / "between.onnx"
    torch.onnx.export(
        Between().eval(),
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8),),
        str(path),
        input_names=[INPUT_NAME],
        output_names=[LOGIT_NAME, SCORE_NAME],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    graph = Graph(onnx.load(path))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    ranges = quantize.measure_ranges(graph, images)["minmax"]
    convolutions = [node.name for node in graph.proto.graph.node if node.op_type == "Conv"]
    middle = next(names for names in graph.layers if convolutions[1] in names)
    proto = quantize.to_int8(graph, ranges, [name for name in graph.body if name not in middle])

    import onnxruntime

    def run(**options: Any) -> np.ndarray:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"], **options
        )
        return np.asarray(session.run([LOGIT_NAME], {INPUT_NAME: images})[0])

    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    written = run(sess_options=plain)
    np.testing.assert_allclose(logits(open_model(proto), images), written, atol=1e-6)
    assert np.abs(run() - written).max() > 1e-5, "ONNX Runtime no longer needs to be told"
