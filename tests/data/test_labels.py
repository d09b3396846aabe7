from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError, unknown
from data.labels import VOC_CLASSES, LabelSet, require_unique


def labels() -> LabelSet:
    return LabelSet(
        name="zoo",
        classes=("cat", "dog"),
        image_ids=("a", "b", "c"),
        target=np.array([[1, 0], [1, 0], [0, 1]], dtype=np.uint8),
        mask=np.array([[1, 1], [0, 1], [1, 0]], dtype=np.uint8),
        paths=(Path("a.jpg"), Path("b.jpg"), Path("c.jpg")),
    )


def test_voc_classes__twenty_in_alphabetical_order() -> None:
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(set(VOC_CLASSES))


def test_label_set__counts_leave_ignored_pairs_out() -> None:
    assert len(labels()) == 3
    assert labels().positives().tolist() == [1, 0]
    assert labels().ignored().tolist() == [1, 1]


def test_label_set__counts_do_not_overflow() -> None:
    many = np.ones((300, 1), dtype=np.uint8)
    ids = tuple(str(i) for i in range(300))
    assert LabelSet("many", ("cat",), ids, many, many).positives().tolist() == [300]


def test_subset__keeps_the_order_that_is_asked_for() -> None:
    part = labels().subset([2, 0], "part")
    assert part.name == "part"
    assert part.image_ids == ("c", "a")
    assert part.target.tolist() == [[0, 1], [1, 0]]
    assert part.mask.tolist() == [[1, 0], [1, 1]]
    assert part.paths == (Path("c.jpg"), Path("a.jpg"))


def test_subset__of_labels_without_photographs() -> None:
    assert replace(labels(), paths=()).subset([1], "part").paths == ()


def test_subset__empty() -> None:
    assert labels().subset([], "none").target.shape == (0, 2)


def test_fingerprint__does_not_depend_on_the_order_of_images() -> None:
    assert labels().fingerprint() == labels().subset([2, 0, 1], "other name").fingerprint()
    assert len(labels().fingerprint()) == 16


def test_fingerprint__changes_with_what_it_names() -> None:
    first = labels()
    target, mask = first.target.copy(), first.mask.copy()
    target[0, 1] = 1
    mask[0, 1] = 0
    others = [
        replace(first, classes=("cat", "cow")),
        replace(first, image_ids=("a", "b", "d")),
        replace(first, target=target),
        replace(first, mask=mask),
        first.subset([0, 1], "part"),
    ]
    assert len({first.fingerprint(), *(other.fingerprint() for other in others)}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_ids": ("a", "b")}, r"target must be \[images, classes\] = \[2, 2\], got \[3, 2\]"),
        ({"mask": np.ones((3, 1), np.uint8)}, r"mask must be \[images, classes\] = \[3, 2\], got \[3, 1\]"),
        ({"target": np.full((3, 2), 255, np.uint8)}, "target must hold 0 and 1 only, got 255"),
        ({"paths": (Path("a.jpg"),)}, "3 image ids but 1 paths"),
        ({"image_ids": ("a", "b", "a")}, "image id 'a' stands twice"),
        ({"classes": ("cat", "cat")}, "class name 'cat' stands twice"),
    ],
)
def test_label_set__bad_values(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(labels(), **changes)  # type: ignore[arg-type]


def test_require_unique__names_the_first_repeated() -> None:
    require_unique([], "name")
    with pytest.raises(InputError, match="name 'y' stands twice; each may stand once"):
        require_unique(["x", "y", "z", "y", "x"], "name")


def test_unknown__lists_the_choices_in_order() -> None:
    assert str(unknown("loss", "bec", {"focal", "bce"})) == "unknown loss 'bec'; choose one of: bce, focal"
