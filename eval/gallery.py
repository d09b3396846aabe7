"""Pictures of what the figures stand on: the best and worst scored photographs of a class, and its worst errors.

Galleries show every image, ignored ones too (marked), so that a person sees what was not counted. Errors are
among the images that count.
"""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from eval.joining import Joined
from eval.ranking import Ints, id_ranks, rank_pairs

GALLERY_CLASSES, GALLERY_IMAGES = 5, 5
ERROR_IMAGES = 5
SHEET_IMAGES = 50
_SHEET_COLUMNS = 10
_TILE, _CAPTION, _GAP = 120, 32, 6
GALLERY_SIDE, ERROR_SIDE = 220, 150
_INK, _PAPER = (28, 32, 38), (255, 255, 255)
# Colours that also differ in lightness; the mark in words stands beside them.
_COLOURS = {"yes": (0, 120, 90), "no": (190, 60, 20), "ignored": (120, 120, 130)}


@dataclass(frozen=True, slots=True)
class Shown:
    """One photograph in a gallery: logit and score for the class, and its truth ("yes", "no" or "ignored").

    `labels` tells what the image is labelled with, ignored classes marked: "dog, person (ignored)".
    """

    image_id: str
    logit: float
    score: float
    truth: str
    path: Path
    labels: str


def random_classes(joined: Joined, columns: Sequence[int], seed: int) -> list[int]:
    """Up to 5 of the columns, drawn without replacement from those that have a positive, in class order."""
    able = [c for c in columns if (joined.target[:, c] & joined.mask[:, c]).any()]
    drawn = np.random.default_rng(seed).permutation(np.array(able, np.int64))[:GALLERY_CLASSES]
    return sorted(int(c) for c in drawn)


def extremes(joined: Joined, column: int, count: int) -> tuple[list[Shown], list[Shown]]:
    """The `count` best and the `count` worst scored images of a class, ignored ones too.

    Best: highest first. Worst: lowest first. Both lists are shorter where there are fewer images; then
    they overlap.
    """
    order = _best_first(joined, column)
    return _shown(joined, column, order[:count]), _shown(joined, column, order[::-1][:count])


def errors(joined: Joined, column: int, count: int) -> tuple[list[Shown], list[Shown]]:
    """The most telling errors of a class: its `count` highest-scored negatives (the highest first), where a label may
    be wrong or missing, and its `count` lowest-scored positives (the lowest first). Ignored images are left out.
    """
    order = _best_first(joined, column)
    order = order[joined.mask[order, column] != 0]
    positive = joined.target[order, column] != 0
    return (
        _shown(joined, column, order[~positive][:count]),
        _shown(joined, column, order[positive][::-1][:count]),
    )


def _best_first(joined: Joined, column: int) -> Ints:
    """int64[N]: all rows by descending logit of the class; equal ones by ascending image id."""
    ranks = id_ranks(joined.image_ids, len(joined.image_ids))
    rows = np.empty(len(ranks), np.int64)
    rows[ranks.astype(np.int64)] = np.arange(len(ranks))
    target, everything = joined.target[:, column], np.ones(len(ranks), np.uint8)
    logit = np.ascontiguousarray(joined.logit[:, column])
    return np.asarray(rows[rank_pairs(logit, target, everything, ranks).id_rank], np.int64)


def _shown(joined: Joined, column: int, rows: Ints) -> list[Shown]:
    def shown(row: int) -> Shown:
        target, mask = joined.target[row], joined.mask[row]
        truth = "ignored" if not mask[column] else "yes" if target[column] else "no"
        labels = [
            name if valid else f"{name} (ignored)"
            for name, there, valid in zip(joined.classes, target, mask, strict=True)
            if there or not valid
        ]
        logit, score = float(joined.logit[row, column]), float(joined.score[row, column])
        return Shown(joined.image_ids[row], logit, score, truth, joined.paths[row], ", ".join(labels))

    return [shown(row) for row in rows.tolist()]


def thumbnail(path: Path, side: int) -> Image.Image:
    """The photograph, upright, RGB, at most `side` pixels; a grey tile that says so where it can't be read.

    For looking at only: JPEGs are decoded at a reduced size, which is several times faster.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * side, 2 * side))
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        blank = Image.new("RGB", (side, side * 3 // 4), (200, 200, 205))
        ImageDraw.Draw(blank).text((8, 8), "unreadable", fill=_INK)
        return blank
    upright.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return upright


def data_uri(path: Path, side: int) -> str:
    """A thumbnail of the photograph, at most `side` pixels, as text that stands in a page."""
    stream = io.BytesIO()
    thumbnail(path, side).save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def contact_sheet(images: Sequence[Shown], title: str) -> Image.Image:
    """All images on one sheet, ten in a row, with score, logit, truth and id under each."""
    columns = min(_SHEET_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    font, small_font, head = (ImageFont.load_default(size) for size in (12, 11, 16))
    width = max(columns * (_TILE + _GAP) + _GAP, round(head.getlength(title)) + 2 * _GAP)
    sheet = Image.new("RGB", (width, rows * (_TILE + _CAPTION + _GAP) + 30), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 5), title, fill=_INK, font=head)
    for place, shown in enumerate(images):
        x = _GAP + place % columns * (_TILE + _GAP)
        y = 30 + place // columns * (_TILE + _CAPTION + _GAP)
        small = thumbnail(shown.path, _TILE)
        sheet.paste(small, (x + (_TILE - small.width) // 2, y + _TILE - small.height))
        draw.rectangle((x, y + _TILE + 1, x + 3, y + _TILE + _CAPTION - 2), fill=_COLOURS[shown.truth])
        caption = f"{shown.score:.3f} {shown.logit:+.1f} {shown.truth}"
        draw.text((x + 7, y + _TILE + 1), caption, fill=_COLOURS[shown.truth], font=font)
        draw.text((x + 7, y + _TILE + 16), _fitted(shown.image_id, small_font), fill=_INK, font=small_font)
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or its end after dots where it is wider than a tile: the end is what tells ids apart."""
    if font.getlength(text) <= _TILE - 7:
        return text
    while font.getlength("..." + text) > _TILE - 7:
        text = text[1:]
    return "..." + text


def sheet_names(classes: Sequence[str]) -> list[tuple[str, str]]:
    """For each class, the file names of its sheets (top, bottom), safe and unique for any class name."""
    stems = [f"{c + 1:02d}-" + re.sub(r"[^\w-]+", "_", name) for c, name in enumerate(classes)]
    return [(f"{stem}-top.jpg", f"{stem}-bottom.jpg") for stem in stems]


def write_sheets(joined: Joined, folder: Path, columns: Iterable[int], threads: int = 2) -> None:
    """Write the contact sheets of the 50 best and the 50 worst images of the classes at `columns`."""
    folder.mkdir()
    names = sheet_names(joined.classes)

    def write(column: int) -> None:
        for images, name, what in zip(
            extremes(joined, column, SHEET_IMAGES), names[column], ("highest", "lowest"), strict=True
        ):
            truth = Counter(shown.truth for shown in images)
            counted = ", ".join(f"{truth[word]} {word}" for word in _COLOURS if truth[word])
            title = f"{joined.classes[column]}: the {len(images)} {what} scores in {joined.name}: {counted}"
            contact_sheet(images, title).save(folder / name, "JPEG", quality=82)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, columns))
