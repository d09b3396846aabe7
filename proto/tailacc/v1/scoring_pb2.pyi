from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Image(_message.Message):
    __slots__ = ("id", "content", "pixels")
    ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    id: str
    content: bytes
    pixels: bytes
    def __init__(self, id: _Optional[str] = ..., content: _Optional[bytes] = ..., pixels: _Optional[bytes] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("images", "preprocessing", "model")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    preprocessing: str
    model: str
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., preprocessing: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ImageStatus(_message.Message):
    __slots__ = ("code", "message")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_UNSPECIFIED: _ClassVar[ImageStatus.Code]
        CODE_OK: _ClassVar[ImageStatus.Code]
        CODE_BAD_IMAGE: _ClassVar[ImageStatus.Code]
        CODE_TOO_LARGE: _ClassVar[ImageStatus.Code]
        CODE_INFERENCE_FAILED: _ClassVar[ImageStatus.Code]
    CODE_UNSPECIFIED: ImageStatus.Code
    CODE_OK: ImageStatus.Code
    CODE_BAD_IMAGE: ImageStatus.Code
    CODE_TOO_LARGE: ImageStatus.Code
    CODE_INFERENCE_FAILED: ImageStatus.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ImageStatus.Code
    message: str
    def __init__(self, code: _Optional[_Union[ImageStatus.Code, str]] = ..., message: _Optional[str] = ...) -> None: ...

class ImageResult(_message.Message):
    __slots__ = ("id", "status", "logits", "scores")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: ImageStatus
    logits: _containers.RepeatedScalarFieldContainer[float]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[ImageStatus, _Mapping]] = ..., logits: _Optional[_Iterable[float]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "version", "hash")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    hash: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., hash: _Optional[str] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("results", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ImageResult]
    model: ModelRef
    def __init__(self, results: _Optional[_Iterable[_Union[ImageResult, _Mapping]]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("request_images", "request_bytes", "image_bytes", "inflight_requests", "inflight_images", "inflight_bytes")
    REQUEST_IMAGES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    request_images: int
    request_bytes: int
    image_bytes: int
    inflight_requests: int
    inflight_images: int
    inflight_bytes: int
    def __init__(self, request_images: _Optional[int] = ..., request_bytes: _Optional[int] = ..., image_bytes: _Optional[int] = ..., inflight_requests: _Optional[int] = ..., inflight_images: _Optional[int] = ..., inflight_bytes: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "classes", "image_size", "preprocessing", "thresholds", "limits", "server_version", "device", "description", "precision_thresholds", "wished_precision", "gate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    WISHED_PRECISION_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    classes: _containers.RepeatedScalarFieldContainer[str]
    image_size: int
    preprocessing: str
    thresholds: _containers.RepeatedScalarFieldContainer[float]
    limits: Limits
    server_version: str
    device: str
    description: str
    precision_thresholds: _containers.RepeatedScalarFieldContainer[float]
    wished_precision: float
    gate: str
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., classes: _Optional[_Iterable[str]] = ..., image_size: _Optional[int] = ..., preprocessing: _Optional[str] = ..., thresholds: _Optional[_Iterable[float]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ..., device: _Optional[str] = ..., description: _Optional[str] = ..., precision_thresholds: _Optional[_Iterable[float]] = ..., wished_precision: _Optional[float] = ..., gate: _Optional[str] = ...) -> None: ...
