"""The report's table for a terminal."""

import math

from rich import box
from rich.console import Console
from rich.table import Table

from eval.confusion import Confusion
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
    for name in (
        "AP\n2010",
        "95 %\ninterval",
        "AP\n2007",
        "AP\nsklearn",
        "P@50",
        "ECE",
        "accu-\nracy",
        "always\nno",
    ):
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
            percent(judgement.precision_at_50[c]),
            percent(judgement.ece[c]),
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
    say(f"F1: {f1_sentence(judgement.headline)}")
    say(f"precision at coverage: {coverage_sentence(judgement.headline)}")
    if judgement.confusions:
        say(f"most often confused: {'; '.join(confusion_words(pair) for pair in judgement.confusions[:5])}")
    others = "; ".join(f"{figure.value:.4f} {figure.name}" for figure in judgement.others)
    say(f"what others may have meant by “mAP” (eval/doctor.py explains): {others}")
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
        percent(means.precision_at_50),
        percent(means.ece),
        percent(means.accuracy),
        percent(means.always_no),
        style="bold",
    )


def f1_sentence(means: Means) -> str:
    """CF1 and OF1 at a score of 0.5, and at the model's own thresholds where they are known."""
    words = []
    for f1, where in ((means.f1, "at a score of 0.5"), (means.f1_fitted, "at the model's thresholds")):
        if f1:
            words.append(f"CF1 {percent(f1.class_f1)}, OF1 {percent(f1.overall_f1)} {where}")
    return "; ".join(words)


def coverage_sentence(means: Means) -> str:
    """The mean precision among the best scored shares of the images."""
    return ", ".join(
        f"{percent(value)} in the best {100 * share:g} %"
        for share, value in means.precision_at_coverage.items()
    )


def confusion_words(pair: Confusion) -> str:
    """One pair of classes that were confused, with its counts."""
    return (
        f"{pair.called} said of {pair.count} of {pair.chances} images with {pair.shown} and no {pair.called}"
    )


def tail_sentence(means: Means) -> str:
    """Where the mean Tailacc curve starts and ends, and on how much."""
    tail = means.curves["relative"].tail
    if not tail.num_classes[0]:
        return "no image of any class scores above the classification threshold"
    half = len(tail.position) // 2
    low, high = means.tail_area_interval
    parts = [f"mean {percent(means.tail_area)} over the tail (95 % interval {span(low, high)})"]
    parts += [
        f"{100 * tail.mean[i]:.1f} % {where} ({tail.num_images[i]} images, {tail.num_classes[i]} classes)"
        for i, where in ((0, "at the threshold"), (half, "half-way"), (-1, "just below the maximum"))
    ]
    return "; ".join(parts)
