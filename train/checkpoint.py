"""The files of a run folder, and how they are written so that an interruption leaves none half-written."""

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError
from train.outbox import OUTBOX

CONFIG = "config.json"
HISTORY = "history.csv"
SELECTION = "selection.csv"
ENVIRONMENT = "environment.json"
CURVES = "curves.png"
RESULT = "result.json"
BEST = "best.pt"
LAST = "last.pt"
PREVIOUS = "previous.pt"
DIVERGED = "diverged.json"
SELECTION_SCORES = "selection.npz"
RUN_FILES = (
    CONFIG,
    HISTORY,
    SELECTION,
    ENVIRONMENT,
    CURVES,
    RESULT,
    BEST,
    LAST,
    PREVIOUS,
    DIVERGED,
    SELECTION_SCORES,
)


def save(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Write a checkpoint by an atomic rename: the one before it stays usable until the new one is complete.

    Args:
        path: the file.
        state: tensors and plain values.
        keep: what the file that `path` held becomes; None: it is replaced.

    Raises:
        OSError: it could not be written, such as on a full disk. `path` is as it was.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if keep and path.is_file():
            os.replace(path, keep)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            f"checkpoint {path} could not be written ({error}); the one before it is as it was"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Weights and plain values only: no code in the file is run.

    Raises:
        InputError: there is none, or it is damaged. Its checksums are compared, which torch.load does not do:
            it gave other weights without a word for a file with one changed bit.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of '{damaged}' does not match")
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


def load_latest(out: Path) -> dict[str, Any]:
    """The last checkpoint of a run; where it is damaged, the one before it, which is said on stderr.

    Raises:
        InputError: neither can be read.
    """
    try:
        return load(out / LAST)
    except InputError as error:
        if not (out / PREVIOUS).is_file():
            raise
        print(f"note: {error}; going on from the one before it, {PREVIOUS}", file=sys.stderr, flush=True)
        return load(out / PREVIOUS)


def forget(out: Path) -> None:
    """Remove what a run that saved no checkpoint left in its folder, all but its MLflow run."""
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)


def claim(out: Path, overwrite: bool, resume: bool) -> None:
    """Make `out` ready for a run: refuse to mix with what is there unless told what to do with it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    content = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    # Of a run that ended before its first checkpoint: the MLflow run is gone on with.
    if content == {OUTBOX} and not resume:
        return
    if resume:
        if not content & {LAST, PREVIOUS}:
            raise InputError(f"--resume: no {LAST} in {out}; leave --resume out to start a run there")
        return
    if content and not overwrite:
        raise InputError(
            f"--out {out} is not empty; choose another folder, or --resume to go on with its run, or --overwrite"
        )
    foreign = sorted(content - {*RUN_FILES, OUTBOX})
    if foreign:
        raise InputError(
            f"--overwrite: {out} holds '{foreign[0]}', which is not a run's file; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in content:
        (out / name).unlink()
