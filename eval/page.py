"""The report as one HTML page: no script, nothing loaded from elsewhere, light and dark, phone and desk, printable."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from eval.beside import Beside
from eval.gallery import (
    ERROR_IMAGES,
    ERROR_SIDE,
    GALLERY_IMAGES,
    GALLERY_SIDE,
    SHEET_IMAGES,
    Shown,
    data_uri,
    errors,
    extremes,
    sheet_names,
)
from eval.judge import RELATIVE, Judgement
from eval.plots import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    accuracy_plot,
    class_tail_plots,
    precision_recall_panels,
    reliability_panels,
    reliability_plot,
    tail_plots,
)
from eval.table import percent, span, tail_sentence

_TEMPLATES = Path(__file__).parent / "templates"
# Ten thumbnails of about 5 kB for each: 5 MB of page. Beyond it, the classes with the lowest AP.
MOST_ERROR_CLASSES = 100
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Gallery:
    """Photographs of one class in titled rows, each with its thumbnail as text, as the template shows them."""

    name: str
    positives: int
    rows: tuple[tuple[str, tuple[tuple[Shown, str], ...]], ...]


def render(
    judgement: Judgement,
    metadata: Mapping[str, str],
    gallery_columns: Sequence[int],
    links: Sequence[tuple[str, str]] = (),
    beside: Beside | None = None,
) -> str:
    """The page's text.

    Args:
        judgement: the figures.
        metadata: what is known of the score file, for the foot of the page.
        gallery_columns: the classes whose best and worst images are shown; empty: no photographs at hand.
        links: address and title of what lies beside the page, for its top.
        beside: another model to show beside the judged one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    joined = judgement.joined
    with_tail = [bool(above.any()) for above in judgement.headline.curves[RELATIVE].tail.above]
    error_columns = _error_columns(judgement)
    with ThreadPoolExecutor(_THREADS) as pool:
        galleries = list(pool.map(lambda column: _best_and_worst(judgement, column), gallery_columns))
        error_galleries = list(pool.map(lambda column: _errors(judgement, column), error_columns))
    return environment.get_template("report.html.j2").render(
        j=judgement,
        joined=joined,
        head=judgement.headline,
        metadata=metadata,
        links=links,
        beside=beside,
        span=span,
        isnan=math.isnan,
        tail_sentence=tail_sentence(judgement.headline),
        plots=tail_plots(judgement.headline),
        with_tail=with_tail,
        without_tail=[n for n, some in zip(judgement.headline.classes, with_tail, strict=True) if not some],
        class_tail_plots=class_tail_plots(judgement.headline),
        accuracy_plot=accuracy_plot(judgement),
        reliability_plot=reliability_plot(judgement),
        precision_recall=precision_recall_panels(judgement),
        reliability=reliability_panels(judgement),
        panel_box=(PANEL_WIDTH, PANEL_HEIGHT),
        galleries=galleries,
        error_galleries=error_galleries,
        sheets=list(zip(joined.classes, sheet_names(joined.classes), strict=True)) if joined.paths else [],
        sheet_images=min(SHEET_IMAGES, len(joined.image_ids)),
        tied=sum(all_ for all_, _ in judgement.tied),
        tied_mixed=sum(mixed for _, mixed in judgement.tied),
    )


def _best_and_worst(judgement: Judgement, column: int) -> Gallery:
    best, worst = extremes(judgement.joined, column, GALLERY_IMAGES)
    return _gallery(judgement, column, GALLERY_SIDE, (("highest scores", best), ("lowest scores", worst)))


def _errors(judgement: Judgement, column: int) -> Gallery:
    negatives, positives = errors(judgement.joined, column, ERROR_IMAGES)
    rows = (
        ("highest-scored negatives: is the label missing?", negatives),
        ("lowest-scored positives: what does the model not see?", positives),
    )
    return _gallery(judgement, column, ERROR_SIDE, rows)


def _gallery(
    judgement: Judgement, column: int, side: int, rows: Sequence[tuple[str, Sequence[Shown]]]
) -> Gallery:
    return Gallery(
        judgement.joined.classes[column],
        judgement.positives[column],
        tuple(
            (title, tuple((shown, data_uri(shown.path, side)) for shown in images)) for title, images in rows
        ),
    )


def _error_columns(judgement: Judgement) -> list[int]:
    """The classes whose errors are shown, in class order: those with a positive, the lowest AP where there are many."""
    joined = judgement.joined
    if not joined.paths:
        return []
    ap = judgement.ap["voc2010"]
    order = [int(c) for c in np.argsort(ap, kind="stable") if judgement.positives[c]]
    return sorted(order[:MOST_ERROR_CLASSES])
