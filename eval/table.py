"""The report's table for a terminal."""

import math

from rich import box
from rich.console import Console
from rich.table import Table

from eval.judge import Judgement, Means


def percent(value: float) -> str:
    """0.8531 -> "85.31"; NaN -> "n/a"."""
    return "n/a" if math.isnan(value) else f"{100 * value:.2f}"


def span(low: float, high: float) -> str:
    """An interval in percent, one digit: "84.6 to 86.1"; NaN -> "n/a"."""
    return "n/a" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}"


def print_table(judgement: Judgement, console: Console) -> None:
    """Print the AP of each class, the means, and the notes."""
    joined = judgement.joined

    def say(text: str) -> None:
        # One line a fact, whatever the width: a log can be searched, a terminal wraps by itself.
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"{joined.name}: {len(joined.image_ids)} images; all figures in %")
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for name in ("AP\n2010", "95 %\ninterval", "AP\n2007", "AP\nsklearn", "accu-\nracy", "always\nno"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("posi-\ntive", "ig-\nnored"):
        table.add_column(name, justify="right", no_wrap=True)
    for c, name in enumerate(joined.classes):
        table.add_row(
            name,
            percent(judgement.ap["voc2010"][c]),
            span(judgement.ap_low[c], judgement.ap_high[c]),
            percent(judgement.ap["voc2007"][c]),
            percent(judgement.ap["sklearn"][c]),
            percent(judgement.accuracy[c]),
            percent(judgement.always_no[c]),
            str(judgement.positives[c]),
            str(judgement.ignored[c]),
        )
    table.add_section()
    _add_means(table, judgement.overall, "")
    if judgement.chosen:
        _add_means(table, judgement.chosen, " chosen")
    # Figures are never cut off to fit: a narrow terminal wraps the line. (The two edges are not measured.)
    needed = console.measure(table, options=console.options.update(width=1000)).maximum + 2
    console.width = max(console.width, needed)
    console.print(table)
    if judgement.chosen:
        say(f"chosen classes: {', '.join(judgement.chosen.classes)}")
    say(f"Tailacc: {tail_sentence(judgement.headline)}")
    say("what others may have meant by “mAP” on these scores:")
    for figure in judgement.others:
        say(f"  {figure.value:.4f} {figure.name}: {figure.meaning}")
    for note in judgement.notes:
        say(f"note: {note}")


def _add_means(table: Table, means: Means, what: str) -> None:
    low, high = means.interval["voc2010"]
    table.add_row(
        f"mean of {means.num_classes}{what}",
        percent(means.map["voc2010"]),
        span(low, high),
        percent(means.map["voc2007"]),
        percent(means.map["sklearn"]),
        percent(means.accuracy),
        percent(means.always_no),
        style="bold",
    )


def tail_sentence(means: Means) -> str:
    """Where the mean Tailacc curve starts and ends, and on how much."""
    tail = means.curves["relative"].tail
    if not tail.num_classes[0]:
        return "no image of any class scores above the classification threshold"
    half = len(tail.position) // 2
    parts = [
        f"{100 * tail.mean[i]:.1f} % {where} ({tail.num_images[i]} images, {tail.num_classes[i]} classes)"
        for i, where in ((0, "at the threshold"), (half, "half-way"), (-1, "just below the maximum"))
    ]
    return "; ".join(parts)
