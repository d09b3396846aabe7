"""The report's drawings, as SVG that takes its colours from the page (light or dark) and its font too.

matplotlib draws with four marker colours; they are replaced by the page's CSS variables.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from eval.judge import ABSOLUTE, RELATIVE, Curve, Judgement, Means

_INK, _QUIET, _LINE, _SECOND, _THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    _INK: "var(--ink)",
    _QUIET: "var(--rule)",
    _LINE: "var(--accent)",
    _SECOND: "var(--second)",
    _THIRD: "var(--third)",
}
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
    return re.sub(
        r'\bid="(figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|FillBetween\w*)[^"]*"', "", text
    )


def _tail(figure: Any, curve: Curve, x: Any, label: str) -> None:
    tail = curve.tail
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.fill_between(x, curve.low, curve.high, color=_LINE, alpha=0.2, linewidth=0)
    upper.plot(x, tail.mean, color=_LINE, marker="o", markersize=3)
    known = curve.low[~np.isnan(curve.low)]
    upper.set_ylim(max(0.0, float(known.min()) - 0.03) if len(known) else 0, 1.01)
    upper.set_ylabel("Tailacc")
    lower.plot(x, np.where(tail.num_images > 0, tail.num_images, np.nan), color=_SECOND, marker=".")
    lower.set_yscale("log")
    lower.set_ylabel("images", color=_SECOND)
    lower.set_xlabel(label)


def tail_plots(means: Means) -> dict[str, str]:
    """Three SVG texts: the mean Tailacc over relative position, over coverage, and over the absolute logit."""
    relative, absolute = means.curves[RELATIVE], means.curves[ABSOLUTE]
    position = relative.tail.position
    label = "position of t (0 = threshold, 1 = the class's maximum)"
    size = (5.2, 4.0)
    coverage = np.where(relative.tail.coverage > 0, relative.tail.coverage, np.nan) * 100

    def over_coverage(figure: Any) -> None:
        _tail(figure, relative, coverage, "images above t, % (mean over classes)")
        figure.axes[0].set_xscale("log")
        figure.axes[0].xaxis.set_major_formatter("{x:g}")

    return {
        RELATIVE: _svg("relative", size, lambda figure: _tail(figure, relative, position, label)),
        "coverage": _svg("coverage", size, over_coverage),
        ABSOLUTE: _svg(
            "absolute",
            size,
            lambda figure: _tail(
                figure, absolute, absolute.tail.position, "t: logit, the same for all classes"
            ),
        ),
    }


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
