"""The settings of the Ray Serve deployment. Nothing heavy is imported here."""

from dataclasses import dataclass, field
from typing import Literal

from data.errors import InputError
from serve.config import DEFAULT_MODEL, Limits, parse_address


@dataclass(frozen=True)
class ScaleConfig:
    """Serve one ONNX model by several replicas on a Ray cluster."""

    model: str = DEFAULT_MODEL
    """model.onnx at a path that every node has, or models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID in MLflow"""
    listen: str = "127.0.0.1:9000"
    """HOST:PORT; Ray's proxies listen on PORT of every interface, whatever HOST is, and for HTTP on the loopback's
    PORT + 1. Port 0 takes a free one"""
    replicas: tuple[int, int] = (1, 2)
    """fewest and most replicas; Ray starts and ends them between the two by the load"""
    target: float = 8.0
    """requests in flight in each replica that Ray aims at: above it more replicas, below it fewer"""
    cpus: int = 1
    """cores of each replica"""
    address: str = ""
    """of the Ray cluster: auto or HOST:PORT; "": one is started here, and ends with the command"""
    proxies: Literal["every", "head"] = "every"
    """which nodes listen: every one with a replica, or the head alone"""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: each replica takes a GPU of the cluster"""
    max_batch: int = 0
    """the most images in one batch of the model; 0: 32 on CUDA, 4 on the CPU"""
    stall_s: float = 20.0
    """seconds without progress of a batch after which a replica's worker counts as hung and is replaced"""
    grace_s: float = 20.0
    """seconds that a replica gets, when it is ended, for what it has accepted"""
    start_s: float = 120.0
    """seconds within which the fewest replicas must be ready"""
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Raise `InputError` naming the option, its rule and the value."""
        self.limits.check()
        if parse_address(self.listen, "--listen")[1] == 65535:
            raise InputError("--listen must leave PORT + 1 for HTTP, got port 65535")
        low, high = self.replicas
        if not 1 <= low <= high:
            raise InputError(f"--replicas must be MIN MAX with 1 <= MIN <= MAX, got {low} {high}")
        if not 1 <= self.cpus <= 1024:
            raise InputError(f"--cpus must be from 1 to 1024, got {self.cpus}")
        if not 0 <= self.max_batch <= 4096:
            raise InputError(f"--max-batch must be from 0 to 4096, got {self.max_batch}")
        for name in ("target", "stall_s", "start_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.grace_s < 0:
            raise InputError(f"--grace-s must be at least 0, got {self.grace_s}")
