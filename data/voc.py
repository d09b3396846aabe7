"""Reader of the PASCAL VOC devkit: which images a split holds, and the label of every pair.

Follows the layout of the VOC2007 and VOC2012 development kits:

    DEVKIT/VOC2012/ImageSets/Main/<split>.txt            one image id a line
    DEVKIT/VOC2012/ImageSets/Main/<class>_<split>.txt    image id and 1, -1, or 0 = only difficult objects
    DEVKIT/VOC2012/Annotations/<id>.xml                  the objects; read where a class file is missing
    DEVKIT/VOC2012/JPEGImages/<id>.jpg
"""

import fcntl
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import InputError, unknown
from data.labels import VOC_CLASSES, LabelSet

SYNTHETIC_ROOT = Path("runs/synthetic")
_YEAR = re.compile(r"VOC20\d\d")
_VALUES = {"1": 1, "-1": -1, "0": 0}
_JPEG_START = b"\xff\xd8\xff"


def read_voc(root: Path, split: str, classes: tuple[str, ...] = VOC_CLASSES) -> LabelSet:
    """Read the labels of one split, and check that its images are there.

    Order and membership come from `<split>.txt`, or from the first class file where that is missing.
    Labels come from the class files; a class without one is derived from the XML annotations in the same
    way: a non-difficult object makes a positive, only difficult ones an ignored pair, none a negative.

    Args:
        root: the folder that holds `VOC2012/` or `VOC2007/`, or one of these itself. Where it holds both,
            the newest is read and a note says so.
        split: such as "train" or "val".
        classes: C class names in order.

    Raises:
        InputError: naming file and line: a missing image or annotation, a repeated id, an unknown value,
            a pair without a label; also an unknown split, with the splits that are there.

    What does not change a label is counted in `LabelSet.notes`: ids of a class file that are not in the
    split, files that do not start like a JPEG (decoding them will fail), objects of other classes in the
    XML. Without a folder `JPEGImages` the set has labels only: `paths` is empty and a note says so.
    """
    folder, notes = find_devkit(root)
    main = folder / "ImageSets" / "Main"
    split_file = main / f"{split}.txt"
    class_files = {name: main / f"{name}_{split}.txt" for name in classes}
    present = {name: path for name, path in class_files.items() if path.is_file()}
    if not split_file.is_file() and not present:
        raise unknown(f"split of {folder.name}", split, list_splits(folder, classes) or ["(none is there)"])

    by_class = {name: _read_class_file(path) for name, path in present.items()}
    source = split_file
    if split_file.is_file():
        lines = _read_split_file(split_file)
    else:
        first = next(iter(present))
        source = present[first]
        lines = {image_id: line for image_id, (_, line) in by_class[first].items()}
        notes.append(f"{split_file} is missing: the images are those of {source.name}")
    ids = tuple(lines)
    if not ids:
        raise InputError(f"{source} names no image")

    value = np.empty((len(ids), len(classes)), dtype=np.int8)
    for column, name in enumerate(classes):
        if name in by_class:
            extra = _disagreement(present[name], by_class[name], source, lines)
            if extra and not split_file.is_file():
                raise InputError(f"{extra}; write {split_file.name} to say which images belong to it")
            notes += [extra] if extra else []
            value[:, column] = [by_class[name][image_id][0] for image_id in ids]
    derived = [name for name in classes if name not in present]
    if derived:
        annotations = folder / "Annotations"
        if not annotations.is_dir():
            raise InputError(
                f"no labels for class '{derived[0]}': "
                f"neither {class_files[derived[0]]} nor {annotations} exists"
            )
        notes.append(
            f"{len(derived)} of {len(classes)} class files of split {split} are missing "
            f"(first: {class_files[derived[0]].name}): derived from {annotations}"
        )
        columns = [classes.index(name) for name in derived]
        value[:, columns] = _read_annotations(annotations, source, lines, classes, notes)[:, columns]

    return LabelSet(
        name=f"{folder.name} {split}",
        classes=classes,
        image_ids=ids,
        target=(value == 1).astype(np.uint8),
        mask=(value != 0).astype(np.uint8),
        paths=_check_images(folder / "JPEGImages", source, lines, notes),
        notes=tuple(notes),
    )


def find_devkit(root: Path) -> tuple[Path, list[str]]:
    """The `VOC20xx` folder of a devkit (`root` may be that folder), and a note where there was a choice."""
    if (root / "ImageSets" / "Main").is_dir():
        return root, []
    if not root.is_dir():
        raise InputError(f"no devkit at {root}: there is no such folder")
    years = sorted(path for path in root.iterdir() if _YEAR.fullmatch(path.name) and path.is_dir())
    years = [path for path in years if (path / "ImageSets" / "Main").is_dir()]
    if not years:
        inner = root / "VOCdevkit"
        hint = f"; did you mean {inner}?" if inner.is_dir() else ""
        raise InputError(f"no devkit at {root}: it holds no VOC2012/ or VOC2007/ with ImageSets/Main{hint}")
    note = f"{root} holds {' and '.join(path.name for path in years)}: {years[-1].name} is read"
    return years[-1], [note] if len(years) > 1 else []


def list_splits(folder: Path, classes: tuple[str, ...] = VOC_CLASSES) -> tuple[str, ...]:
    """The names of the splits in a `VOC20xx` folder."""
    names: set[str] = set()
    for path in (folder / "ImageSets" / "Main").glob("*.txt"):
        owner = next((name for name in classes if path.stem.startswith(f"{name}_")), None)
        names.add(path.stem.removeprefix(f"{owner}_") if owner else path.stem)
    return tuple(sorted(names))


def default_devkit() -> Path:
    """The devkit used where none is given: `$VOC_ROOT`, or else the embedded synthetic one.

    The synthetic devkit lies in `runs/synthetic` of the current folder and is written at first use, by one
    process where several ask at once. A line on stderr says which data is used.
    """
    named = os.environ.get("VOC_ROOT")
    if named:
        try:
            find_devkit(Path(named))
        except InputError as error:
            raise InputError(f"VOC_ROOT={named}: {error}") from error
        print(f"data: {named} (VOC_ROOT)", file=sys.stderr)
        return Path(named)
    root = SYNTHETIC_ROOT
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f".{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "VOC2012").is_dir():
            _write_synthetic(root)
    print(f"data: the synthetic devkit in {root} (set VOC_ROOT to use a real one)", file=sys.stderr)
    return root


def _write_synthetic(root: Path) -> None:
    from data import synthetic  # it draws with Pillow, which a reader of real data does not need

    sizes = f"{synthetic.DEFAULT_TRAIN} train and {synthetic.DEFAULT_VAL} val images"
    print(f"data: writing the synthetic devkit, {sizes}, to {root} ...", file=sys.stderr, flush=True)
    synthetic.write_devkit(root, synthetic.DEFAULT_TRAIN, synthetic.DEFAULT_VAL, synthetic.DEFAULT_SEED)


def _read_lines(path: Path, cells: int, form: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank; any spacing and line end."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file: {error}") from error
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    for number, row in rows:
        if len(row) != cells:
            raise InputError(f"{path}:{number}: a line must be '{form}', got '{' '.join(row)}'")
    return rows


def _read_split_file(path: Path) -> dict[str, int]:
    """Image id -> line number, in the order of the file."""
    lines: dict[str, int] = {}
    for number, (image_id,) in _read_lines(path, 1, "image id"):
        if image_id in lines:
            raise InputError(
                f"{path}:{number}: image '{image_id}' stands twice, first in line {lines[image_id]}"
            )
        lines[image_id] = number
    return lines


def _read_class_file(path: Path) -> dict[str, tuple[int, int]]:
    """Image id -> (1, -1 or 0, line number), in the order of the file."""
    values: dict[str, tuple[int, int]] = {}
    for number, (image_id, text) in _read_lines(path, 2, "image id, then 1, -1 or 0"):
        if text not in _VALUES:
            raise InputError(f"{path}:{number}: a label must be 1, -1 or 0, got '{text}'")
        if image_id in values:
            first = values[image_id][1]
            raise InputError(f"{path}:{number}: image '{image_id}' stands twice, first in line {first}")
        values[image_id] = (_VALUES[text], number)
    return values


def _disagreement(
    path: Path, values: Mapping[str, tuple[int, int]], source: Path, lines: Mapping[str, int]
) -> str | None:
    """Raise where a pair has no label; a note where the class file has images that the split has not."""
    missing = [image_id for image_id in lines if image_id not in values]
    if missing:
        raise InputError(
            f"{path} has no label for image '{missing[0]}' of {source}:{lines[missing[0]]} "
            f"({len(missing)} such images)"
        )
    extra = [image_id for image_id in values if image_id not in lines]
    if not extra:
        return None
    return (
        f"{path}:{values[extra[0]][1]}: image '{extra[0]}' is not in {source.name} ({len(extra)} such images)"
    )


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE: VOC's files have none, and it is the way in for entity bombs."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("a DOCTYPE is not allowed in an annotation")


def _read_annotations(
    annotations: Path, source: Path, lines: Mapping[str, int], classes: tuple[str, ...], notes: list[str]
) -> npt.NDArray[np.int8]:
    """int8[N, C]: 1, -1 or 0 (ignored) of every image, derived from its XML file."""
    value = np.full((len(lines), len(classes)), -1, dtype=np.int8)
    column_of = {name: column for column, name in enumerate(classes)}
    others: Counter[str] = Counter()
    first_other = Path()
    for row, (image_id, line) in enumerate(lines.items()):
        path = annotations / f"{image_id}.xml"
        if not path.is_file():
            raise InputError(f"{path} is missing; it is named by {source}:{line}")
        for name, difficult in _read_objects(path):
            if name not in column_of:
                first_other = first_other if others else path
                others[name] += 1
            elif not difficult:
                value[row, column_of[name]] = 1
            elif value[row, column_of[name]] == -1:
                value[row, column_of[name]] = 0
    if others:
        counts = ", ".join(f"'{name}' {count}" for name, count in others.most_common())
        notes.append(
            f"{others.total()} objects of unknown classes are left out ({counts}), first in {first_other}"
        )
    return value


def _read_objects(path: Path) -> list[tuple[str, bool]]:
    """(class name, difficult) of each object; the parts of a person (head, hand, foot) are not objects."""
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        parser.feed(path.read_bytes())
        tree = parser.close()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path} is not well-formed XML: {error}") from error
    objects = []
    for item in tree.findall("object"):
        name = (item.findtext("name") or "").strip()
        difficult = (item.findtext("difficult") or "0").strip()
        if not name or difficult not in ("0", "1"):
            raise InputError(
                f"{path}: an object must have a name and difficult 0 or 1, got '{name}' and '{difficult}'"
            )
        objects.append((name, difficult == "1"))
    return objects


def _check_images(images: Path, source: Path, lines: Mapping[str, int], notes: list[str]) -> tuple[Path, ...]:
    """The image files, all of which are there; a note counts those that do not start like a JPEG."""
    if not images.is_dir():
        notes.append(f"{images} is missing: labels without photographs")
        return ()
    there = set(os.listdir(images))
    missing = [image_id for image_id in lines if f"{image_id}.jpg" not in there]
    if missing:
        path = images / f"{missing[0]}.jpg"
        raise InputError(
            f"{path} is missing; it is named by {source}:{lines[missing[0]]} ({len(missing)} such images)"
        )
    paths = tuple(images / f"{image_id}.jpg" for image_id in lines)
    wrong = [path for path in paths if not _starts_like_jpeg(path)]
    if wrong:
        line = lines[wrong[0].stem]
        notes.append(
            f"{wrong[0]} is not a JPEG by its first bytes; it is named by {source}:{line} "
            f"({len(wrong)} such images)"
        )
    return paths


def _starts_like_jpeg(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_JPEG_START)) == _JPEG_START
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
