"""Labels of a multi-label image set: a target and a mask for each image and class.

Shapes used throughout: N images, C classes. Image i and class c are a *pair*. A pair is positive
(a non-difficult object is there), negative (none is), or ignored (only difficult objects are there).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import InputError

VOC_CLASSES: tuple[str, ...] = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of N images over C classes, and where the images are.

    Attributes:
        name: what a person calls it, such as "VOC2012 val".
        classes: C names in order.
        image_ids: N unique ids; for a file, its stem.
        target: uint8[N, C], 1 = positive, 0 = negative (0 where ignored).
        mask: uint8[N, C], 1 = the pair counts, 0 = ignored.
        paths: N image files, or empty for labels whose photographs are not at hand.
        notes: counted warnings of the reader, each naming the file concerned.
    """

    name: str
    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    target: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.image_ids), len(self.classes))
        for field, array in (("target", self.target), ("mask", self.mask)):
            if array.shape != shape:
                raise InputError(
                    f"{field} must be [images, classes] = {list(shape)}, got {list(array.shape)}"
                )
            if array.size and array.max() > 1:
                raise InputError(f"{field} must hold 0 and 1 only, got {array.max()}")
        if self.paths and len(self.paths) != len(self.image_ids):
            raise InputError(f"{len(self.image_ids)} image ids but {len(self.paths)} paths")
        require_unique(self.image_ids, "image id")
        require_unique(self.classes, "class name")

    def __len__(self) -> int:
        return len(self.image_ids)

    def positives(self) -> npt.NDArray[np.int64]:
        """int64[C]: the number of positive images of each class."""
        counts: npt.NDArray[np.int64] = np.sum(self.target * self.mask, axis=0, dtype=np.int64)
        return counts

    def ignored(self) -> npt.NDArray[np.int64]:
        """int64[C]: the number of ignored images of each class."""
        counts: npt.NDArray[np.int64] = np.sum(1 - self.mask, axis=0, dtype=np.int64)
        return counts

    def subset(self, index: Sequence[int] | npt.NDArray[np.int64], name: str) -> "LabelSet":
        """The images at `index`, in that order, under a new name."""
        return LabelSet(
            name=name,
            classes=self.classes,
            image_ids=tuple(self.image_ids[i] for i in index),
            target=self.target[np.asarray(index, dtype=np.int64)],
            mask=self.mask[np.asarray(index, dtype=np.int64)],
            paths=tuple(self.paths[i] for i in index) if self.paths else (),
        )

    def fingerprint(self) -> str:
        """16 hex digits that change with any class, image id, target or mask, whatever the image order."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        order = sorted(range(len(self)), key=self.image_ids.__getitem__)
        digest.update("\n".join(self.image_ids[i] for i in order).encode())
        digest.update(np.packbits(self.target[order]).tobytes() + np.packbits(self.mask[order]).tobytes())
        return digest.hexdigest()[:16]


def require_unique(names: Sequence[str], kind: str) -> None:
    """Raise `InputError` naming the first name that stands twice."""
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{kind} '{name}' stands twice; each may stand once")
        seen.add(name)
