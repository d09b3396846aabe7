"""What the servers are measured with: photographs, model files, and the requests as bytes."""

import struct
import sys
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.image import fingerprint, load
from data.model_file import ModelInfo
from data.voc import default_devkit
from proto.inference.v2 import inference_pb2 as oip
from proto.tailacc.v1 import scoring_pb2

SCORE = "/tailacc.v1.Scoring/Score"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CLASSES, SIZE = 20, 224


def photographs(folder: Path | None, count: int) -> list[Path]:
    """The first JPEG files of the folder, or of the default devkit."""
    source = folder or default_devkit()
    found = sorted(source.rglob("*.jpg"))[:count]
    if not found:
        raise InputError(f"no .jpg file in {source}")
    return found


def make_models(names: list[str], photos: list[Path], folder: Path) -> list[Path]:
    """Model files with random weights, whose outputs vary with the image; made once."""
    import torch
    from torch import nn

    from train.augment import to_float
    from train.config import ModelConfig
    from train.heads import make_model
    from train.onnx_graph import export_onnx

    out = []
    for name in names:
        path = folder / f"{name}.onnx"
        out.append(path)
        if path.is_file():
            continue
        print(f"making {path} ...", file=sys.stderr, flush=True)
        pixels = np.stack([load(photos[i % len(photos)].read_bytes(), SIZE) for i in range(32)])
        torch.manual_seed(0)
        model = make_model(ModelConfig(backbone=name, weights="none"), CLASSES, SIZE)
        with torch.no_grad():
            model.eval()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    # The statistics of these images, without which outputs are constant.
                    module.train()
                    module.momentum = None
            model(to_float(torch.from_numpy(pixels)))
            for parameter in model.head.parameters():
                nn.init.normal_(parameter, std=0.1)
        info = ModelInfo(
            name=f"{name} random",
            classes=tuple(f"class {c}" for c in range(CLASSES)),
            size=SIZE,
            preprocessing=fingerprint(SIZE),
            scale=(1.0,) * CLASSES,
            bias=(0.0,) * CLASSES,
            thresholds=(0.5,) * CLASSES,
        )
        export_onnx(model, info, pixels, path)
        _quantize(path, pixels)
    return out


def _quantize(path: Path, pixels: np.ndarray) -> None:
    """The int8 copy, without a gate: random weights rank nothing, but compute as fast as trained ones."""
    import onnx

    from train.cheaper import GOLDEN_TOLERANCE, cheaper_path
    from train.golden import add_golden
    from train.quantize import Graph, measure_ranges, to_int8

    graph = Graph(onnx.load(path))
    onnx.save_model(
        to_int8(graph, measure_ranges(graph, pixels)["minmax"], graph.body), cheaper_path(path, "int8")
    )
    add_golden(cheaper_path(path, "int8"), GOLDEN_TOLERANCE["int8"])


def write_requests(photos: list[Path], model: str, folder: Path) -> dict[str, Path]:
    """For each method a file of its requests, one photograph in each."""
    messages: dict[str, list[bytes]] = {SCORE: [], INFER: []}
    for path in photos:
        content = path.read_bytes()
        request = scoring_pb2.ScoreRequest(images=[scoring_pb2.Image(id=path.stem, content=content)])
        messages[SCORE].append(request.SerializeToString())
        tensor = oip.ModelInferRequest.InferInputTensor(name="jpeg", datatype="BYTES", shape=[1])
        raw = struct.pack("<I", len(content)) + content
        infer = oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[raw])
        messages[INFER].append(infer.SerializeToString())
    out = {}
    for method, texts in messages.items():
        out[method] = folder / f"{method.rpartition('/')[2]}.requests"
        out[method].write_bytes(b"".join(struct.pack("<I", len(text)) + text for text in texts))
    return out


def first_logits(target: str, method: str, requests: Path) -> np.ndarray:
    """float32[C] of the first photograph, through the server: what it computes is checked before it is timed."""
    import grpc

    data = requests.read_bytes()
    (length,) = struct.unpack_from("<I", data)
    with grpc.insecure_channel(target) as channel:
        answer = channel.unary_unary(method)(data[4 : 4 + length], timeout=60)
    if method == SCORE:
        return np.array(scoring_pb2.ScoreResponse.FromString(answer).results[0].logits, dtype=np.float32)
    infer = oip.ModelInferResponse.FromString(answer)
    which = [tensor.name for tensor in infer.outputs].index("logit")
    if infer.raw_output_contents:
        return np.frombuffer(infer.raw_output_contents[which], dtype=np.float32)
    return np.array(infer.outputs[which].contents.fp32_contents, dtype=np.float32)
