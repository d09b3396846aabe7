"""Which images to score: a folder, a list, or one split of a VOC devkit."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.scores import image_id_of
from data.voc import default_devkit, read_voc

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True)
class ImageList:
    """N images to score.

    Attributes:
        name: what a person calls it.
        image_ids: N unique ids, the stems of the files.
        paths: N files.
        sizes: N file sizes in bytes.
        fingerprint: 16 hex digits; of the labels for a devkit, of ids and file sizes otherwise.
    """

    name: str
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.paths)


def find_images(images: str, split: str) -> ImageList:
    """The images that `--images` names; "" means the default devkit.

    Args:
        images: a folder of .jpg, .jpeg and .png files (to any depth), a .txt list with one path a line
            (absolute, or relative to the list's folder), or a folder that holds VOC2012/ or VOC2007/.
        split: which images of a devkit.

    Raises:
        InputError: nothing is there, a listed file is missing, or two files share an id.
    """
    path = Path(images) if images else default_devkit()
    if not path.exists():
        raise InputError(
            f"no folder or list at {images}; --images takes a folder, a .txt list or a VOC devkit"
        )
    if path.is_file():
        return _listed(str(path), _read_list(path))
    if any((path / year).is_dir() for year in ("VOC2012", "VOC2007")):
        labels = read_voc(path, split)
        return _listed(labels.name, labels.paths, labels.fingerprint())
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(f"no image in {path}: it holds no file that ends in {', '.join(SUFFIXES)}")
    return _listed(str(path), files)


def _read_list(path: Path) -> list[Path]:
    files = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not a text file; --images takes a folder, a .txt list with one path a line or "
            "a devkit (serve/client.py classify takes single images)"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        file = path.parent / line.strip()
        if not file.is_file():
            raise InputError(f"{path}:{number}: no file at {file}")
        files.append(file)
    if not files:
        raise InputError(f"no image in {path}: the list is empty")
    return files


def _listed(name: str, files: Iterable[Path], fingerprint: str = "") -> ImageList:
    paths = tuple(files)
    ids = tuple(image_id_of(path.name) for path in paths)
    first: dict[str, Path] = {}
    for image_id, path in zip(ids, paths, strict=True):
        if image_id in first:
            raise InputError(
                f"{first[image_id]} and {path} share the id '{image_id}'; each file's stem must be unique"
            )
        first[image_id] = path
    sizes = tuple(path.stat().st_size for path in paths)
    if not fingerprint:
        text = "\n".join(f"{image_id}\0{size}" for image_id, size in sorted(zip(ids, sizes, strict=True)))
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    return ImageList(name, ids, paths, sizes, fingerprint)
