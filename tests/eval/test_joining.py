from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.labels import LabelSet
from data.scores import Scores
from eval.joining import class_columns, join, load_labels


def labels(ids: list[str], classes: tuple[str, ...] = ("cat", "dog", "cow")) -> LabelSet:
    target = np.zeros((len(ids), len(classes)), np.uint8)
    target[0] = 1
    mask = np.ones_like(target)
    mask[-1, 1] = 0
    target[-1, 1] = 0
    return LabelSet("toy val", classes, tuple(ids), target, mask, notes=("a note of the reader",))


def scores(
    ids: list[str], classes: tuple[str, ...] = ("cat", "dog", "cow"), failed: dict[str, str] | None = None
) -> Scores:
    logit = np.arange(len(ids) * len(classes), dtype=np.float32).reshape(len(ids), -1)
    return Scores(classes, tuple(ids), logit, 1 / (1 + np.exp(-logit)), failed=failed or {})


def test_join__by_image_id_and_class_name_whatever_the_order() -> None:
    joined = join(scores(["c", "a", "b"], ("dog", "cat", "cow")), labels(["a", "b", "c"]))
    assert joined.classes == ("dog", "cat", "cow")
    assert joined.image_ids == ("a", "b", "c")
    assert joined.logit.tolist() == [[3, 4, 5], [6, 7, 8], [0, 1, 2]]
    assert joined.mask.tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1]]
    assert joined.target.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert joined.notes == ("a note of the reader",)


def test_join__labelled_image_without_score() -> None:
    ids = [f"i{n}" for n in range(9)]
    with pytest.raises(InputError, match="5 of 9 labelled images have no score: i4, i5, i6 and 2 more"):
        join(scores(ids[:4]), labels(ids))
    joined = join(scores(ids[:4]), labels(ids), allow_missing=True)
    assert joined.image_ids == ("i0", "i1", "i2", "i3")
    assert joined.labelled == 9
    assert "5 of 9 labelled images have no score: i4, i5, i6 and 2 more" in joined.notes[-1]


def test_join__failed_image_is_counted_and_listed() -> None:
    failed = {"c": "truncated JPEG", "elsewhere": "not an image"}
    joined = join(scores(["a", "b"], failed=failed), labels(["a", "b", "c"]))
    assert joined.failed == {"c": "truncated JPEG"}
    assert joined.notes[-1] == "1 labelled images failed to score and take no part: c"


def test_join__scored_image_without_label_is_noted() -> None:
    joined = join(scores(["a", "x", "b", "y"]), labels(["a", "b"]))
    assert joined.notes[-1] == "2 scored images have no label and take no part: x, y"
    assert joined.logit[:, 0].tolist() == [0, 6]


def test_join__nothing_in_common() -> None:
    with pytest.raises(
        InputError, match="no image of 'toy val' has a score: labels have a, b, scores have x"
    ):
        join(scores(["x"]), labels(["a", "b"]))


def test_join__class_unknown_to_the_labels() -> None:
    with pytest.raises(
        InputError, match=r"unknown class in the scores .*'horse'; choose one of: cat, cow, dog"
    ):
        join(scores(["a"], ("cat", "horse")), labels(["a"]))


def test_join__class_without_scores_is_noted() -> None:
    joined = join(scores(["a", "b"], ("cow",)), labels(["a", "b"]))
    assert joined.notes[-1] == "2 labelled classes have no scores and take no part: cat, dog"


def test_class_columns__order_repeats_and_unknown() -> None:
    assert class_columns(["dog", "cat", "dog"], ("cat", "dog")) == [1, 0]
    with pytest.raises(InputError, match="unknown class 'horse'; choose one of: cat, dog"):
        class_columns(["horse"], ("cat", "dog"))


def test_load_labels__two_sources_or_images_for_a_devkit() -> None:
    with pytest.raises(InputError, match=r"--data or from --labels, got both: kit and labels\.csv"):
        load_labels(Path("kit"), "val", Path("labels.csv"))
    with pytest.raises(InputError, match="--images goes with --labels"):
        load_labels(Path("kit"), "val", None, Path("photos"))
