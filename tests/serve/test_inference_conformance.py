"""The unmodified tritonclient against the server as a process: `make conformance`.

tritonclient's protobuf is older than ours, so it has an environment of its own; TRITONCLIENT_PYTHON names its
interpreter. The test prints the table of tritonclient_conformance.py (`pytest -s`).
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2

from data.image import load
from proto.inference.v2 import inference_pb2 as pb

_SCRIPT = Path(__file__).with_name("tritonclient_conformance.py")
_PYTHON = os.environ.get("TRITONCLIENT_PYTHON", "")
SIDE = 32


@pytest.mark.skipif(
    not _PYTHON, reason="TRITONCLIENT_PYTHON names no interpreter with tritonclient (make conformance)"
)
def test_tritonclient__every_call(model_file, encode, start_server, tmp_path):
    images = [encode(seed) for seed in range(8)]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.jpg").write_bytes(image)
    (tmp_path / "bad.jpg").write_bytes(b"hello, this is text")
    pixels = np.stack([load(image, SIDE) for image in images])
    session = ort.InferenceSession(str(model_file), providers=["CPUExecutionProvider"])
    logit, score = session.run(["logit", "score"], {"image": pixels})
    for name, values in (("pixels", pixels), ("logit", logit), ("score", score)):
        np.save(tmp_path / f"{name}.npy", values)
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    (tmp_path / "inference.desc").write_bytes(file.SerializeToString())

    server = start_server("--compress-answers")
    result = subprocess.run(
        [_PYTHON, str(_SCRIPT), "--server", server.address, "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    print(f"\n{result.stdout}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout
