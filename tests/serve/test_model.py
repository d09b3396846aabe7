from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from data.errors import InputError
from data.model_file import ModelInfo
from serve import device
from serve.model import OnnxModel
from serve.registry import ModelSource


def _load(path, name="cpu") -> OnnxModel:
    return OnnxModel(ModelSource(path), name, threads=1)


def test_onnx_model__run_gives_logit_and_score(model_file):
    model = _load(model_file)
    model.warm(4)
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    logit, score = model.run(images)
    assert logit.shape == score.shape == (5, 3)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-logit)), atol=1e-6)


def test_onnx_model__another_preprocessing_is_refused(make_model):
    path = make_model(preprocessing="0123456789abcdef")
    with pytest.raises(InputError, match="trained with preprocessing 0123456789abcdef, this server has"):
        _load(path)


def test_onnx_model__missing_metadata_is_named(make_model, model_file):
    with pytest.raises(InputError, match="is not a model file of format 1"):
        _load(make_model(metadata={}))
    stored = {entry.key: entry.value for entry in onnx.load(model_file).metadata_props}
    del stored["tailacc.thresholds"]
    with pytest.raises(InputError, match=r"metadata 'tailacc\.thresholds' is missing"):
        _load(make_model(metadata=stored))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": TensorProto.FLOAT}, r"must be 'image' uint8\[N, 32, 32, 3\], got 'image' tensor\(float\)"),
        ({"batch": 4}, "its batch dimension must be dynamic, got 4"),
    ],
)
def test_onnx_model__another_signature_is_refused(make_model, changes, words):
    with pytest.raises(InputError, match=words):
        _load(make_model(**changes))


def test_onnx_model__a_missing_output_is_named(model_file, tmp_path):
    model = onnx.load(model_file)
    del model.graph.output[1]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="output 'score' is missing; it has: logit"):
        _load(tmp_path / "model.onnx")


def test_warm__more_classes_in_the_metadata_than_in_the_outputs(make_model, model_file):
    stored = {entry.key: entry.value for entry in onnx.load(model_file).metadata_props}
    info = ModelInfo.from_metadata(stored, "model")
    four = replace(
        info, classes=(*info.classes, "cow"), scale=(1.0,) * 4, bias=(0.0,) * 4, thresholds=(0.5,) * 4
    )
    model = _load(make_model(metadata=four.to_metadata()))
    with pytest.raises(InputError, match=r"'logit' must be float32\[1, 4\].*got float32\[1, 3\]"):
        model.warm(2)


def test_onnx_model__a_text_file_is_not_a_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("hello")
    with pytest.raises(InputError, match="is not a model that ONNX Runtime can load"):
        _load(path)


def test_open_session__cuda_that_does_not_work_is_an_error_and_auto_says_why(model_file, monkeypatch):
    """ONNX Runtime lists CUDA here and falls back to the CPU in silence: that is what must not happen."""
    if not device._cuda_problem():
        pytest.skip("CUDA works on this machine")
    with pytest.raises(InputError, match=r"--device cuda does not work here: .+; use --device cpu, or auto"):
        _load(model_file, "cuda")
    found = _load(model_file, "auto").device
    assert (found.name, found.reason.startswith("no CUDA: ")) == ("cpu", True)
    # A driver that is there, and a provider that still cannot start.
    monkeypatch.setattr(device, "_cuda_problem", lambda: "")
    with pytest.raises(InputError, match="could not start its CUDA provider"):
        _load(model_file, "cuda")
