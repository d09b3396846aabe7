"""From options to a report folder: read, judge, draw, write.

The folder holds exactly `metrics.json`, `report.html`, and `sheets/` where the photographs are at hand.
It is written beside its place and renamed, so a report is there whole or not at all.
"""

import json
import os
import shutil
from pathlib import Path

from rich.console import Console

from data.errors import InputError
from data.scores import Scores, read_scores
from eval.gallery import random_classes, write_sheets
from eval.joining import Joined, class_columns, join, load_labels
from eval.judge import Judgement, judge, to_json
from eval.options import ReportConfig
from eval.page import render
from eval.table import print_table

METRICS, PAGE, SHEETS = "metrics.json", "report.html", "sheets"


def write_report(config: ReportConfig, console: Console | None = None) -> Judgement:
    """Judge the score file and write the report to `config.out`; prints the table and the paths.

    Raises:
        InputError: a file that is missing or wrong, scores and labels that don't fit each other, or an
            output folder that holds something else.
    """
    console = console or Console()
    out = config.out
    refuse_foreign(out)
    if config.replicates < 1:
        raise InputError(f"--replicates must be at least 1, got {config.replicates}")
    scores = _scores(config.scores)
    joined = join(
        scores, load_labels(config.data, config.split, config.labels, config.images), config.allow_missing
    )
    names = [name.strip() for name in config.classes.split(",") if name.strip()]
    judgement = judge(joined, class_columns(names, joined.classes), config.replicates, config.seed)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write(partial, judgement, scores, config)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print_table(judgement, console)
    for name in (METRICS, PAGE, *([SHEETS] if joined.paths else [])):
        console.print(str(out / name), highlight=False, markup=False, soft_wrap=True)
    return judgement


def _scores(path: Path) -> Scores:
    if not path.is_file():
        raise InputError(
            f"no score file at {path}; `python serve/client.py score` writes one, or give --scores FILE"
        )
    return read_scores(path)


def _write(folder: Path, judgement: Judgement, scores: Scores, config: ReportConfig) -> None:
    joined = judgement.joined
    metadata = {"file": config.scores.name, **scores.metadata}
    if joined.paths:
        write_sheets(joined, folder / SHEETS, range(len(joined.classes)))
    text = json.dumps(to_json(judgement, metadata), indent=1, allow_nan=False)
    (folder / METRICS).write_text(text + "\n")
    page = render(judgement, metadata, _gallery_columns(joined, judgement, config.seed))
    (folder / PAGE).write_text(page, encoding="utf-8")


def _gallery_columns(joined: Joined, judgement: Judgement, seed: int) -> list[int]:
    """The columns of the gallery's random classes, drawn among the chosen classes where some were chosen."""
    if not joined.paths:
        return []
    return random_classes(joined, class_columns(judgement.headline.classes, joined.classes), seed)


def refuse_foreign(out: Path) -> None:
    """Raise `InputError` where `out` is there and is not empty and not a previous report."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"--out must be a folder, and {out} is a file")
    there = {path.name for path in out.iterdir()}
    foreign = sorted(there - {METRICS, PAGE, SHEETS})
    if not foreign and (out / SHEETS).is_dir():
        foreign = sorted(f"{SHEETS}/{p.name}" for p in (out / SHEETS).iterdir() if p.suffix != ".jpg")
    if not foreign and there and METRICS not in there:
        foreign = sorted(there)
    if foreign:
        raise InputError(
            f"{out} is no previous report: it holds '{foreign[0]}'; choose another --out or empty it"
        )
