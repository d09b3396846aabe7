"""The gate of the cheaper models: a second model file is written only where it ranks as well as the first.

The mAP (VOC 2010) of both on the selection part is taken from ONNX Runtime itself, which is what the server runs.
Everything else is chosen on images of the training part: how the ranges are found, and the order in which layers
go back to float32. The selection part is asked for none of them, then for 1, 2, 4 ... until one passes, and then
in between for the fewest that do.

The fall must be small over all classes and over those with ten positives or more there: where many are rare, the
chance of single images hides a real loss. (A mobilenet_v2 in int8 lost 0.3 points on the 258 images of its selection
part, which showed 14 classes next to never, and 2.1 on 500 others over the six frequent ones.)

Calibration and thresholds are then fitted anew, to the cheaper model's own logits.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import InputError
from data.model_file import INPUT_NAME, LOGIT_NAME, Gate, ModelInfo
from eval.metrics import mean_average_precision
from train.examples import Examples
from train.golden import add_golden
from train.onnx_session import Pixels, logits, open_model
from train.publish import Exported, note_on_run, sha256
from train.quantize import (
    Graph,
    measure_ranges,
    sensitivity,
    set_calibration,
    squared_error,
    to_float16,
    to_int8,
)
from train.selection_fit import CalibrationChoice, SelectionFit, fit_on_selection
from train.tracking import CHEAPER_HASH_TAGS

Cheap = Literal["int8", "fp16"]
PRECISIONS: dict[Cheap, str] = {"int8": "int8", "fp16": "float16"}
LIMIT = 0.003
# Positives in the selection part from which a class counts as frequent, as in the report's warning.
FREQUENT = 10
# Images of the training part that the ranges are measured on, and of those, that errors are compared on.
CALIBRATION_IMAGES, PROBE_IMAGES = 256, 16
_SEED = 0
# Wider than float32's: where a sum differs in its last bit, a value may round to its neighbour. Chosen, not measured
# on a second kind of CPU; the logits of a trained model span tens.
GOLDEN_TOLERANCE: dict[Cheap, float] = {"int8": 0.3, "fp16": 0.05}


class GateError(InputError):
    """The cheaper model ranks worse than the gate allows; nothing was written."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model is worth on the n images of the selection part.

    Attributes:
        logit: float32[n, C].
        map: mAP (VOC 2010) over the classes with a positive.
        frequent: over those with ten or more; NaN where there is none.
    """

    logit: Any
    map: float
    frequent: float

    def fall(self, other: "Judged") -> float:
        """How far `other` is below: the larger of both falls."""
        return float(np.nanmax([self.map - other.map, self.frequent - other.frequent]))


Judge = Callable[[Any], Judged]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cheaper model before the gate.

    Attributes:
        proto: the model.
        ranges: how those of the activations were found, "" for float16.
        left: the layers that stay in float32, as in `Graph.layers`.
        judged: what it is worth.
    """

    proto: Any
    ranges: str
    left: tuple[tuple[str, ...], ...]
    judged: Judged


@dataclass(frozen=True, slots=True)
class Cheaper:
    """A second model file that passed its gate.

    Attributes:
        path: the .onnx file.
        info: its metadata.
        fit: the calibration and the thresholds of its own logits.
        candidate: how it was made.
        gate: what its gate saw; it stands in `info` too.
        note: why the MLflow run was not told of it, "" where it was.
    """

    path: Path
    info: ModelInfo
    fit: SelectionFit
    candidate: Candidate
    gate: Gate
    note: str


def export_cheaper(exported: Exported, precision: Cheap, calibration: CalibrationChoice = "auto") -> Cheaper:
    """Write the cheaper copy of `exported` beside it, as NAME.int8.onnx or NAME.fp16.onnx.

    Args:
        exported: the float32 model.
        precision: of the copy.
        calibration: as in `export_run`.

    Raises:
        GateError: mAP falls by more than 0.003. An older copy of that name is then removed too: it belongs to
            another model.
    """
    import onnx

    path, examples = cheaper_path(exported.path, precision), exported.examples
    original = onnx.load(exported.path)
    graph = Graph(original)
    pixels, index = examples.cache.pixels, examples.selection
    target, mask = examples.labels.target[index], examples.labels.mask[index]
    selection = np.ascontiguousarray(pixels[index])

    frequent = (target * mask).sum(axis=0) >= FREQUENT

    def judge(proto: Any) -> Judged:
        logit = logits(open_model(proto), selection)
        ap = examples.selection_ap(logit)
        return Judged(logit, *(mean_average_precision(part)[0] for part in (ap, ap[frequent])))

    path.unlink(missing_ok=True)
    before = judge(original)
    if precision == "fp16":
        proto = to_float16(graph)
        best = Candidate(proto, "", (), judge(proto))
    else:
        best = _search_int8(graph, _calibration_images(examples), before, judge)
    after = best.judged
    if not before.fall(after) <= LIMIT:
        tried = f" ({len(best.left)} of {len(graph.layers)} layers left in float32: the best of those tried)"
        raise GateError(
            f"{precision} ranks too badly: mAP on the {len(index)} images of the selection part is {before.map:.4f} in "
            f"float32 and {after.map:.4f} in {precision}, over its {frequent.sum()} classes with {FREQUENT} positives "
            f"or more {before.frequent:.4f} and {after.frequent:.4f}, a fall of {before.fall(after):.4f} where at most "
            f"{LIMIT} is allowed{tried if best.left else ''}; no {path.name} was written, serve {exported.path}"
        )
    fit = fit_on_selection(after.logit, target, mask, calibration, exported.info.wished_precision)
    set_calibration(best.proto, fit.calibration.scale, fit.calibration.bias)
    slow, fast = _images_per_second(original, best.proto, selection)
    gate = Gate(
        precision=PRECISIONS[precision],
        float32_hash=sha256(exported.path),
        images=len(index),
        map_float32=round(before.map, 6),
        map=round(after.map, 6),
        frequent=int(frequent.sum()),
        frequent_map_float32=round(before.frequent, 6) if frequent.any() else 0.0,
        frequent_map=round(after.frequent, 6) if frequent.any() else 0.0,
        limit=LIMIT,
        images_per_second_float32=round(slow, 1),
        images_per_second=round(fast, 1),
        bytes_float32=original.ByteSize(),
        bytes=best.proto.ByteSize(),
        layers=len(graph.layers),
        layers_left=len(best.left),
    )
    info = dataclasses.replace(
        exported.info,
        name=f"{exported.info.name} {precision}",
        scale=tuple(fit.calibration.scale.tolist()),
        bias=tuple(fit.calibration.bias.tolist()),
        thresholds=tuple(fit.thresholds.tolist()),
        calibration=fit.calibration.kind,
        precision_thresholds=tuple(fit.precision_thresholds.tolist()),
        precision=gate.precision,
        gate=dataclasses.asdict(gate),
    )
    onnx.helper.set_model_props(best.proto, info.to_metadata())
    onnx.checker.check_model(best.proto)
    partial = path.with_name(path.name + ".part")
    try:
        onnx.save_model(best.proto, partial)
        info = add_golden(partial, GOLDEN_TOLERANCE[precision])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    tags = {CHEAPER_HASH_TAGS[precision]: sha256(path), f"model.{precision}.gate": gate.to_json()}
    note = note_on_run(info.run_id, tags, {f"map_{precision}": after.map})
    return Cheaper(path, info, fit, best, gate, note)


def cheaper_path(path: Path, precision: Cheap) -> Path:
    """model.onnx -> model.int8.onnx."""
    return path.with_name(f"{path.stem}.{precision}.onnx")


def describe_cheaper(cheaper: Cheaper) -> list[str]:
    """What was written and what the gate saw, as lines for the terminal."""
    gate, best = cheaper.gate, cheaper.candidate
    left = f"; in float32 stay {', '.join(layer[0] for layer in best.left)}" if best.left else ""
    ranges = f", ranges by {best.ranges}" if best.ranges else ""
    lines = [
        f"cheaper    {cheaper.path}  ({gate.bytes / 1e6:.1f} MB, float32 {gate.bytes_float32 / 1e6:.1f} MB)",
        f"gate       mAP on the {gate.images} images of the selection part: {gate.map:.4f}, float32 "
        f"{gate.map_float32:.4f}; over its {gate.frequent} frequent classes {gate.frequent_map:.4f}, float32 "
        f"{gate.frequent_map_float32:.4f}: passed (each may fall by {gate.limit})",
        f"speed      {gate.images_per_second:.0f} images/s, float32 {gate.images_per_second_float32:.0f}, "
        "measured roughly: this CPU, all cores, batches of 16",
        f"layers     {gate.layers - gate.layers_left} of {gate.layers} in {gate.precision}{ranges}{left}",
    ]
    if gate.precision == PRECISIONS["fp16"]:
        pace = gate.images_per_second / gate.images_per_second_float32
        lines.append(
            "note       float16 is for GPUs. On a CPU it brings nothing but a smaller file: ONNX Runtime computes in "
            f"float32 there (here at {pace:.2f} times the float32 file's speed); for CPUs there is --precision int8"
        )
    return lines


def _calibration_images(examples: Examples) -> Pixels:
    count = min(CALIBRATION_IMAGES, len(examples.train))
    rows = np.random.default_rng(_SEED).choice(examples.train, count, replace=False)
    return np.ascontiguousarray(examples.cache.pixels[np.sort(rows)])


def _search_int8(graph: Graph, images: Pixels, before: Judged, judge: Judge) -> Candidate:
    """The candidate within the gate that leaves the fewest layers in float32; the best one where none is."""
    probe = images[:: max(1, len(images) // PROBE_IMAGES)][:PROBE_IMAGES]
    reference = logits(open_model(graph.proto), probe)
    methods = measure_ranges(graph, images)
    error = {
        method: squared_error(to_int8(graph, ranges, graph.body), probe, reference)
        for method, ranges in methods.items()
    }
    method = min(error, key=lambda name: error[name])
    ranges = methods[method]
    tried: dict[int, Candidate] = {}
    order: list[tuple[str, ...]] = []

    def passes(count: int) -> bool:
        if count and not order:
            order.extend(sensitivity(graph, ranges, probe, reference))
        left = tuple(order[:count])
        away = {name for layer in left for name in layer}
        proto = to_int8(graph, ranges, [name for name in graph.body if name not in away])
        tried[count] = Candidate(proto, method, left, judge(proto))
        return before.fall(tried[count].judged) <= LIMIT

    count = fewest(passes, max(1, len(graph.layers) // 2))
    return tried[count] if count is not None else min(tried.values(), key=lambda c: before.fall(c.judged))


def fewest(passes: Callable[[int], bool], most: int) -> int | None:
    """The smallest count from 0 to `most` that passes, None where 0, 1, 2, 4 ... `most` all fail.

    It is the smallest indeed where whatever lies above a count that passes does too; else one whose predecessor fails.
    """
    if passes(0):
        return 0
    fails, count = 0, 1
    while not passes(count):
        if count == most:
            return None
        fails, count = count, min(2 * count, most)
    while count - fails > 1:
        middle = (fails + count) // 2
        if passes(middle):
            count = middle
        else:
            fails = middle
    return count


def _images_per_second(slow: Any, fast: Any, images: Pixels) -> tuple[float, float]:
    """Of both models, turn and turn about, the best of five: other programs on the machine only ever slow it down."""
    batch = np.ascontiguousarray(images[:16])
    sessions = [open_model(slow), open_model(fast)]
    best = [0.0, 0.0]
    for _ in range(6):
        for which, session in enumerate(sessions):
            start = time.perf_counter()
            session.run([LOGIT_NAME], {INPUT_NAME: batch})
            best[which] = max(best[which], len(batch) / (time.perf_counter() - start))
    return best[0], best[1]
