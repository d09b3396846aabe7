"""From options to the doctor's table, on the terminal and as JSON."""

import json
import math
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from data.scores import read_scores
from eval.diagnosis import Published, explain, figures, headline_figures
from eval.joining import join, load_labels
from eval.options import DoctorConfig


def consult(config: DoctorConfig, console: Console | None = None) -> str:
    """Print every figure that may have been called "mAP", nearest to the published number first where one is given.

    Returns:
        The verdict in words, "" where no number was given.

    Raises:
        InputError: files that are missing or wrong or do not fit each other, or a published number that is none.
    """
    console = console or Console()
    published = Published.parse(config.published) if config.published else None
    scores = read_scores(config.scores)
    joined = join(scores, load_labels(config.data, config.split, config.labels), config.allow_missing)
    found, verdict = [*headline_figures(joined), *figures(joined)], ""
    if published:
        found, verdict = explain(published, found)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("figure", justify="right", no_wrap=True)
    if published:
        table.add_column("off by", justify="right", no_wrap=True)
    table.add_column("what others may have meant by “mAP”")
    for figure in found:
        value = "n/a" if math.isnan(figure.value) else f"{figure.value:.4f}"
        gap = [f"{figure.value - published.value:+.4f}"] if published else []
        table.add_row(value, *gap, f"{figure.name}: {figure.meaning}")
    console.print(
        f"{joined.name}: {len(joined.image_ids)} images, {len(joined.classes)} classes, "
        f"{int((joined.mask == 0).sum())} ignored pairs",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print(table)
    for text in (*(f"note: {note}" for note in joined.notes), *([verdict] if verdict else [])):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if config.json:
        content = {
            "published": published.value if published else None,
            "figures": [{**asdict(f), "value": None if math.isnan(f.value) else f.value} for f in found],
            "verdict": verdict or None,
        }
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return verdict
