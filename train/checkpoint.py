"""The files of a run folder, and how they are written so that an interruption leaves none half-written."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError

CONFIG = "config.json"
HISTORY = "history.csv"
SELECTION = "selection.csv"
ENVIRONMENT = "environment.json"
CURVES = "curves.png"
RESULT = "result.json"
BEST = "best.pt"
LAST = "last.pt"
RUN_FILES = (CONFIG, HISTORY, SELECTION, ENVIRONMENT, CURVES, RESULT, BEST, LAST)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint by an atomic rename: the previous one stays usable until the new one is complete."""
    partial = path.with_name(path.name + ".part")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            f"checkpoint {path} could not be written ({error}); the previous one is as it was"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Weights and plain values only: no code in the file is run."""
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
    ) as error:
        raise InputError(
            f"checkpoint {path} is damaged: it cannot be read as written by torch.save"
        ) from error
    return state


def claim(out: Path, overwrite: bool, resume: bool) -> None:
    """Make `out` ready for a run: refuse to mix with what is there unless told what to do with it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    content = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if resume:
        if LAST not in content:
            raise InputError(f"--resume: no {LAST} in {out}; leave --resume out to start a run there")
        return
    if content and not overwrite:
        raise InputError(
            f"--out {out} is not empty; choose another folder, or --resume to go on with its run, or --overwrite"
        )
    foreign = sorted(content - set(RUN_FILES))
    if foreign:
        raise InputError(
            f"--overwrite: {out} holds '{foreign[0]}', which is not a run's file; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in content:
        (out / name).unlink()
