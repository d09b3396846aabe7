"""Labels of a data set that is not VOC, from a CSV: `image,<class>...` with 1, 0 or nothing = ignored."""

from pathlib import Path, PureWindowsPath

import numpy as np

from data.errors import InputError
from data.labels import LabelSet
from data.scores import image_id_of, read_csv_cells

# (target, mask) of a cell; "1.0" is what pandas writes of a column that has empty cells.
_VALUES = {"1": (1, 1), "1.0": (1, 1), "0": (0, 1), "0.0": (0, 1), "": (0, 0)}
_ENDINGS = (".jpg", ".jpeg", ".png")


def read_label_csv(path: Path, images: Path | None = None) -> LabelSet:
    """Read the labels of N images over the C classes that the header names.

    The image cell is a path in any style or a bare id; the image id is its stem. Photographs are looked for
    at that path, or by its last part alone, in `images`, or else in the CSV's own folder.

    Args:
        path: the CSV.
        images: the folder of the photographs; given, each must be there. Not given, they may be absent:
            `paths` is then empty and a note says how many were not found.

    Raises:
        InputError: naming file and line: a value that is not 1, 0 or empty with its class, a repeated or
            empty image id, a missing photograph.
    """
    classes, rows = read_csv_cells(path)
    if "" in classes:
        raise InputError(f"{path}:1: column {classes.index('') + 2} of the header has no class name")
    if images is not None and not images.is_dir():
        raise InputError(f"no folder of images at {images}")
    lines: dict[str, int] = {}
    target = np.zeros((len(rows), len(classes)), dtype=np.uint8)
    mask = np.zeros_like(target)
    for row, (line, (image, *cells)) in enumerate(rows):
        image_id = image_id_of(image)
        if not image_id:
            raise InputError(f"{path}:{line}: the image cell '{image}' names no file")
        if image_id in lines:
            raise InputError(
                f"{path}:{line}: image '{image_id}' stands twice, first in line {lines[image_id]}"
            )
        lines[image_id] = line
        for column, cell in enumerate(cells):
            if cell not in _VALUES:
                raise InputError(
                    f"{path}:{line}: a label must be 1, 0 or empty (ignored), "
                    f"got '{cell}' for class '{classes[column]}'"
                )
            target[row, column], mask[row, column] = _VALUES[cell]

    folder = path.parent if images is None else images
    found = [_find_image(folder, cells[0]) for _, cells in rows]
    missing = [row for row, file in enumerate(found) if file is None]
    notes: tuple[str, ...] = ()
    if missing:
        line, cells = rows[missing[0]]
        message = (
            f"{path}:{line}: image '{cells[0]}' is not in {folder} ({len(missing)} of {len(rows)} not found)"
        )
        if images is not None:
            raise InputError(message)
        notes = (f"{message}: labels without photographs",)
    return LabelSet(
        name=path.stem,
        classes=classes,
        image_ids=tuple(lines),
        target=target,
        mask=mask,
        paths=() if missing else tuple(file for file in found if file is not None),
        notes=notes,
    )


def _find_image(folder: Path, cell: str) -> Path | None:
    name = PureWindowsPath(cell)  # it splits at both / and \
    endings = ("",) if name.suffix else _ENDINGS
    for ending in endings:
        for file in (folder / (name.as_posix() + ending), folder / (name.name + ending)):
            if file.is_file():
                return file
    return None
