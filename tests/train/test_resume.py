"""Interruptions: whatever happens to a run, it ends with the weights of one that was left alone."""

import dataclasses
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import InputError
from train import checkpoint
from train.batches import Batch
from train.config import AugmentConfig, LossConfig, ScheduleConfig, TrainConfig
from train.config_files import write_config
from train.interrupt import EXIT_TERMINATED
from train.loop import fit
from train.step import Stepped, Stepper

ROOT = Path(__file__).resolve().parents[2]


def rich(smoke: TrainConfig, out: Path, epochs: int) -> TrainConfig:
    """With everything that has a state or random numbers: queue, dropout, mixing, average, momentum cycle."""
    return dataclasses.replace(
        smoke,
        out=out,
        loss=LossConfig(name="smooth_ap"),
        augment=AugmentConfig(flip=0.0, mixup=0.4, mix_probability=0.5, cutout=0.2, cutout_probability=0.5),
        schedule=ScheduleConfig(epochs=epochs, shape="one_cycle", warmup=0.3),
        ema=0.9,
        checkpoint_minutes=1e-6,  # after every step
    )


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        out: dict[str, Any] = {}
        for key, value in items:
            out |= flat(value, f"{prefix}{key}/")
        return out
    return {prefix: state}


def assert_same_end(one: Path, two: Path) -> None:
    """Bit for bit: weights, average, optimiser, queue, account; only the clock may differ."""
    first, second = (flat(checkpoint.load(out / checkpoint.LAST)) for out in (one, two))
    assert first.keys() == second.keys()
    for key, value in first.items():
        if "time" in key or "seconds" in key:
            continue
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key] or value != value, key


def start(config: TrainConfig, folder: Path, *flags: str) -> subprocess.Popen[str]:
    file = folder / f"{config.out.name if config.out else ''}.json"
    write_config(file, config)
    command = [sys.executable, str(ROOT / "train" / "main.py"), "--config", str(file), *flags]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_step(out: Path, process: subprocess.Popen[str], epoch: int) -> None:
    """Until a checkpoint says that `epoch` is in progress, and a random moment longer."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(InputError, OSError):  # between the two renames of a save there is no such file
            state = checkpoint.load(out / checkpoint.LAST)
            if len(state["history"]) + 1 >= epoch and state["step"] > 0:
                time.sleep(random.random() * 0.2)
                return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def test_fit__killed_at_a_random_step_ends_with_the_same_weights(smoke: TrainConfig, tmp_path: Path) -> None:
    config = rich(smoke, tmp_path / "killed", 5)
    process = start(config, tmp_path)
    wait_for_step(tmp_path / "killed", process, epoch=2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut = checkpoint.load_latest(tmp_path / "killed")
    assert len(cut["history"]) < 5
    fit(dataclasses.replace(config, resume=True, checkpoint_minutes=0))
    fit(dataclasses.replace(config, out=tmp_path / "whole", checkpoint_minutes=0))
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_main__sigterm_saves_and_leaves_with_its_own_code(smoke: TrainConfig, tmp_path: Path) -> None:
    # Checkpoints after epochs only: what is saved within one comes from the signal.
    config = dataclasses.replace(rich(smoke, tmp_path / "term", 500), checkpoint_minutes=0)
    process = start(config, tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "term" / checkpoint.LAST).is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == EXIT_TERMINATED == 75
    assert "go on with --resume" in stderr
    assert "Traceback" not in stderr
    state = checkpoint.load(tmp_path / "term" / checkpoint.LAST)
    assert f"stopped after epoch {len(state['history'])} and {state['step']} steps" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fit__a_signal_in_the_middle_of_an_epoch_is_no_loss(
    smoke: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = dataclasses.replace(rich(smoke, tmp_path / "cut", 2), checkpoint_minutes=0)
    real = Stepper.step

    def step(self: Stepper, batch: Batch, at: int) -> Stepped:
        if at == 8:  # six steps an epoch: the second epoch's third
            os.kill(os.getpid(), number)
        return real(self, batch, at)

    monkeypatch.setattr(Stepper, "step", step)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        fit(config)
    assert signal.getsignal(number) == before
    state = checkpoint.load(tmp_path / "cut" / checkpoint.LAST)
    assert (len(state["history"]), state["step"]) == (1, 3)
    monkeypatch.setattr(Stepper, "step", real)
    fit(dataclasses.replace(config, resume=True))
    fit(dataclasses.replace(config, out=tmp_path / "whole"))
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_fit__damaged_checkpoint_leaves_the_one_before(
    smoke: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(smoke, schedule=ScheduleConfig(epochs=3), out=tmp_path / "run")
    fit(config)
    last, previous = tmp_path / "run" / checkpoint.LAST, tmp_path / "run" / checkpoint.PREVIOUS
    # One changed bit, which torch.load would not see.
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(InputError, match=r"last.pt is damaged"):
        checkpoint.load(last)
    fit(dataclasses.replace(config, resume=True))
    assert "going on from the one before it, previous.pt" in capsys.readouterr().err
    fit(dataclasses.replace(config, out=tmp_path / "whole"))
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    for path in (last, previous):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"previous.pt is damaged"):
        fit(dataclasses.replace(config, resume=True))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The disk is full after that many bytes of one file, as the kernel says it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_save__full_disk_is_said_and_the_one_before_stays(tmp_path: Path) -> None:
    last, previous = tmp_path / checkpoint.LAST, tmp_path / checkpoint.PREVIOUS
    for step in (1, 2):
        checkpoint.save(last, {"step": step, "model": torch.ones(10)}, keep=previous)
    with largest_file(50_000), pytest.raises(OSError, match=r"last.pt could not be written .*as it was"):
        checkpoint.save(last, {"step": 3, "model": torch.ones(100_000)}, keep=previous)
    assert checkpoint.load(last)["step"] == 2
    assert checkpoint.load(previous)["step"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.LAST, checkpoint.PREVIOUS}


def test_load_latest__killed_between_the_two_renames(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / checkpoint.PREVIOUS, {"step": 1})
    checkpoint.claim(tmp_path, overwrite=False, resume=True)
    assert checkpoint.load_latest(tmp_path)["step"] == 1
