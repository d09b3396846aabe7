from dataclasses import replace

import numpy as np

from data.labels import VOC_CLASSES
from eval.facts import Facts, JudgedLabels, Part, TrainingData
from eval.joining import Joined
from eval.published import IMAGES, POSITIVES, TEST, VAL, protocol


def whole_val() -> Joined:
    """Labels with the counts of the whole VOC2012 val."""
    target = np.zeros((IMAGES[1], 20), np.uint8)
    for c, name in enumerate(VOC_CLASSES):
        target[: POSITIVES[1][name], c] = 1
    zero = np.zeros(target.shape, np.float32)
    ids = tuple(f"v{i}" for i in range(len(target)))
    return Joined(
        "VOC2012 val", VOC_CLASSES, ids, zero, zero, target, np.ones_like(target), (), (), {}, len(ids), "f"
    )


def whole_train(joined: Joined) -> Facts:
    """A run on counts of the whole VOC2012 train, split in two."""
    selection = {name: count // 7 for name, count in POSITIVES[0].items()}
    train = {name: count - selection[name] for name, count in POSITIVES[0].items()}
    none = dict.fromkeys(VOC_CLASSES, 0)
    data = TrainingData(
        "VOC2012 train", "t", "p", Part(IMAGES[0] - 800, train, none), Part(800, selection, none)
    )
    tested = JudgedLabels(joined.name, joined.fingerprint, Part(len(joined.image_ids), POSITIVES[1], none))
    return Facts("a test", {}, tested, data=data)


def test_protocol__whole_train_to_whole_val_stands_beside_val_only() -> None:
    joined = whole_val()
    found = protocol(joined, whole_train(joined))
    assert found.comparable
    assert "not with those on test" in found.sentence
    assert found.trained == "VOC2012 train, 4,917 images (800 more to select on)"
    assert found.tested == "VOC2012 val, 5,823 images"


def test_protocol__reasons_against_any_comparison() -> None:
    joined = whole_val()
    facts = whole_train(joined)
    fewer = replace(
        joined, target=joined.target * (np.arange(20) != 3).astype(np.uint8), image_ids=joined.image_ids
    )
    moved = joined.target.copy()
    moved[5000, 0] = 1
    assert facts.data is not None
    part = replace(facts.data, train=replace(facts.data.train, images=100))
    cases = [
        (fewer, facts, "19 of 20 classes have a positive"),
        (replace(joined, target=moved), facts, "344 images of aeroplane where val has 343"),
        (replace(joined, classes=("cat2", *VOC_CLASSES[1:])), facts, "19 of its 20 classes"),
        (joined, replace(facts, data=None), "what it was trained on is not recorded"),
        (joined, replace(facts, data=part), "not the whole VOC2012 train (900 images where train has 5,717"),
        (joined, replace(facts, seen=7), "judged on images that it was trained or selected on"),
        (
            joined,
            replace(facts, data=replace(facts.data, fingerprint="f")),
            "judged on images that it was trained",
        ),
    ]
    for judged, known, reason in cases:
        found = protocol(judged, known)
        assert not found.comparable
        assert found.sentence.startswith("This result cannot be compared with any published one")
        assert reason in found.sentence


def test_published__each_table_has_one_protocol_and_every_row_a_source() -> None:
    assert {(row.trained, row.tested) for row in TEST} == {("trainval", "test")}
    assert {(row.trained, row.tested) for row in VAL} == {("train", "val")}
    for rows in (TEST, VAL):
        values = [float(row.map) for row in rows]
        assert values == sorted(values, reverse=True)
        assert all(row.source for row in rows)
