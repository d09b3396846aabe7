"""In processes of their own: what one test loads is loaded for all that follow."""

import subprocess
import sys
from pathlib import Path

import pytest

_TRAIN = """
import sys, torch
from train.backbones import make_backbone
from train.config import TrainConfig
from train.process import start_process

accelerator, _ = start_process(TrainConfig(precision="float32"))
model = make_backbone("resnet18", "none", 32)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), fused=True))
optimizer.zero_grad()
accelerator.backward(model(torch.rand(2, 3, 32, 32)).pooled.sum())
accelerator.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
torch.nn.parallel.DistributedDataParallel(model)(torch.rand(2, 3, 32, 32))
torch.distributed.destroy_process_group()
assert "sympy" not in sys.modules
"""
_START = (
    "import sys, torch; from train.lazy_dynamo import put_off; put_off(); assert 'sympy' not in sys.modules; "
)
_LOADED = "; assert torch._dynamo.config.verbose is False and 'sympy' in sys.modules"
_LOADED += "; assert issubclass(torch.distributed.tensor.DTensor, torch.Tensor)"


def run(script: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_put_off__training_a_backbone_of_torchvision_loads_none_of_it() -> None:
    run(_TRAIN)


@pytest.mark.parametrize(
    "use",
    [
        "run = torch.compile(lambda x: x + 1, backend='eager'); assert run(torch.ones(2)).sum() == 4",
        "import torch._dynamo.config, torch.distributed.tensor.placement_types",
    ],
)
def test_put_off__whatever_needs_it_gets_the_real_one(use: str) -> None:
    run(_START + use + _LOADED)
