"""The paper's two drawings as SVG: the training curves and the mean Tailacc curve. The same bytes for the same data."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.judge import RELATIVE, Means

# The paper's own colours; the dashes and markers tell the lines apart in print without colour.
BLUE, ORANGE, GREY = "#0b5394", "#b45309", "#c8ccd2"
_SIZE = (3.35, 2.35)  # inches: half the width of the text
_STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "tailacc",
    "font.size": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}


def _svg(draw: Callable[[Figure], None]) -> bytes:
    with rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def curves_svg(history: Sequence[Mapping[str, float]], best_epoch: int) -> bytes:
    """Training loss and selection mAP over the epochs, with the epoch whose weights were kept."""
    epochs = np.arange(1, len(history) + 1)

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        marker = "o" if len(epochs) <= 40 else ""
        style: dict[str, Any] = {"marker": marker, "markersize": 2.5}
        upper.plot(epochs, [row["train/loss"] for row in history], color=ORANGE, **style)
        upper.set_ylabel("training loss\n(nats a pair)")
        lower.plot(epochs, [100 * row["val/map"] for row in history], color=BLUE, **style)
        lower.set_ylabel("selection\nmAP, %")
        lower.set_xlabel("epoch (dotted: kept)")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (upper, lower):
            axes.axvline(best_epoch, color="black", linestyle=":", linewidth=0.8)
        figure.align_ylabels()

    return _svg(draw)


def tail_svg(means: Means) -> bytes:
    """The mean Tailacc over the relative position of t with its band, and the images behind each point."""
    curve = means.curves[RELATIVE]
    tail = curve.tail

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        upper.fill_between(
            tail.position, 100 * curve.low, 100 * curve.high, color=BLUE, alpha=0.18, linewidth=0
        )
        upper.plot(tail.position, 100 * tail.mean, color=BLUE, marker="o", markersize=2.5)
        upper.set_ylabel("Tailacc, %")
        known = curve.low[~np.isnan(curve.low)]
        upper.set_ylim(max(0.0, 100 * float(known.min()) - 3) if len(known) else 0, 101)
        lower.plot(tail.position, np.where(tail.num_images > 0, tail.num_images, np.nan), color=ORANGE)
        lower.set_yscale("log")
        lower.set_ylabel("images\nabove t")
        lower.set_xlabel("position of t (0: threshold, 1: maximum)")
        figure.align_ylabels()

    return _svg(draw)
