"""From options to a report folder: read, judge, draw, write.

The folder holds exactly `metrics.json`, `report.html`, `explorer.html`, `report.pdf` where it was asked for, and
`sheets/` where the photographs are at hand. It is written beside its place and renamed, so a report is there
whole or not at all. Then the figures go back to the model's MLflow run, where that is known.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from data.errors import InputError
from data.labels import LabelSet
from data.scores import Scores, read_scores
from eval.beside import Beside, beside, foreign_note, model_title, print_beside
from eval.comparison import compare_scores
from eval.explorer import write_explorer
from eval.feedback import feed_back, find_run
from eval.gallery import random_classes, write_sheets
from eval.joining import Joined, class_columns, join, load_labels
from eval.judge import Judgement, judge, to_json
from eval.options import ReportConfig
from eval.page import render
from eval.ranking import Floats
from eval.table import print_table
from train.tracking import open_store

if TYPE_CHECKING:
    from eval.facts import Facts

METRICS, PAGE, EXPLORER, PAPER = "metrics.json", "report.html", "explorer.html", "report.pdf"
SHEETS = "sheets"


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
    labels = load_labels(config.data, config.split, config.labels, config.images)
    joined = join(scores, labels, config.allow_missing)
    names = [name.strip() for name in config.classes.split(",") if name.strip()]
    chosen = class_columns(names, joined.classes)
    facts = _facts(scores, labels, config)
    judgement = judge(joined, chosen, config.replicates, config.seed, _thresholds(scores))
    shown = _beside(scores, labels, names, config)
    judgement = replace(judgement, notes=(*judgement.notes, *foreign_note(shown)))
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        notes = _write(partial, judgement, scores, facts, shown, config)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print_table(judgement, console)
    if shown:
        print_beside(shown, console)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    there = [out / name for name in (METRICS, PAGE, EXPLORER, PAPER, SHEETS) if (out / name).exists()]
    for path in there:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
    if config.feedback:
        files = [path for path in there if path.is_file()]
        precision = shown.gate.precision if shown and shown.gate else ""
        told = _feed_back(judgement, scores, facts.run_id if facts else "", files, precision)
        console.print(f"MLflow: {told}", highlight=False, markup=False, soft_wrap=True)
    return judgement


def _facts(scores: Scores, labels: LabelSet, config: ReportConfig) -> "Facts | None":
    """How the model was made, where a PDF will tell it or a run was named."""
    if not config.pdf and not config.run:
        return None
    from eval.facts import collect_facts

    return collect_facts(scores, labels, config.run)


def _beside(scores: Scores, labels: LabelSet, classes: list[str], config: ReportConfig) -> Beside | None:
    """The judged model beside the one that it was made from, or the one of --also."""
    if config.also is None:
        return beside(scores, config.scores.name, None, None)
    other, files = read_scores(config.also), (str(config.scores), str(config.also))
    options = (config.allow_missing, config.replicates, config.seed)
    compared = compare_scores(scores, other, labels, files, classes, *options)
    return beside(scores, config.scores.name, (other, config.also.name), compared)


def _thresholds(scores: Scores) -> Floats | None:
    """float64[C] of the score file's metadata, None where it does not tell."""
    text = scores.metadata.get("thresholds")
    if text is None:
        return None
    try:
        values = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"the score file's thresholds must be a JSON list of numbers, got '{text}'"
        ) from error
    if values.shape != (len(scores.classes),):
        raise InputError(
            f"the score file must hold one threshold a class ({len(scores.classes)}), got {values.size}"
        )
    return values


def _feed_back(judgement: Judgement, scores: Scores, run_id: str, files: list[Path], precision: str) -> str:
    """Tell the MLflow run of the figures, and say what became of it."""
    # Not opened for scores that name no model: MLflow takes seconds to import.
    store: Any = open_store() if run_id or scores.metadata.get("model_hash") else None
    note = "" if store else "there is no store here"
    if not run_id:
        run_id, note = find_run(store, scores.metadata)
    return feed_back(store, run_id, judgement, files, precision) if store and run_id else f"not told: {note}"


def _scores(path: Path) -> Scores:
    if not path.is_file():
        raise InputError(
            f"no score file at {path}; `python serve/client.py score` writes one, or give --scores FILE"
        )
    return read_scores(path)


def _write(
    folder: Path,
    judgement: Judgement,
    scores: Scores,
    facts: "Facts | None",
    shown: Beside | None,
    config: ReportConfig,
) -> list[str]:
    """Write the files; returns what a person should know of one that was left out."""
    joined = judgement.joined
    # The gate's figures have a place of their own.
    metadata = {"file": config.scores.name, **{k: v for k, v in scores.metadata.items() if k != "gate"}}
    if joined.paths:
        write_sheets(joined, folder / SHEETS, range(len(joined.classes)))
    content = to_json(judgement, metadata) | (shown.to_json() if shown else {})
    text = json.dumps(content, indent=1, allow_nan=False)
    (folder / METRICS).write_text(text + "\n")
    notes = []
    title = model_title(scores.metadata, config.scores.name)
    if config.explorer and (left_out := write_explorer(folder / EXPLORER, joined, title)):
        notes.append(f"no {EXPLORER}: {left_out}")
    if config.pdf and facts:
        from eval.paper import write_pdf

        write_pdf(folder / PAPER, joined, judgement, facts, shown)
    others = ((EXPLORER, "Tail explorer"), (PAPER, "PDF"))
    links = [(name, title) for name, title in others if (folder / name).exists()]
    page = render(judgement, metadata, _gallery_columns(joined, judgement, config.seed), links, shown)
    (folder / PAGE).write_text(page, encoding="utf-8")
    return notes


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
    foreign = sorted(there - {METRICS, PAGE, EXPLORER, PAPER, SHEETS})
    if not foreign and (out / SHEETS).is_dir():
        foreign = sorted(f"{SHEETS}/{p.name}" for p in (out / SHEETS).iterdir() if p.suffix != ".jpg")
    if not foreign and there and METRICS not in there:
        foreign = sorted(there)
    if foreign:
        raise InputError(
            f"{out} is no previous report: it holds '{foreign[0]}'; choose another --out or empty it"
        )
