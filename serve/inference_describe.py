"""What the Open Inference Protocol says of a model: metadata, configuration, statistics, state."""

import json
from collections.abc import Sequence
from typing import Any

from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME
from proto.inference.v2 import inference_pb2 as pb
from serve.config import Limits
from serve.counters import Duration
from serve.inference_codec import DATATYPES, INPUTS, OUTPUTS
from serve.service import Models, ServedModel

PLATFORM = "onnxruntime_onnx"
_TYPES = {"UINT8": pb.TYPE_UINT8, "FP32": pb.TYPE_FP32, "BYTES": pb.TYPE_STRING}


def model_metadata(model: ServedModel) -> Any:
    """ModelMetadataResponse: the tensors with -1 for N."""
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=[model.version],
        platform=PLATFORM,
        inputs=[_tensor(name, model) for name in INPUTS],
        outputs=[_tensor(name, model) for name in OUTPUTS],
    )


def model_config(model: ServedModel, limits: Limits) -> Any:
    """ModelConfigResponse. `max_batch_size` is what a request may hold: a larger one is cut into batches here."""
    info = model.info
    config = pb.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=limits.request_images,
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=model.buckets,
            max_queue_delay_microseconds=round(model.max_delay * 1e6),
        ),
        instance_group=[pb.ModelInstanceGroup(name=model.device.name, kind=_kind(model), count=1)],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    if model.version.isdecimal():
        config.version_policy.specific.versions.append(int(model.version))
    for name in INPUTS:
        image = name == INPUT_NAME
        tensor = config.input.add(
            name=name,
            data_type=_TYPES[DATATYPES[name]],
            format=pb.ModelInput.FORMAT_NHWC if image else pb.ModelInput.FORMAT_NONE,
            dims=_dims(name, model) or [1],
            optional=True,
        )
        if not image:
            # Triton's way to say that [N] is meant: no element has a shape of its own.
            tensor.reshape.SetInParent()
    for name in OUTPUTS:
        output = config.output.add(
            name=name, data_type=_TYPES[DATATYPES[name]], dims=_dims(name, model) or [1]
        )
        if not _dims(name, model):
            output.reshape.SetInParent()
    for key, value in (
        ("classes", json.dumps(info.classes, ensure_ascii=False)),
        ("thresholds", json.dumps(info.thresholds)),
        ("image_size", str(info.size)),
        ("preprocessing", info.preprocessing),
        ("model_hash", model.ref.hash),
        ("description", info.name),
    ):
        config.parameters[key].string_value = value
    return pb.ModelConfigResponse(config=config)


def model_statistics(models: Sequence[ServedModel]) -> Any:
    """ModelStatisticsResponse."""
    return pb.ModelStatisticsResponse(model_stats=[_statistics(model) for model in models])


def repository_index(models: Models, only_ready: bool) -> Any:
    """RepositoryIndexResponse. A version that an alias names and that was refused is there with the reason."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=model.name,
                version=model.version,
                state="READY" if model.ready else "UNAVAILABLE",
                reason="" if model.ready else "the model is stopping, or its inference worker has ended",
            )
            for model in models.all()
            if model.ready or not only_ready
        ]
        + [
            pb.RepositoryIndexResponse.ModelIndex(
                name=one.name,
                version=one.refused_version,
                state="UNAVAILABLE",
                reason=one.refused_reason,
            )
            for one in models.following
            if one.refused_version and not only_ready
        ]
    )


def _statistics(model: ServedModel) -> Any:
    own = model.statistics
    failed = own.fail.count + own.cancel.count
    return pb.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=own.last_inference_ms,
        inference_count=own.inference_count,
        execution_count=own.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(own.success),
            fail=pb.StatisticDuration(count=failed, ns=own.fail.ns + own.cancel.ns),
            queue=_duration(own.queue),
            compute_input=_duration(own.compute_input),
            compute_infer=_duration(own.compute_infer),
            compute_output=_duration(own.compute_output),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for size, batch in sorted(own.batches.items())
            if batch.compute_infer.count
        ],
    )


def _duration(own: Duration) -> Any:
    return pb.StatisticDuration(count=own.count, ns=own.ns)


def _kind(model: ServedModel) -> Any:
    return pb.ModelInstanceGroup.KIND_GPU if model.device.name == "cuda" else pb.ModelInstanceGroup.KIND_CPU


def _tensor(name: str, model: ServedModel) -> Any:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=name, datatype=DATATYPES[name], shape=[-1, *_dims(name, model)]
    )


def _dims(name: str, model: ServedModel) -> list[int]:
    """The shape of a tensor without N."""
    if name == INPUT_NAME:
        return [model.info.size, model.info.size, 3]
    return [len(model.info.classes)] if name in (LOGIT_NAME, SCORE_NAME) else []
