"""The report as a short paper (PDF, A4): everything that another person needs to make the result again.

Typst sets it (templates/paper.typ) from a JSON file that is written here: every word comes from the run, the
judgement, or the protocol of a published result. Nothing is loaded from elsewhere, and the same input gives the
same bytes: the fonts are Typst's own and the date is that of the training.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.beside import Beside
from eval.commands import score_commands, train_command
from eval.facts import Facts, Part
from eval.gallery import GALLERY_IMAGES, Shown, extremes, random_classes, thumbnail
from eval.joining import Joined, class_columns
from eval.judge import Judgement, Means
from eval.paper_figures import curves_svg, tail_svg
from eval.paper_run import (
    UNKNOWN,
    loss_content,
    machine_rows,
    model_rows,
    search_content,
    training_rows,
    versions_text,
)
from eval.published import TEST, VAL, Published, protocol
from eval.table import percent, span, tail_sentence

# The version of a model that the server read from a file instead of the registry.
_FILE = "file"
_TEMPLATE = Path(__file__).parent / "templates" / "paper.typ"
_THUMBNAIL = 260
# Above this, the paper would be longer than five pages; metrics.json has the rest.
MAX_CLASSES = 80


def write_pdf(
    path: Path, joined: Joined, judgement: Judgement, facts: Facts, beside: Beside | None = None
) -> None:
    """Write the paper.

    Args:
        path: the PDF file.
        joined: scores and labels; the photographs are shown where their paths are known.
        judgement: the figures.
        facts: how the model was made (`eval.facts.collect_facts`).
        beside: another model to show beside the judged one.
    """
    import typst

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(_TEMPLATE, folder / "paper.typ")
        content = paper_content(joined, judgement, facts)
        content["beside"] = _beside(beside) if beside else None
        content["figures"] = _write_figures(folder, judgement, facts)
        content["gallery"] = _write_gallery(folder, joined, judgement)
        (folder / "paper.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        data = typst.compile(
            folder / "paper.typ",
            root=folder,
            ignore_system_fonts=True,
            timestamp=int(_moment(facts).timestamp()),
        )
    path.write_bytes(data)


def paper_content(joined: Joined, judgement: Judgement, facts: Facts) -> dict[str, Any]:
    """What the template sets, as text: pictures apart. Unknown facts read "not recorded"."""
    head = judgement.headline
    name = facts.score_file.get("model_name", "Scores of unknown origin")
    version = facts.score_file.get("model_version", "")
    if version not in ("", _FILE):
        name += f" version {version}"
    place = protocol(joined, facts)
    everything = judgement.overall  # published results are over all classes, whichever were chosen here
    return {
        "title": f"{name} on {joined.name}",
        "date": _moment(facts).date().isoformat() if facts.sessions else "",
        "map": percent(head.map["voc2010"]),
        "interval": span(*head.interval["voc2010"]),
        "summary": _summary(joined, judgement, facts),
        "notes": [*facts.notes, *judgement.notes],
        "data": _data(joined, facts),
        "model": model_rows(facts),
        "loss": loss_content(facts),
        "training": training_rows(facts),
        "search": search_content(facts.search),
        "classes": _classes(joined, judgement, facts),
        "means": _means(judgement),
        "other": _other(judgement),
        "accuracy": f"Accuracy is {percent(head.accuracy)} %; always answering “no” reaches "
        f"{percent(head.always_no)} %, so accuracy says little.",
        "tail": tail_sentence(head),
        "published": {
            "sentence": place.sentence,
            "comparable": place.comparable,
            "own": [
                name,
                f"{percent(everything.map['voc2010'])} ({span(*everything.interval['voc2010'])})",
                place.trained,
                place.tested,
                "this paper",
            ],
            "val": [_published(row) for row in VAL],
            "test": [_published(row) for row in TEST],
        },
        "commands": _commands(joined, judgement, facts),
        "machine": [["model SHA-256", facts.score_file.get("model_hash") or UNKNOWN], *machine_rows(facts)],
        "versions": versions_text(facts),
        "seed": judgement.seed,
    }


def _beside(beside: Beside) -> dict[str, Any]:
    said = [beside.sentence() + "."] if beside.compared else []
    if beside.gate:
        said.append(
            "The judged model is a cheaper copy, which its export wrote because of its mAP on the selection part."
        )
    header = ["", f"A: {beside.a}", f"B: {beside.b}", "A against B"]
    return {"title": beside.title, "header": header, "rows": beside.rows(), "text": " ".join(said)}


def _moment(facts: Facts) -> datetime:
    """When the training started; the epoch of Unix where that is not recorded, so that no clock is in the file."""
    started = facts.sessions[-1]["started"] if facts.sessions else "1970-01-01T00:00:00+00:00"
    return datetime.fromisoformat(started)


def _summary(joined: Joined, judgement: Judgement, facts: Facts) -> str:
    head, sentence = judgement.headline, []
    which = "chosen classes" if judgement.chosen else "classes"
    sentence.append(
        f"The mean average precision (VOC 2010-2012 definition) over the {head.num_classes} {which} with a positive "
        f"is {percent(head.map['voc2010'])} % on {len(joined.image_ids):,} images "
        f"(95 % interval {span(*head.interval['voc2010'])}, {judgement.replicates:,} bootstrap replicates over images)."
    )
    config = facts.config
    if config:
        sentence.append(
            f"The model is {config['model.backbone']} at {config['data.size']} px with {config['loss.name']} loss, "
            f"trained for {len(facts.history)} epochs"
            + (f" on {facts.data.train.images:,} images of {facts.data.name}." if facts.data else ".")
        )
    else:
        sentence.append("How the model was trained is not recorded with the scores.")
    sentence.append(
        f"Facts about the model were read from {facts.origin}; all figures are computed from the scores."
    )
    return " ".join(sentence)


def _data(joined: Joined, facts: Facts) -> dict[str, Any]:
    def row(part: str, name: str, counts: Part | None, fingerprint: str) -> list[str]:
        if counts is None:
            return [part, name, UNKNOWN, UNKNOWN, UNKNOWN, fingerprint]
        positives, ignored = sum(counts.positives.values()), sum(counts.ignored.values())
        return [part, name, f"{counts.images:,}", f"{positives:,}", f"{ignored:,}", fingerprint]

    data, tested = facts.data, facts.tested
    rows = [
        row(
            "training",
            data.name if data else UNKNOWN,
            data.train if data else None,
            data.fingerprint if data else UNKNOWN,
        ),
        row(
            "selection",
            data.name if data else UNKNOWN,
            data.selection if data else None,
            "the same labels" if data else UNKNOWN,
        ),
        row("test", tested.name, tested.counts, tested.fingerprint),
    ]
    text = (
        f"{len(joined.classes)} classes; an image may show any number of them. A pair of image and class is positive, "
        "negative, or ignored (only objects marked difficult), and an ignored pair takes part in nothing. "
    )
    if facts.config:
        text += (
            f"The selection part is a stratified {100 * float(facts.config['data.selection']):g} % of the images "
            f"(seed {facts.config.get('data.selection_seed', facts.config['seed'])}), held out to choose the epoch"
            + (" and the settings" if facts.search else "")
            + "; the test labels were used for the figures below only. "
        )
    text += f"Judged: {len(joined.image_ids):,} of {joined.labelled:,} test images"
    text += f"; {len(joined.failed)} failed to score." if joined.failed else "."
    return {"text": text, "rows": rows}


def _classes(joined: Joined, judgement: Judgement, facts: Facts) -> dict[str, Any]:
    rows = []
    for c, name in enumerate(joined.classes[:MAX_CLASSES]):
        ap = float(judgement.ap["voc2010"][c])
        low, high = float(judgement.ap_low[c]), float(judgement.ap_high[c])
        trained = (
            [str(part.positives.get(name, 0)) for part in (facts.data.train, facts.data.selection)]
            if facts.data
            else ["–", "–"]
        )
        rows.append(
            {
                "cells": [
                    name,
                    *trained,
                    str(judgement.positives[c]),
                    str(judgement.ignored[c]),
                    percent(ap),
                    span(low, high),
                ],
                "bar": None if math.isnan(ap) else [ap, *((low, high) if not math.isnan(low) else (ap, ap))],
                "rest": [
                    percent(float(judgement.ap["voc2007"][c])),
                    percent(float(judgement.ap["sklearn"][c])),
                ],
            }
        )
    hidden = len(joined.classes) - len(rows)
    return {"rows": rows, "more": f"{hidden} more classes are in metrics.json." if hidden else ""}


def _means(judgement: Judgement) -> list[list[str]]:
    def row(means: Means, what: str) -> list[str]:
        return [
            f"mean of {means.num_classes}{what}",
            percent(means.map["voc2010"]),
            span(*means.interval["voc2010"]),
            percent(means.map["voc2007"]),
            percent(means.map["sklearn"]),
        ]

    return [row(judgement.overall, ""), *([row(judgement.chosen, " chosen")] if judgement.chosen else [])]


def _other(judgement: Judgement) -> str:
    """The figure that would flatter most among those that others call mAP."""
    highest = max((f for f in judgement.others if f.name != "accuracy"), key=lambda figure: figure.value)
    return (
        f"Of the {len(judgement.others)} figures on the same scores that others call mAP, none is the mean of the "
        f"classes' AP; the highest, accuracy apart, is {percent(highest.value)} % ({highest.name}). "
        "metrics.json has them all."
    )


def _published(row: Published) -> list[str]:
    return [row.method, row.map, row.trained, row.tested, row.source]


def _commands(joined: Joined, judgement: Judgement, facts: Facts) -> list[str]:
    scoring = score_commands(joined.name, judgement.seed, judgement.replicates)
    if not facts.config:
        return [scoring[-1].replace(" --run RUN", "")]  # no run to train or to export
    processes = int(facts.sessions[-1]["processes"]) if facts.sessions else 1
    return [train_command(facts.config, processes), *scoring]


def _write_figures(folder: Path, judgement: Judgement, facts: Facts) -> dict[str, str]:
    """The drawings' file names by what they show."""
    figures = {"tail": tail_svg(judgement.headline)}
    if facts.history and facts.best_epoch:
        figures["curves"] = curves_svg(facts.history, facts.best_epoch)
    for name, data in figures.items():
        (folder / f"{name}.svg").write_bytes(data)
    return {name: f"{name}.svg" for name in figures}


def _write_gallery(folder: Path, joined: Joined, judgement: Judgement) -> list[dict[str, Any]]:
    """The best and worst scored photographs of the drawn classes; empty where no photograph is at hand."""
    if not joined.paths:
        return []
    columns = random_classes(
        joined, class_columns(judgement.headline.classes, joined.classes), judgement.seed
    )

    def tiles(images: Sequence[Shown], stem: str) -> list[dict[str, str]]:
        out = []
        for place, shown in enumerate(images):
            file = f"{stem}-{place}.jpg"
            thumbnail(shown.path, _THUMBNAIL).save(folder / file, "JPEG", quality=85)
            out.append({"file": file, "score": f"{shown.score:.3f}", "truth": shown.truth})
        return out

    found = []
    for column in columns:
        best, worst = extremes(joined, column, GALLERY_IMAGES)
        found.append(
            {
                "name": joined.classes[column],
                "positives": judgement.positives[column],
                "best": tiles(best, f"{column}-best"),
                "worst": tiles(worst, f"{column}-worst"),
            }
        )
    return found
