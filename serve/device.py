"""Which device runs the model, and the reason in words. No silent fallback."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Device:
    """`name` is "cpu" or "cuda"; `reason` is for the banner."""

    name: str
    reason: str


def open_session(path: Path, wanted: str, threads: int) -> tuple[Any, Device]:
    """Open an ONNX Runtime session on the wanted device: "auto", "cpu" or "cuda".

    What decides is `session.get_providers()` after the session is made: `get_available_providers()` lists
    CUDA on a machine without a GPU, and a session that asks for CUDA alone runs on the CPU without a word.

    Raises:
        InputError: "cuda" is wanted and does not work, with the reason.
    """
    if wanted == "cpu":
        return _session(path, [], threads), Device("cpu", "asked for with --device cpu")
    problem = _cuda_problem()
    if not problem:
        import onnxruntime as ort

        # The CUDA libraries are in wheels of their own, where the loader does not look.
        ort.preload_dlls()
        # EXHAUSTIVE, the default, tries every convolution algorithm at every new batch size.
        session = _session(path, [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"})], 1)
        if "CUDAExecutionProvider" in session.get_providers():
            return session, Device("cuda", "the CUDA provider of ONNX Runtime is in use")
        problem = "ONNX Runtime could not start its CUDA provider (its own message is above)"
    if wanted == "cuda":
        raise InputError(f"--device cuda does not work here: {problem}; use --device cpu, or auto")
    return _session(path, [], threads), Device("cpu", f"no CUDA: {problem}")


def _session(path: Path, providers: list[Any], threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin between two batches take the cores that decode needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, [*providers, "CPUExecutionProvider"])
    except Exception as error:  # the exceptions of ONNX Runtime have no common base but this
        raise InputError(f"{path} is not a model that ONNX Runtime can load: {error}") from error


def _cuda_problem() -> str:
    """Why CUDA cannot work here, or "" where it may."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this ONNX Runtime is built without CUDA (install onnxruntime-gpu)"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is not there)"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"the NVIDIA driver answers error {code}"
    return "" if count.value else "the NVIDIA driver sees no GPU"
