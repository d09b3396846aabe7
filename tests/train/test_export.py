import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from data.errors import InputError
from data.golden import golden_image
from data.image import fingerprint
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, ModelInfo
from eval.calibration import fit_platt, fit_thresholds
from train import checkpoint, export
from train.augment import to_float
from train.config import ModelConfig, ScheduleConfig, TrackingConfig, TrainConfig
from train.evaluation import predict
from train.examples import open_examples
from train.heads import make_model
from train.loop import fit
from train.onnx_graph import ParityError, check_parity, export_onnx
from train.publish import export_run, load_best, newest_run
from train.selection_fit import fit_on_selection
from train.tracking import HASH_TAG, client


def info(classes: int, size: int = 32) -> ModelInfo:
    names = tuple(f"c{i}" for i in range(classes))
    return ModelInfo("m", names, size, "p", (2.0,) * classes, (-1.0,) * classes, (0.5,) * classes)


def images(count: int = 40, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def varied(backbone: str, size: int) -> nn.Module:
    """A model whose outputs vary over images, as a trained one's do."""
    torch.manual_seed(0)
    model = make_model(ModelConfig(backbone=backbone, weights="none", dropout=0), 3, size)
    nn.init.normal_(model.head.linear.weight, std=0.05)
    with torch.no_grad():
        # Batch-norm statistics of its inputs, without which a deep untrained network gives constants.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(to_float(torch.from_numpy(images(32, size))))
    return model


@pytest.mark.parametrize(("backbone", "size"), [("tiny_resnet", 32), ("mobilenet_v2", 64)])
def test_export_onnx__equals_torch_at_any_batch_size(backbone: str, size: int, tmp_path: Path) -> None:
    model, pixels = varied(backbone, size).eval(), images(size=size)
    parity = export_onnx(model, info(3, size), pixels, tmp_path / "m.onnx")
    assert parity.difference <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [
        (INPUT_NAME, "tensor(uint8)", [size, size, 3])
    ]
    assert [output.name for output in session.get_outputs()] == [LOGIT_NAME, SCORE_NAME]
    for count in (1, 7, 40):
        logit, score = session.run(None, {INPUT_NAME: pixels[:count]})
        wanted = predict(model, pixels, np.arange(count), torch.device("cpu"))
        np.testing.assert_allclose(logit, wanted, atol=1e-4)
        np.testing.assert_allclose(score, 1 / (1 + np.exp(-(2 * logit.astype(np.float64) - 1))), atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}
    said = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, "m.onnx")
    assert dataclasses.replace(said, golden_seed=0, golden_logit=(), golden_tolerance=0.0) == info(3, size)
    (golden,) = session.run([LOGIT_NAME], {INPUT_NAME: golden_image(size, said.golden_seed)[None]})
    np.testing.assert_allclose(golden[0], said.golden_logit, atol=said.golden_tolerance)


def test_export_onnx__flip_serves_the_mean_of_the_image_and_its_mirror_image(tmp_path: Path) -> None:
    model, pixels = varied("tiny_cnn", 32).eval(), images()
    flip = dataclasses.replace(info(3), flip=True)
    export_onnx(model, flip, pixels, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (logit,) = session.run([LOGIT_NAME], {INPUT_NAME: pixels})
    device, rows = torch.device("cpu"), np.arange(len(pixels))
    plain, mirrored = (predict(model, part, rows, device) for part in (pixels, pixels[:, :, ::-1].copy()))
    np.testing.assert_allclose(logit, (plain + mirrored) / 2, atol=1e-4)
    np.testing.assert_allclose(logit, predict(model, pixels, rows, device, flip=True), atol=1e-4)
    assert np.abs(plain - mirrored).max() > 1e-2
    assert ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, "m.onnx").flip


def test_export_onnx__constant_outputs_prove_nothing(tmp_path: Path) -> None:
    model = varied("tiny_cnn", 32)
    nn.init.zeros_(model.head.linear.weight)
    with pytest.raises(ParityError, match="parity proves nothing"):
        export_onnx(model, info(3), images(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_check_parity__another_models_file_is_refused(tmp_path: Path) -> None:
    export_onnx(varied("tiny_cnn", 32), info(3), images(), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name.endswith("linear.weight"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.001, tensor.name))
    onnx.save_model(proto, tmp_path / "other.onnx")
    from train.onnx_graph import ServedModel

    model = ServedModel(varied("tiny_cnn", 32).eval(), (1.0,) * 3, (0.0,) * 3)
    with pytest.raises(ParityError, match=r"may differ by at most 0.0001, but they differ by"):
        check_parity(model, tmp_path / "other.onnx", images())


@pytest.fixture
def finished(
    smoke: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]
) -> TrainConfig:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    config = dataclasses.replace(
        smoke, schedule=ScheduleConfig(epochs=2), tracking=TrackingConfig(), out=tmp_path / "runs/train/one"
    )
    fit(config)
    return config


def test_main__exports_and_registers_the_champion(
    finished: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.out is not None
    assert export.main(["--out", "model.onnx", "--alias", "champion"]) == 0
    printed = capsys.readouterr().out
    assert "registered models:/tailacc/1 as @champion" in printed
    version = client().get_model_version_by_alias("tailacc", "champion")
    assert version.run_id == load_best(finished.out)[1]["run_id"]
    meta = onnx.load("model.onnx").metadata_props
    known = ModelInfo.from_metadata({item.key: item.value for item in meta}, "model.onnx")
    assert known.preprocessing == fingerprint(32)
    assert known.run_id == version.run_id
    assert json.loads(known.config)["model"]["backbone"] == "tiny_cnn"
    assert known.classes[0] == "aeroplane"
    # The run and the registered version lead back from the hash of their file.
    run = client().get_run(known.run_id).data
    assert run.tags[HASH_TAG] == hashlib.sha256(Path("model.onnx").read_bytes()).hexdigest()
    assert len(version.tags[HASH_TAG]) == 64
    before, after = (run.metrics[f"selection/ece_{when}"] for when in ("before", "after"))
    assert f"ECE        {before:.4f} before, {after:.4f} after" in printed


def test_export_run__fits_on_the_selection_part_with_its_own_logits(
    finished: TrainConfig, tmp_path: Path
) -> None:
    assert finished.out is not None
    exported = export_run(finished.out, tmp_path / "m.onnx", "platt", 0.8)
    assert (exported.info.calibration, exported.info.wished_precision) == ("platt", 0.8)
    examples = open_examples(finished.data)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    index = examples.selection
    logit, score = session.run(None, {INPUT_NAME: examples.cache.pixels[index]})
    target, mask = examples.labels.target[index], examples.labels.mask[index]
    wanted = fit_platt(logit, target, mask)
    np.testing.assert_allclose(exported.info.scale, wanted.scale, rtol=1e-3)
    np.testing.assert_allclose(score, wanted.apply(logit), atol=1e-4)
    np.testing.assert_allclose(exported.info.thresholds, fit_thresholds(score, target, mask, "f1"), atol=1e-4)
    shown = score > np.array(exported.info.precision_thresholds, np.float32)
    for c in range(len(exported.info.classes)):
        said = shown[:, c] & (mask[:, c] == 1)
        assert not said.any() or target[said, c].mean() >= 0.8
    plain = export_run(finished.out, tmp_path / "n.onnx", "none").info
    assert (plain.scale, plain.bias, plain.calibration) == ((1.0,) * 20, (0.0,) * 20, "none")
    with pytest.raises(InputError, match="--wished-precision must be above 0 and at most 1, got 90"):
        export_run(finished.out, tmp_path / "o.onnx", "none", 90)


def test_fit_on_selection__auto_takes_the_lowest_cross_fitted_loss() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 4, (400, 3)).astype(np.float32)
    target = (rng.uniform(size=logit.shape) < 1 / (1 + np.exp(-(0.5 * logit - 1)))).astype(np.uint8)
    mask = np.ones_like(target)
    fit = fit_on_selection(logit, target, mask)
    assert fit.calibration.kind == "platt" == min(fit.nll, key=lambda kind: fit.nll[kind])
    assert fit.ece_after < 0.6 * fit.ece_before
    assert fit_on_selection(logit, target, mask, "none").ece_after == fit.ece_before
    # The sigmoid is right, and the images are so few that any map fitted on half of them is worse on the rest.
    right = (rng.uniform(size=logit.shape) < 1 / (1 + np.exp(-logit))).astype(np.uint8)
    assert fit_on_selection(logit[:20], right[:20], mask[:20]).calibration.kind == "none"
    logit[1, 2] = np.nan
    with pytest.raises(InputError, match="not finite on the selection part"):
        fit_on_selection(logit, target, mask)


def test_export_run__what_is_not_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no best.pt: it is not the folder of a run"):
        export_run(tmp_path, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no finished run in"):
        newest_run(tmp_path)


def test_export_run__other_preprocessing_is_refused(finished: TrainConfig, tmp_path: Path) -> None:
    assert finished.out is not None
    best = checkpoint.load(finished.out / checkpoint.BEST)
    checkpoint.save(finished.out / checkpoint.BEST, best | {"preprocessing": "0123"})
    with pytest.raises(InputError, match="was trained with preprocessing 0123, but this installation gives"):
        export_run(finished.out, tmp_path / "m.onnx")
