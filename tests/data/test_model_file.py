import json
from dataclasses import fields, replace

import pytest

from data.errors import InputError
from data.model_file import Gate, ModelInfo

INFO = ModelInfo(
    name="mobilenet_v2 224 px bce",
    classes=("cat", "dog"),
    size=224,
    preprocessing="p" * 16,
    scale=(1.0, 0.1 + 0.2),
    bias=(0.0, -1.5),
    thresholds=(0.5, 0.25),
    config=json.dumps({"loss": {"name": "bce"}}),
    data_fingerprint="d" * 16,
    source_revision="abc+dirty",
    run_id="0123",
    calibration="platt",
    wished_precision=0.8,
    precision_thresholds=(0.75, 1.0),
)


def test_model_info__comes_back_the_same() -> None:
    metadata = INFO.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert ModelInfo.from_metadata(metadata, "model.onnx") == INFO


def test_model_info__a_name_that_looks_like_json_stays_text() -> None:
    info = replace(INFO, name="[1]", run_id="42")
    assert ModelInfo.from_metadata(info.to_metadata(), "model.onnx") == info


def test_to_metadata__every_field_under_its_prefix() -> None:
    expected = {"tailacc.format", *(f"tailacc.{field.name}" for field in fields(ModelInfo))}
    assert set(INFO.to_metadata()) == expected


@pytest.mark.parametrize("metadata", [{}, {"tailacc.format": "99"}])
def test_from_metadata__other_formats(metadata: dict[str, str]) -> None:
    found = metadata.get("tailacc.format", "none")
    message = rf"m\.onnx is not a model file of format 1 \(found: {found}\)"
    with pytest.raises(InputError, match=message):
        ModelInfo.from_metadata(metadata, "m.onnx")


@pytest.mark.parametrize("field", [field.name for field in fields(ModelInfo)])
def test_from_metadata__a_missing_field(field: str) -> None:
    metadata = INFO.to_metadata()
    del metadata[f"tailacc.{field}"]
    with pytest.raises(InputError, match=rf"m\.onnx: metadata 'tailacc\.{field}' is missing"):
        ModelInfo.from_metadata(metadata, "m.onnx")


def test_from_metadata__not_json() -> None:
    metadata = INFO.to_metadata() | {"tailacc.scale": "[1.0, oops"}
    with pytest.raises(InputError, match=r"m\.onnx: metadata 'tailacc\.scale' is not JSON"):
        ModelInfo.from_metadata(metadata, "m.onnx")


@pytest.mark.parametrize("field", ["scale", "bias", "thresholds", "precision_thresholds"])
def test_model_info__one_number_a_class(field: str) -> None:
    with pytest.raises(InputError, match=rf"{field} must have one number a class \(2\), got 1"):
        replace(INFO, **{field: (1.0,)})  # type: ignore[arg-type]


def test_model_info__precision_thresholds_may_be_absent() -> None:
    info = replace(INFO, precision_thresholds=())
    assert ModelInfo.from_metadata(info.to_metadata(), "m.onnx") == info


def test_gate__comes_back_the_same_and_another_content_is_refused() -> None:
    gate = Gate(
        "int8", "a" * 64, 300, 0.8, 0.7985, 12, 0.9, 0.899, 0.003, 30.4, 101.0, 44_000_000, 11_000_000, 28, 2
    )
    assert Gate.from_json(gate.to_json(), "s.parquet") == gate
    assert gate.fall == pytest.approx(0.0015)
    for text in ('{"precision": "int8"}', "[1]", "nothing"):
        with pytest.raises(
            InputError, match=r"^s\.parquet: the gate's figures are not those of this version"
        ):
            Gate.from_json(text, "s.parquet")
