"""The report as one HTML page: no script, nothing loaded from elsewhere, light and dark, phone and desk."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from eval.gallery import GALLERY_IMAGES, SHEET_IMAGES, Shown, data_uri, extremes, sheet_names
from eval.judge import Judgement
from eval.plots import accuracy_plot, tail_plots
from eval.table import percent, span, tail_sentence

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Gallery:
    """The best and the worst scored images of one class, as the template shows them."""

    name: str
    positives: int
    rows: tuple[tuple[str, tuple[tuple[Shown, str], ...]], ...]


def render(judgement: Judgement, metadata: Mapping[str, str], gallery_columns: Sequence[int]) -> str:
    """The page's text.

    Args:
        judgement: the figures.
        metadata: what is known of the score file, for the foot of the page.
        gallery_columns: the classes whose best and worst images are shown; empty: no photographs at hand.
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
    return environment.get_template("report.html.j2").render(
        j=judgement,
        joined=joined,
        head=judgement.headline,
        metadata=metadata,
        span=span,
        isnan=math.isnan,
        tail_sentence=tail_sentence(judgement.headline),
        plots=tail_plots(judgement.headline),
        accuracy_plot=accuracy_plot(judgement),
        galleries=[_gallery(judgement, column) for column in gallery_columns],
        sheets=list(zip(joined.classes, sheet_names(joined.classes), strict=True)) if joined.paths else [],
        sheet_images=min(SHEET_IMAGES, len(joined.image_ids)),
        tied=sum(all_ for all_, _ in judgement.tied),
        tied_mixed=sum(mixed for _, mixed in judgement.tied),
    )


def _gallery(judgement: Judgement, column: int) -> Gallery:
    best, worst = extremes(judgement.joined, column, GALLERY_IMAGES)
    rows = tuple(
        (title, tuple((shown, data_uri(shown.path)) for shown in images))
        for title, images in (("highest scores", best), ("lowest scores", worst))
    )
    return Gallery(judgement.joined.classes[column], judgement.positives[column], rows)
