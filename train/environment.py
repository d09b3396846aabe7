"""What a run was trained on and with: data, hardware and software, for whoever wants to repeat it.

`environment.json` in the run folder holds what the configuration does not say: the counts of the data that
were found, the machine (without its name), the versions, and when and how long it ran.
"""

import hashlib
import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import nn

from data.image import fingerprint
from train.config import TrainConfig
from train.examples import Examples
from train.revision import source_revision

PACKAGES = ("tailacc", "torch", "torchvision", "accelerate", "numpy", "pillow", "simplejpeg", "mlflow", "ray")
_CPU_INFO = Path("/proc/cpuinfo")


class Environment:
    """The file `environment.json` of a run, written anew at every call of `write` by an atomic rename.

    It holds the MLflow `run_id`, `data` and `model` as they are now, and one entry of `sessions` for each time
    the run was started: a resumed run may go on elsewhere, with other versions.

    Args:
        path: the file. An earlier session is kept where it exists (a run that is resumed).
        data: see `describe_data`.
        model: see `describe_model`.
        session: see `describe_session`.
    """

    def __init__(
        self, path: Path, data: dict[str, Any], model: dict[str, Any], session: dict[str, Any]
    ) -> None:
        earlier = json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.is_file() else []
        self._path, self._start = path, time.monotonic()
        self._session = {"started": datetime.now(UTC).isoformat(timespec="seconds")} | session
        self._content: dict[str, Any] = {"data": data, "model": model, "sessions": [*earlier, self._session]}
        self.write("RUNNING")

    def write(self, status: str, run_id: str = "") -> None:
        """Write the file with the seconds so far: after every epoch, so that a killed run has them too.

        Args:
            status: "RUNNING", or what became of the run.
            run_id: of MLflow, "" where the run is not tracked.
        """
        self._content["run_id"] = run_id
        self._session |= {"status": status, "seconds": round(time.monotonic() - self._start, 1)}
        partial = self._path.with_name(self._path.name + ".part")
        partial.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self._path)


def describe_data(examples: Examples, size: int) -> dict[str, Any]:
    """Name, fingerprint, preprocessing, and the counts of both parts: images, positives and ignored of each class."""
    labels = examples.labels

    def part(index: npt.NDArray[np.int64]) -> dict[str, Any]:
        chosen = labels.subset(index, labels.name)
        return {
            "images": len(chosen),
            "positives": dict(zip(labels.classes, chosen.positives().tolist(), strict=True)),
            "ignored": dict(zip(labels.classes, chosen.ignored().tolist(), strict=True)),
        }

    return {
        "name": labels.name,
        "fingerprint": labels.fingerprint(),
        "preprocessing": fingerprint(size),
        "train": part(examples.train),
        "selection": part(examples.selection),
    }


def describe_model(config: TrainConfig, model: nn.Module) -> dict[str, Any]:
    """The number of parameters, and the SHA-256 of the file that the weights started from ("" where none)."""
    weights = Path(config.model.weights)
    named = config.model.weights not in ("imagenet", "none")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if named else "",
    }


def describe_session(config: TrainConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Hardware, precision, processes, seed, source revision and versions of this process."""
    device = accelerator.device
    cuda = device.type == "cuda"
    return {
        "hardware": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if cuda else "",
            "gpus": accelerator.num_processes if cuda else 0,
        },
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "seed": config.seed,
        "source_revision": source_revision(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def cpu_model() -> str:
    """The processor's name as Linux gives it; "" where it gives none."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """The installed versions of `PACKAGES`, and CUDA's where torch was built for it."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})
