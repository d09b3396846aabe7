"""The archive that the VOC evaluation server takes, and what must hold before it is sent.

Layout (VOC2012 development kit, "Submission of results" and 3.3.1, "Classification results file format"):

    results/VOC2012/Main/comp1_cls_test_aeroplane.txt     "<image id> <confidence>", one line an image

comp1 is for what was trained on VOC's own training images alone, comp2 for anything else.
"""

import gzip
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.labels import VOC_CLASSES
from data.scores import Scores, read_scores
from data.voc import default_devkit, find_devkit, list_splits
from eval.feedback import find_run
from eval.joining import examples
from eval.options import SubmitConfig
from train.tracking import open_store

_ENDINGS = (".tar.gz", ".tgz")
_MEMBER = re.compile(r"results/(VOC20\d\d)/Main/(comp[12])_cls_([^_/]+)_([^/]+)\.txt")
REMINDER = (
    "the server takes two submissions a week at most, for final results: never choose a model by them",
    "the 0.85 rule: submit a model only when its served mAP on val is at least 0.85 "
    "(python eval/report.py), so that no submission is spent on a mistake",
)


def submit(config: SubmitConfig) -> None:
    """Write the archive that `config` asks for and check it, or check the one that it names; prints the outcome.

    Raises:
        InputError: the first thing that the server would not take, or a comp1 that may not be one.
    """
    folder, ids = read_ids(config.data, config.split)
    if config.check:
        comp = check_archive(config.check, folder, config.split, ids)
        print(
            f"{config.check}: {comp}, {len(VOC_CLASSES)} classes x {len(ids)} images of {folder} {config.split}"
        )
        return
    if not config.out.name.endswith(_ENDINGS):
        raise InputError(f"--out must end in {' or '.join(_ENDINGS)}, got {config.out}")
    scores = read_scores(config.scores)
    require_complete(scores, ids, f"{folder} {config.split}")
    if config.comp == "comp1":
        require_from_scratch(config, scores.metadata)
    write_archive(config.out, scores, ids, folder, config.comp, config.split)
    check_archive(config.out, folder, config.split, ids)
    print(
        f"{config.out}: {config.comp}, {len(VOC_CLASSES)} classes x {len(ids)} images of {folder} {config.split}"
    )
    if config.split != "test":
        print(f"note: the server takes the split test; this archive is of {config.split}")
    for line in REMINDER:
        print(f"remember: {line}")


def read_ids(root: Path | None, split: str) -> tuple[str, tuple[str, ...]]:
    """The devkit's name ("VOC2012") and the image ids of the split, whose labels may be unknown.

    Raises:
        InputError: no devkit, no such split, or a repeated id, naming file and line.
    """
    folder, _ = find_devkit(root if root is not None else default_devkit())
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(list_splits(folder)) or "none"
        raise InputError(
            f"no split '{split}' in {folder} ({path.name} is missing; there: {there}); the test images and their "
            "list come with the test part of the development kit"
        )
    lines: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        image_id = line.strip()
        if image_id in lines:
            raise InputError(
                f"{path}:{number}: image '{image_id}' stands twice, first in line {lines[image_id]}"
            )
        if image_id:
            lines[image_id] = number
    if not lines:
        raise InputError(f"{path} names no image")
    if not re.fullmatch(r"VOC20\d\d", folder.name):
        raise InputError(
            f"the devkit's folder must be named VOC2012 or VOC2007, as the server wants, got {folder}"
        )
    return folder.name, tuple(lines)


def require_complete(scores: Scores, ids: Sequence[str], name: str) -> None:
    """Raise `InputError` unless the scores are of VOC's classes and of every image of the split."""
    missing = [c for c in VOC_CLASSES if c not in scores.classes]
    if missing:
        raise InputError(
            f"the server wants all {len(VOC_CLASSES)} classes; no scores for {', '.join(missing)}"
        )
    there = set(scores.image_ids)
    lost = [image_id for image_id in ids if image_id not in there]
    if lost:
        failed = [image_id for image_id in lost if image_id in scores.failed]
        why = f" ({len(failed)} of them failed: {scores.failed[failed[0]]})" if failed else ""
        raise InputError(f"{len(lost)} of {len(ids)} images of {name} have no score{why}: {examples(lost)}")


def require_from_scratch(config: SubmitConfig, metadata: Mapping[str, str]) -> None:
    """Raise `InputError` unless the model is known, or stated, to have started from random weights."""
    weights, source = _starting_weights(config.config, metadata)
    if weights is None:
        if not config.trained_from_scratch:
            raise InputError(
                f"comp1 takes no pre-trained weights, and what this model started from is unknown ({source}); give "
                "--config RUN/config.json, state --trained-from-scratch, or use --comp comp2"
            )
    elif weights != "none":
        raise InputError(
            f"comp1 takes no pre-trained weights, and this model started from '{weights}' ({source}); "
            "use --comp comp2"
        )


def _starting_weights(path: Path | None, metadata: Mapping[str, str]) -> tuple[str | None, str]:
    """`model.weights` of the training run and where it was read; None and why not where it is unknown."""
    if path is not None:
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            return str(content["model"]["weights"]), str(path)
        except OSError as error:
            raise InputError(f"--config {path} can't be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--config {path} is no config.json of a run: it has no model.weights"
            ) from error
    store: Any = open_store() if metadata.get("model_hash") else None
    run_id, note = find_run(store, metadata)
    if not run_id:
        return None, note
    return store.get_run(run_id).data.params.get("model.weights"), f"MLflow run {run_id}"


def write_archive(path: Path, scores: Scores, ids: Sequence[str], folder: str, comp: str, split: str) -> None:
    """Write the archive by an atomic rename. Confidences are the logits with 9 digits, which keep every float32;
    images stand in the split's order, and the archive's bytes depend on nothing else (no times, no owner)."""
    row_of = {image_id: row for row, image_id in enumerate(scores.image_ids)}
    logit = scores.logit[[row_of[image_id] for image_id in ids]]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with (
        partial.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for name in VOC_CLASSES:
            column = logit[:, scores.classes.index(name)].tolist()
            text = "".join(f"{image_id} {value:.9g}\n" for image_id, value in zip(ids, column, strict=True))
            member = tarfile.TarInfo(f"results/{folder}/Main/{comp}_cls_{split}_{name}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    os.replace(partial, path)


def check_archive(path: Path, folder: str, split: str, ids: Iterable[str]) -> str:
    """Check every file and every line of an archive; returns the competition it is for.

    Args:
        path: the .tar.gz.
        folder: the devkit's name, such as "VOC2012".
        split: such as "test".
        ids: the images of the split.

    Raises:
        InputError: naming the file, the line and the rule.
    """
    wanted = set(ids)
    found: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.isdir():
                    continue
                match = _MEMBER.fullmatch(member.name)
                if not match or not member.isfile():
                    raise InputError(
                        f"{path}: '{member.name}' has no place there; the server takes files "
                        f"results/{folder}/Main/compN_cls_{split}_<class>.txt alone"
                    )
                year, comp, part, name = match.groups()
                if (year, part) != (folder, split) or name not in VOC_CLASSES:
                    raise InputError(
                        f"{path}: '{member.name}' is not of {folder} {split} or not of one of VOC's classes"
                    )
                if name in found:
                    raise InputError(f"{path}: class '{name}' stands twice, first for {found[name]}")
                found[name] = comp
                data = archive.extractfile(member)
                _check_lines(f"{path}: {member.name}", data.read() if data else b"", wanted)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{path} is not a .tar.gz archive that can be read: {error}") from error
    missing = [name for name in VOC_CLASSES if name not in found]
    if missing:
        raise InputError(f"{path}: no file for {len(missing)} classes: {examples(missing)}")
    if len(set(found.values())) > 1:
        raise InputError(f"{path} mixes {' and '.join(sorted(set(found.values())))}; an archive is for one")
    return next(iter(found.values()))


def _check_lines(where: str, content: bytes, wanted: set[str]) -> None:
    seen: set[str] = set()
    try:
        lines = content.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not plain ASCII text (byte {error.start})") from error
    if lines.pop():
        raise InputError(f"{where}:{len(lines) + 1}: the last line has no end")
    for number, line in enumerate(lines, 1):
        cells = line.split(" ")
        try:
            value = float(cells[1])
        except (IndexError, ValueError):
            value = math.nan
        if len(cells) != 2 or not math.isfinite(value):
            raise InputError(
                f"{where}:{number}: a line must be '<image id> <finite confidence>', got '{line[:80]}'"
            )
        if cells[0] not in wanted:
            raise InputError(f"{where}:{number}: image '{cells[0]}' is not in the split")
        if cells[0] in seen:
            raise InputError(f"{where}:{number}: image '{cells[0]}' stands twice")
        seen.add(cells[0])
    if len(seen) != len(wanted):
        lost = sorted(wanted - seen)
        raise InputError(f"{where}: {len(lost)} images of the split are missing: {examples(lost)}")
