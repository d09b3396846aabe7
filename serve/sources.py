"""Which images to score: a folder, a list, or one split of a VOC devkit.

The listing is held as bytes: the path's own, and 16 more for each image. A million images with paths of 50
characters are 70 MB.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import InputError
from data.scores import image_id_of
from data.voc import default_devkit, read_voc

SUFFIXES = (".jpg", ".jpeg", ".png")
_MODULUS = 1 << 256


class ImageList:
    """N images to score. Their ids are unique: the stems of the files.

    Attributes:
        name: what a person calls it.
        sizes: int64[N], file sizes in bytes.
        fingerprint: 16 hex digits; of the labels for a devkit, of ids and file sizes in any order otherwise.
        order: 16 hex digits; of the ids in their order.
    """

    def __init__(self, name: str, files: Iterable[tuple[str, int]], fingerprint: str = "") -> None:
        """Take (path, size in bytes) of each file. Raises `InputError` where two share an id."""
        self.name = name
        self._paths = bytearray()
        ends, sizes, hashes = array("q", [0]), array("q"), array("Q")
        order, total = hashlib.sha256(), 0
        for path, size in files:
            image_id = _image_id(path)
            self._paths += os.fsencode(path)
            ends.append(len(self._paths))
            sizes.append(size)
            hashes.append(int.from_bytes(hashlib.blake2b(image_id, digest_size=8).digest(), "big"))
            order.update(image_id + b"\0")
            # A sum does not depend on the order, and needs no sorted copy of all ids.
            total += int.from_bytes(hashlib.sha256(b"%s\0%d" % (image_id, size)).digest(), "big")
        self._ends = np.frombuffer(ends, np.int64)
        self.sizes: npt.NDArray[np.int64] = np.frombuffer(sizes, np.int64)
        self.fingerprint = fingerprint or f"{total % _MODULUS:064x}"[:16]
        self.order = order.hexdigest()[:16]
        self._require_unique(np.frombuffer(hashes, np.uint64))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """The memory that the list takes, in bytes."""
        return self._paths.__sizeof__() + self._ends.nbytes + self.sizes.nbytes

    def path(self, row: int) -> Path:
        """The file of image `row`."""
        return Path(os.fsdecode(bytes(self._paths[self._ends[row] : self._ends[row + 1]])))

    def image_id(self, row: int) -> str:
        """The id of image `row`."""
        return image_id_of(self.path(row).name)

    def _require_unique(self, hashes: npt.NDArray[np.uint64]) -> None:
        # Hashes rather than ids are compared: 8 bytes each. Equal ids have equal hashes, and what has equal
        # hashes is looked at.
        by_hash = np.argsort(hashes, kind="stable")
        ordered = hashes[by_hash]
        first: dict[str, int] = {}
        for row in np.unique(by_hash[_beside_equal(ordered)]).tolist():
            image_id = self.image_id(row)
            if image_id in first:
                raise InputError(
                    f"{self.path(first[image_id])} and {self.path(row)} share the id '{image_id}'; each file's "
                    "stem must be unique"
                )
            first[image_id] = row


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
        found = ImageList(str(path), _read_list(path))
        if not len(found):
            raise InputError(f"no image in {path}: the list is empty")
        return found
    if any((path / year).is_dir() for year in ("VOC2012", "VOC2007")):
        labels = read_voc(path, split)
        files = ((str(file), file.stat().st_size) for file in labels.paths)
        return ImageList(labels.name, files, labels.fingerprint())
    found = ImageList(str(path), _walk(str(path)))
    if not len(found):
        raise InputError(f"no image in {path}: it holds no file that ends in {', '.join(SUFFIXES)}")
    return found


def _walk(folder: str) -> Iterator[tuple[str, int]]:
    """(path, size) of the images below `folder`, in the order of the names, one folder in memory at a time."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield entry.path, entry.stat().st_size


def _read_list(path: Path) -> Iterator[tuple[str, int]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                file = path.parent / line.strip()
                if not file.is_file():
                    raise InputError(f"{path}:{number}: no file at {file}")
                yield str(file), file.stat().st_size
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not a text file; --images takes a folder, a .txt list with one path a line or "
            "a devkit (serve/client.py classify takes single images)"
        ) from error


def _image_id(path: str) -> bytes:
    try:
        return image_id_of(os.path.basename(path)).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name of {os.fsencode(path)!r} is not UTF-8; rename the file") from error


def _beside_equal(ordered: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of the sorted values have an equal one beside them."""
    beside: npt.NDArray[np.bool_] = np.zeros(len(ordered), np.bool_)
    equal = ordered[1:] == ordered[:-1]
    beside[1:] |= equal
    beside[:-1] |= equal
    return beside
