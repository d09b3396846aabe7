"""The report's drawings, as SVG that takes its colours from the page (light or dark) and its font too.

matplotlib draws with marker colours; they are replaced by the page's CSS variables. Pictures with one panel per class
are not drawn here: `Panel` holds their paths, and the page lays the panels out for its width.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogFormatter

from eval.calibration import Reliability
from eval.judge import ABSOLUTE, RELATIVE, Curve, Judgement, Means
from eval.metrics import TailCurve
from eval.ranking import Floats, Ranking, ranked_with
from eval.table import percent

_INK, _QUIET, _LINE, _SECOND, _THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    _INK: "var(--ink)",
    _QUIET: "var(--rule)",
    _LINE: "var(--accent)",
    _SECOND: "var(--second)",
    _THIRD: "var(--third)",
}
_TAIL_SIZE = (5.2, 4.6)
_LOGIT = "t: logit, the same for all classes"
_POSITION = "position of t (0 = threshold, 1 = the class's maximum)"
# The drawing area of a panel, in the units of its viewBox; y points down.
PANEL_WIDTH, PANEL_HEIGHT = 120, 90
# More points than a panel has pixels say nothing.
_PANEL_POINTS = 120
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _QUIET,
    "grid.linewidth": 0.5,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def _svg(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    # The page's own font, and no fixed size: the drawing fills its box.
    text = re.sub(r"font:([^;\"']*?)'?[\w ]*'?, ?sans-serif", r"font:\1inherit", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    # A line of one class: the page shows it when that class is picked.
    text = re.sub(r'\bid="pick-(\d+)"', r'class="by class-\1"', text)
    return re.sub(
        r'\bid="(figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|FillBetween\w*)[^"]*"', "", text
    )


def _tail(figure: Any, curve: Curve, x: Any, label: str) -> None:
    tail = curve.tail
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1, 1))
    upper.fill_between(x, curve.low, curve.high, color=_LINE, alpha=0.2, linewidth=0)
    upper.plot(x, tail.mean, color=_LINE, marker="o", markersize=3)
    known = curve.low[~np.isnan(curve.low)]
    upper.set_ylim(max(0.0, float(known.min()) - 0.03) if len(known) else 0, 1.01)
    upper.set_ylabel("Tailacc")
    middle.plot(x, np.where(tail.num_images > 0, tail.num_images, np.nan), color=_SECOND, marker=".")
    if tail.num_images.any():  # a log axis of nothing can't be drawn
        _log_counts(middle)
    middle.set_ylabel("images", color=_SECOND)
    lower.plot(x, tail.num_classes, color=_THIRD, marker=".")
    lower.set_ylim(0, 1.15 * max(1, int(tail.num_classes.max())))
    lower.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    lower.set_ylabel("classes", color=_THIRD)
    lower.set_xlabel(label)
    figure.align_ylabels()


def _log_counts(axes: Any) -> None:
    """A log axis with plain numbers: parsing 10 to the k as mathematics took a quarter of a report's drawing."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())


def _percent_above(share: Floats) -> Floats:
    """A share of the images in percent, NaN where there are none: what a log axis can show."""
    return np.where(share > 0, 100 * share, np.nan)


def _log_percent(figure: Any, tail: TailCurve) -> None:
    if tail.num_images.any():  # a log axis of nothing can't be drawn
        figure.axes[0].set_xscale("log")
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
    figure.axes[0].xaxis.set_minor_formatter(LogFormatter())


def tail_plots(means: Means) -> dict[str, str]:
    """Three SVG texts: the mean Tailacc over relative position, over coverage, and over the absolute logit."""
    relative, absolute = means.curves[RELATIVE], means.curves[ABSOLUTE]

    def over_coverage(figure: Any) -> None:
        share = _percent_above(relative.tail.coverage)
        _tail(figure, relative, share, "images above t, % (mean over classes)")
        _log_percent(figure, relative.tail)

    draw: dict[str, Callable[[Any], None]] = {
        RELATIVE: lambda figure: _tail(figure, relative, relative.tail.position, _POSITION),
        "coverage": over_coverage,
        ABSOLUTE: lambda figure: _tail(figure, absolute, absolute.tail.position, _LOGIT),
    }
    return {name: _svg(name, _TAIL_SIZE, function) for name, function in draw.items()}


def class_tail_plots(means: Means) -> dict[str, str]:
    """Three SVG texts as of `tail_plots`: the mean with its band, and a line of each class for when it is picked.

    The lines of class i of `means.classes`, Tailacc above and its images below, are groups of CSS class `class-i`.
    In the second each class stands over its own coverage.
    """
    relative, absolute = means.curves[RELATIVE], means.curves[ABSOLUTE]
    tail = relative.tail

    def over_position(figure: Any) -> None:
        _class_tails(figure, relative, tail.position, _each_class(tail), _POSITION)

    def over_coverage(figure: Any) -> None:
        own = _percent_above(tail.above / np.maximum(tail.images, 1)[:, None])
        _class_tails(figure, relative, _percent_above(tail.coverage), own, "images above t, %")
        _log_percent(figure, tail)

    def over_logit(figure: Any) -> None:
        _class_tails(figure, absolute, absolute.tail.position, _each_class(absolute.tail), _LOGIT)

    draw = {RELATIVE: over_position, "coverage": over_coverage, ABSOLUTE: over_logit}
    return {name: _svg(f"classes {name}", _TAIL_SIZE, function) for name, function in draw.items()}


def _each_class(tail: TailCurve) -> Floats:
    """float64[C, T]: the curve's positions, the same for each class."""
    return np.broadcast_to(tail.position, tail.above.shape)


def _class_tails(figure: Any, curve: Curve, x: Floats, own: Floats, label: str) -> None:
    """The mean curve over `x` float64[T], and class i over `own[i]` (float64[C, T])."""
    tail = curve.tail
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.fill_between(x, curve.low, curve.high, color=_LINE, alpha=0.2, linewidth=0)
    upper.plot(x, tail.mean, color=_LINE)
    for c, (at, value, above) in enumerate(zip(own, tail.value, tail.above, strict=True)):
        style: Any = {"color": _SECOND, "gid": f"pick-{c}"}
        upper.plot(at, value, marker="o", markersize=3, **style)
        lower.plot(at, np.where(above > 0, above, np.nan), **style)
    known = tail.value[~np.isnan(tail.value)]
    upper.set_ylim(max(0.0, float(known.min()) - 0.03) if len(known) else 0, 1.01)
    upper.set_ylabel("Tailacc")
    if tail.num_images.any():
        _log_counts(lower)
    lower.set_ylabel("images of\nthe class", color=_SECOND)
    lower.set_xlabel(label)
    figure.align_ylabels()


@dataclass(frozen=True, slots=True)
class Panel:
    """One small picture of a class: SVG paths in a box of `PANEL_WIDTH` x `PANEL_HEIGHT`, and what stands under it.

    Attributes:
        name: the class.
        caption: its figure.
        area, line, rule: path data of a filled area, of the line, and of what it is compared with; may be "".
        dots: x, y and radius of points.
    """

    name: str
    caption: str
    area: str
    line: str
    rule: str
    dots: tuple[tuple[float, float, float], ...] = ()


def precision_recall(ranking: Ranking) -> tuple[Floats, Floats, Floats]:
    """Recall, precision and the highest precision from there on, float64[P] each, at the place of each positive.

    The third is what AP (VOC 2010) averages: the area under its steps is the AP.
    """
    found = np.arange(1, ranking.positives + 1, dtype=np.float64)
    precision = found / (ranking.hits + 1)
    return found / max(1, ranking.positives), precision, np.maximum.accumulate(precision[::-1])[::-1]


def precision_recall_panels(judgement: Judgement) -> list[Panel]:
    """A panel for each class that has a positive: precision over recall, and below it the area that is the AP."""
    joined = judgement.joined

    def panel(ranking: Ranking) -> tuple[str, str, str] | None:
        if not ranking.positives:
            return None
        recall, precision, envelope = precision_recall(ranking)
        some = np.unique(np.linspace(0, len(recall) - 1, _PANEL_POINTS).round().astype(np.int64))
        recall, precision, envelope = recall[some], precision[some], envelope[some]
        edges = np.repeat(np.concatenate([[0.0], recall]), 2)
        steps = np.concatenate([[0.0], np.repeat(envelope, 2), [0.0]])
        chance = np.full(2, ranking.positives / len(ranking))
        return _path(edges, steps), _path(recall, precision), _path(np.array([0.0, 1.0]), chance)

    drawn = ranked_with(panel, joined.logit, joined.target, joined.mask, joined.image_ids)
    return [
        Panel(name, f"AP {percent(ap)} %", *paths)
        for name, ap, paths in zip(joined.classes, judgement.ap["voc2010"], drawn, strict=True)
        if paths
    ]


def reliability_panels(judgement: Judgement) -> list[Panel]:
    """A panel for each class that has an image: the share of positives over the mean score of each bin."""
    panels = []
    for name, diagram in zip(judgement.joined.classes, judgement.reliability, strict=True):
        some = diagram.count > 0
        if not some.any():
            continue
        score, share = diagram.mean_score[some], diagram.positive_share[some]
        size = 1.2 + 2.0 * np.sqrt(diagram.count[some] / diagram.count[1:].max(initial=1)).clip(0, 1)
        x, y = _place(score, share)
        dots = tuple((round(a, 1), round(b, 1), round(r, 1)) for a, b, r in zip(x, y, size, strict=True))
        diagonal = _path(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
        panels.append(Panel(name, f"ECE {percent(diagram.ece)} %", "", _path(score, share), diagonal, dots))
    return panels


def _place(x: Floats, y: Floats) -> tuple[list[float], list[float]]:
    """Values in [0, 1] as places in a panel."""
    return (x * PANEL_WIDTH).tolist(), ((1 - y) * PANEL_HEIGHT).tolist()


def _path(x: Floats, y: Floats) -> str:
    """SVG path data of a line through points in [0, 1]."""
    return "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(*_place(x, y), strict=True))


def pooled(diagrams: Sequence[Reliability]) -> tuple[Floats, Floats, Floats]:
    """Count, mean score and share of positives, float64[B] each, of the bins of several classes taken together."""
    count = np.array([d.count for d in diagrams], np.float64)
    total = count.sum(axis=0)
    with np.errstate(invalid="ignore"):
        score, share = (
            np.nansum(count * np.array(values), axis=0) / total
            for values in ([d.mean_score for d in diagrams], [d.positive_share for d in diagrams])
        )
    return total, score, share


def reliability_plot(judgement: Judgement) -> str:
    """SVG text: the reliability diagram over all image-class pairs of the headline's classes, and pairs in each bin."""
    wanted = set(judgement.headline.classes)
    diagrams = [
        d for name, d in zip(judgement.joined.classes, judgement.reliability, strict=True) if name in wanted
    ]
    count, score, share = pooled(diagrams)

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=_QUIET, linestyle="--")
        upper.plot(score, share, color=_LINE, marker="o", markersize=4, clip_on=False)
        upper.set_ylim(0, 1)
        upper.set_ylabel("share of positives")
        edges = np.linspace(0, 1, len(count) + 1)
        lower.bar(edges[:-1], count, width=edges[1], align="edge", color=_SECOND, alpha=0.7)
        if np.any(count):
            _log_counts(lower)
        lower.set_xlim(0, 1)
        lower.set_ylabel("pairs", color=_SECOND)
        lower.set_xlabel("score")
        figure.align_ylabels()

    return _svg("reliability", (5.2, 4.4), draw)


def accuracy_plot(judgement: Judgement) -> str:
    """SVG text: per class AP, accuracy, and the accuracy of "always no": why accuracy says nothing."""
    order = np.argsort(np.nan_to_num(judgement.ap["voc2010"], nan=-1.0), kind="stable")
    names = [judgement.joined.classes[c] for c in order]
    rows = np.arange(len(names))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for values, colour, marker, label in (
            (judgement.always_no, _SECOND, "|", "accuracy of “always no”"),
            (judgement.accuracy, _THIRD, "x", "accuracy"),
            (judgement.ap["voc2010"], _LINE, "o", "AP"),
        ):
            axes.plot(
                values[order],
                rows,
                linestyle="",
                marker=marker,
                color=colour,
                label=label,
                markersize=6,
                markeredgewidth=1.5,
                clip_on=False,
            )
        axes.set_yticks(rows, names)
        axes.set_xlim(right=1)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper center", ncols=3, handletextpad=0.1, columnspacing=1.2)

    return _svg("accuracy", (5.2, 1.2 + 0.19 * len(names)), draw)
