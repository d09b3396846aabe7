"""The training curves as a picture."""

from collections.abc import Sequence
from pathlib import Path


def draw_curves(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Draw train/loss and val/map over the epochs into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = range(1, len(history) + 1)
    for position, (key, title) in enumerate(
        (("train/loss", "training loss (nats a pair)"), ("val/map", "selection mAP (VOC 2010)")), start=1
    ):
        axes = figure.add_subplot(1, 2, position)
        axes.plot(epochs, [row[key] for row in history], marker="o", markersize=3)
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
