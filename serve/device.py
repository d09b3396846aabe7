"""Which device runs the model, the reason in words, and a session on it. No silent fallback."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from data.model_file import DISABLED_OPTIMIZERS, INPUT_NAME, LOGIT_NAME, SCORE_NAME

Floats = npt.NDArray[np.float32]

_CUDA = "CUDAExecutionProvider"
# cudnn_conv_algo_search: EXHAUSTIVE, the default, tries every algorithm at every new batch size, for seconds.
# use_tf32: on by default, rounds the factors of every convolution to 10 bits; scores would not be those of the CPU.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


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
        # What few operators stay on the CPU are about shapes: one thread, so that decode has the cores.
        session = _session(path, [(_CUDA, _CUDA_OPTIONS)], 1)
        if _CUDA in session.get_providers():
            # Without this a provider that fails during a run is replaced by the CPU for good, in silence.
            session.disable_fallback()
            return session, Device("cuda", "the CUDA provider of ONNX Runtime is in use")
        problem = "ONNX Runtime could not start its CUDA provider (its own message is above)"
    if wanted == "cuda":
        raise InputError(f"--device cuda does not work here: {problem}; use --device cpu, or auto")
    return _session(path, [], threads), Device("cpu", f"no CUDA: {problem}")


class BoundBatch:
    """One bucket on a device with memory of its own: the input buffer is made and bound once.

    A plain `session.run` would allocate and pin memory for every batch, and copy the input twice.

    Args:
        session: on `device`.
        device: "cuda", or "cpu" to try the same path without a GPU.
        images: uint8[bucket, S, S, 3] on the host, kept; fill it before `run`.
    """

    def __init__(self, session: Any, device: str, images: npt.NDArray[np.uint8]) -> None:
        import onnxruntime as ort

        self._session, self._images = session, images
        self._input = ort.OrtValue.ortvalue_from_numpy(images, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._input)
        # The outputs are a few numbers: ONNX Runtime copies them to the host at the end of the run.
        for name in (LOGIT_NAME, SCORE_NAME):
            self._binding.bind_output(name, "cpu")

    def run(self) -> tuple[Floats, Floats]:
        """Score what stands in the host buffer: logit and score, float32[bucket, C] each."""
        self._input.update_inplace(self._images)
        self._session.run_with_iobinding(self._binding)
        logit, score = self._binding.copy_outputs_to_cpu()
        return logit, score


def _session(path: Path, providers: list[Any], threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin between two batches take the cores that decode needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(
            str(path),
            options,
            [*providers, "CPUExecutionProvider"],
            disabled_optimizers=list(DISABLED_OPTIMIZERS),
            # From the CPU there is nothing to fall back to: a damaged file would be tried twice, with words on stdout.
            enable_fallback=int(bool(providers)),
        )
    except Exception as error:  # the exceptions of ONNX Runtime have no common base but this
        words = " ".join(str(error).split())  # one line: protobuf's messages have several
        raise InputError(f"{path} is not a model that ONNX Runtime can load: {words}") from error


def _cuda_problem() -> str:
    """Why CUDA cannot work here, or "" where it may."""
    import onnxruntime as ort

    if _CUDA not in ort.get_available_providers():
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
