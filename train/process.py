"""What must hold before a run begins, and the process that it runs in."""

import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from data.errors import InputError, unknown
from train.allocator import keep_memory
from train.backbones import BACKBONES, check_sizes
from train.config import TrainConfig
from train.heads import HEADS
from train.lazy_dynamo import put_off
from train.losses import LOSSES
from train.precision import choose_precision

_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


def check_names(config: TrainConfig) -> None:
    """Refuse unknown names and sizes before anything is decoded or written."""
    registries: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("backbone", config.model.backbone, BACKBONES),
        ("head", config.model.head, HEADS),
        ("loss", config.loss.name, LOSSES),
    )
    for kind, name, registry in registries:
        if name not in registry:
            raise unknown(kind, name, registry)
    check_sizes(config.model.backbone, config.data)


def start_process(config: TrainConfig) -> tuple[Accelerator, str]:
    """The Accelerator of this process, its threads and memory set, and why it has its precision.

    Raises:
        InputError: a precision that this machine lacks, or a way of sharding that is not supported.
    """
    if not config.compile:
        put_off()
    precision, reason = choose_precision(config.precision)
    # Our sampler and schedule know the number of processes themselves, so neither is given to Accelerate.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    if accelerator.distributed_type in _SHARDED:
        raise InputError(
            f"Accelerate is set to {accelerator.distributed_type.value}, which cuts the weights into shards; "
            "the average of the weights and the checkpoints here need them whole. Launch with --multi_gpu: each "
            "process then holds the model, of which the largest takes 0.4 GB"
        )
    torch.set_num_threads(config.threads or _share_of_cores())
    if accelerator.device.type == "cpu":
        keep_memory()
    return accelerator, reason


def _share_of_cores() -> int:
    """The cores of this machine that this process may use, shared out among the processes on it."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
