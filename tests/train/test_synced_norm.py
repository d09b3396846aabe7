import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # checkpointing imports it at its first call: once here, not in each fork
import torch.distributed as dist
from torch import Tensor, nn

from train.config import ModelConfig
from train.heads import make_model
from train.noise import noise_of
from train.synced_norm import SyncedBatchNorm2d, synchronise_norms

BATCH = 12
SHARES = ([6, 6], [3, 3, 3, 3], [5, 1, 4, 2])


def example() -> tuple[Tensor, nn.Module, Tensor]:
    """A batch whose rows and channels differ in mean, a small network on it, and the weights of its output."""
    torch.manual_seed(3)
    # The second channel's mean is 100 times its deviation.
    x = torch.randn(BATCH, 3, 5, 4) + torch.tensor([0.0, 100.0, -2.0]).view(1, 3, 1, 1)
    x += torch.arange(BATCH).view(-1, 1, 1, 1) / 4
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Tanh())
    for norm in (model[0], model[2]):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias)
    return x, model, torch.randn(BATCH, 4, 3, 2)


def two_steps(model: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    model.train()
    with torch.no_grad():
        model(x + 1)
    out = model(x)
    (out * weights).sum().backward()
    gradients = {f"grad/{name}": p.grad for name, p in model.named_parameters()}
    return {"out": out.detach(), "x": x.grad} | gradients | model.state_dict()


def work(rank: int, folder: str, shares: list[int]) -> None:
    world = len(shares)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    first, last = sum(shares[:rank]), sum(shares[: rank + 1])
    x, model, weights = example()
    model = synchronise_norms(model)
    found = two_steps(model, x[first:last], weights[first:last]) | whole_model(first, last)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def whole_model(first: int, last: int) -> dict[str, Tensor]:
    """A step of a classifier with all that may depend on the number of processes."""
    torch.manual_seed(0)
    config = ModelConfig("tiny_resnet", "none", dropout=0.2, drop_path=0.5, gradient_checkpointing=True)
    model = make_model(config, 3, 32)
    # Without kinks: rounding, which differs between CPUs, may put an input of a ReLU next to 0 on its other side, and
    # the gradients below it then differ by far more than rounding (by 2 % on one CPU).
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    model = synchronise_norms(model).train()
    pixels = 255 * torch.rand(BATCH, 3, 32, 32)
    noise_of(model).start(0, 0, first, last, BATCH)
    logit = model(pixels[first:last])
    logit.square().sum().backward()
    found = {f"model/grad/{name}": p.grad for name, p in model.named_parameters()}
    found |= {f"model/{name}": value for name, value in model.named_buffers()}
    return found | {"model/logit": logit.detach()}


def joined(folder: Path, world: int) -> dict[str, Tensor]:
    """Rows one after the other, gradients of parameters added, and statistics, which must be the same bits."""
    parts = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    out = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        if key in ("out", "x", "model/logit"):
            out[key] = torch.cat(values)
        elif "grad/" in key:
            out[key] = torch.stack(values).sum(0)
        else:
            assert all(torch.equal(value, values[0]) for value in values)
            out[key] = values[0]
    return out


def start_all(root: Path) -> None:
    """Run `work` for each of `SHARES`; its results go into a folder of `root` each."""
    torch.set_num_threads(1)
    for shares in SHARES:
        folder = root / "-".join(map(str, shares))
        folder.mkdir()
        torch.multiprocessing.start_processes(
            work, (str(folder), shares), nprocs=len(shares), start_method="fork"
        )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forked from a fresh interpreter: autograd refuses to work in a fork of one that has used it."""
    root = tmp_path_factory.mktemp("processes")
    subprocess.run([sys.executable, __file__, str(root)], check=True)
    return root


@pytest.mark.parametrize("shares", SHARES)
def test_synced_norm__processes_equal_one_with_the_whole_batch(shares: list[int], results: Path) -> None:
    x, model, weights = example()
    wanted = two_steps(model, x, weights) | whole_model(0, BATCH)
    found = joined(results / "-".join(map(str, shares)), len(shares))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(
            found[key], value, rtol=1e-5, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_synchronise_norms__keeps_names_weights_and_evaluation() -> None:
    plain = make_model(ModelConfig("tiny_resnet", "none"), 3, 32)
    synced = synchronise_norms(copy.deepcopy(plain))
    norms = [module for module in synced.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 8
    assert {type(norm) for norm in norms} == {SyncedBatchNorm2d}
    assert plain.state_dict().keys() == synced.state_dict().keys()
    pixels = 255 * torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(synced.eval()(pixels), plain.eval()(pixels), rtol=0, atol=0)


if __name__ == "__main__":
    start_all(Path(sys.argv[1]))
