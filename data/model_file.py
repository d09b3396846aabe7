"""What a model file says of itself: the contract between the export that writes and the server that reads.

The model is ONNX with a dynamic batch. Input `image`: uint8[N, S, S, 3] RGB. Outputs `logit`: float32[N, C]
and `score`: float32[N, C] = sigmoid(scale * logit + bias), the calibrated probability. Everything below is
stored in the file's `metadata_props` as strings under `tailacc.<field>`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from data.errors import InputError

INPUT_NAME = "image"
LOGIT_NAME = "logit"
SCORE_NAME = "score"
FORMAT = 1
# Optimisations of ONNX Runtime that must be off in every session on a model file. This one turns the weights of a
# convolution that was left in float32 between int8 ones into int8 after all, without regard to what they are: the
# squared error of mobilenet_v2's logits rose from 0.02 to 10.
DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
_PREFIX = "tailacc."


@dataclass(frozen=True, slots=True)
class Gate:
    """What the gate of a cheaper model saw, on the images of the selection part (`train/cheaper.py`).

    It stands in the model file, in the server's GetModel and in the score file, as the same JSON.

    Attributes:
        precision: of the cheaper model's body: "int8" or "float16".
        float32_hash: SHA-256 of the float32 model file that it was made from.
        images: of the selection part.
        map_float32, map: mAP (VOC 2010) there, of both, by ONNX Runtime on the CPU.
        frequent: how many classes have ten positives or more there.
        frequent_map_float32, frequent_map: mAP over those, of both; 0 where there is none.
        limit: how far each may fall.
        images_per_second_float32, images_per_second: of both, turn and turn about on the export's machine.
        bytes_float32, bytes: size of both files, to a kilobyte.
        layers: how many could be made cheaper.
        layers_left: how many of them stay in float32.
    """

    precision: str
    float32_hash: str
    images: int
    map_float32: float
    map: float
    frequent: int
    frequent_map_float32: float
    frequent_map: float
    limit: float
    images_per_second_float32: float
    images_per_second: float
    bytes_float32: int
    bytes: int
    layers: int
    layers_left: int

    @property
    def fall(self) -> float:
        """How far mAP falls; negative where the cheaper model is better."""
        return self.map_float32 - self.map

    def to_json(self) -> str:
        """One line, in the order of the attributes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> "Gate":
        """Read `to_json`; `source` names the file in errors."""
        try:
            content = json.loads(text)
            return cls(**{item.name: content[item.name] for item in fields(cls)})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{source}: the gate's figures are not those of this version ({type(error).__name__} {error}); export "
                "the cheaper model again"
            ) from error


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The metadata of a model file.

    Attributes:
        name: what a person calls it, such as "mobilenet_v2 224 px bce".
        classes: C names in the order of the outputs.
        size: S, the side of the square input in pixels.
        preprocessing: fingerprint of `data.image` at this size, as it was in training.
        scale, bias: C numbers each, the per-class calibration that is inside the graph.
        thresholds: C scores in [0, 1]; a label is shown where its score is above. Of the highest F1 on the
            selection part.
        config: the training configuration as JSON.
        data_fingerprint: of the labels it was trained on (`LabelSet.fingerprint`).
        source_revision: git commit of the code, "+dirty" where it had changes, "" where unknown.
        run_id: MLflow run id, "" where it was not tracked.
        calibration: how scale and bias were fitted: "platt", "temperature" or "none".
        wished_precision: in (0, 1].
        precision_thresholds: C scores, the lowest with that precision on the selection part (1.0 where none has
            it), or empty where none were fitted.
        flip: whether the logit is the mean over the image and its mirror image.
        golden_seed: of the golden image (`data.golden`).
        golden_logit: C logits of that image by this graph on the CPU; empty in a file that no export has finished.
        golden_tolerance: the largest |difference| from them at which a server becomes ready.
        precision: of the body's arithmetic: "float32", "int8" or "float16".
        gate: of a file that is not float32: what its gate saw, the content of a `Gate`; empty for float32.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    preprocessing: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    thresholds: tuple[float, ...]
    config: str = "{}"
    data_fingerprint: str = ""
    source_revision: str = ""
    run_id: str = ""
    calibration: str = "none"
    wished_precision: float = 0.9
    precision_thresholds: tuple[float, ...] = ()
    flip: bool = False
    golden_seed: int = 0
    golden_logit: tuple[float, ...] = ()
    golden_tolerance: float = 0.0
    precision: str = "float32"
    gate: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("scale", "bias", "thresholds", "precision_thresholds", "golden_logit"):
            length = len(getattr(self, name))
            if length != len(self.classes) and (
                length or name not in ("precision_thresholds", "golden_logit")
            ):
                raise InputError(
                    f"model file: {name} must have one number a class ({len(self.classes)}), got {length}"
                )

    def to_metadata(self) -> dict[str, str]:
        """The `metadata_props` of the file: plain strings as they are, the rest as JSON."""
        out = {_PREFIX + "format": str(FORMAT)}
        for item in fields(self):
            value = getattr(self, item.name)
            out[_PREFIX + item.name] = value if isinstance(value, str) else json.dumps(value)
        return out

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> "ModelInfo":
        """Read `metadata_props`; `source` names the file in errors."""
        if metadata.get(_PREFIX + "format") != str(FORMAT):
            found = metadata.get(_PREFIX + "format", "none")
            raise InputError(
                f"{source} is not a model file of format {FORMAT} (found: {found}); export it again"
            )
        values: dict[str, object] = {}
        for item in fields(cls):
            key = _PREFIX + item.name
            if key not in metadata:
                raise InputError(f"{source}: metadata '{key}' is missing; export it again")
            text = metadata[key]
            try:
                value = text if item.type in (str, "str") else json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{source}: metadata '{key}' is not JSON ({error}): {text!r}") from error
            values[item.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)  # type: ignore[arg-type]
