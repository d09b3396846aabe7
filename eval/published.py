"""Published results on VOC2012, each with its protocol, and what may be put beside them.

A figure means nothing without what it was trained on and tested on: the test set's labels are secret and
most of its results train on train and val together, while a train -> val result has half the images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from data.labels import VOC_CLASSES
from eval.facts import Facts
from eval.joining import Joined


@dataclass(frozen=True, slots=True)
class Published:
    """One published result: mAP (VOC 2010) in %, as it was printed or as it was scored again."""

    method: str
    map: str
    trained: str
    tested: str
    source: str


_LEADERBOARD = "VOC2012 leaderboard, comp2"
_RESCORED = "the authors' score file judged again, difficult ignored"
TEST: tuple[Published, ...] = (
    Published("Query2Label", "96.6", "trainval", "test", "Liu et al. 2021, arXiv:2107.10834"),
    Published("ADD-GCN", "95.5", "trainval", "test", "Ye et al. 2020, arXiv:2012.02994"),
    Published("SYSU_KESD (first of comp2)", "95.4", "trainval", "test", _LEADERBOARD),
    Published("SSGRL", "94.8", "trainval", "test", "Chen et al. 2019, arXiv:1908.07325"),
    Published("MCAR, ResNet-101", "94.3", "trainval", "test", "Gao and Zhou 2021, arXiv:2007.01755"),
    Published("NUS-HCP++", "93.0", "trainval", "test", f"{_LEADERBOARD}; Wei et al. 2014, arXiv:1406.5726"),
)
VAL: tuple[Published, ...] = (
    Published("public solution, ResNet-50", "88.5", "train", "val", _RESCORED),
    Published("public solution, ResNet-18", "85.31", "train", "val", _RESCORED),
)

# Images with a non-difficult object of each class in the whole VOC2012, (train, val), as its table of
# statistics gives them. They tell the real and whole splits from a part of them and from the synthetic devkit.
IMAGES = (5717, 5823)
_COUNTS = (
    "327 343, 268 284, 395 370, 260 248, 365 341, 213 208, 590 571, 539 541, 566 553, 151 152, 269 269, 632 654, "
    "237 245, 265 261, 1994 2093, 269 258, 171 154, 257 250, 273 271, 290 285"
)
_PAIRS = [pair.split() for pair in _COUNTS.split(", ")]
POSITIVES: tuple[dict[str, int], dict[str, int]] = (
    {name: int(pair[0]) for name, pair in zip(VOC_CLASSES, _PAIRS, strict=True)},
    {name: int(pair[1]) for name, pair in zip(VOC_CLASSES, _PAIRS, strict=True)},
)
_TRAIN, _VAL = 0, 1


@dataclass(frozen=True, slots=True)
class Protocol:
    """The judged result beside the published ones.

    Attributes:
        trained, tested: in words.
        comparable: with the train -> val results.
        sentence: what may be compared with what, and why.
    """

    trained: str
    tested: str
    comparable: bool
    sentence: str


def protocol(joined: Joined, facts: Facts) -> Protocol:
    """How the judged result was made, and whether it may stand beside a published one."""
    images = len(joined.image_ids)
    tested = f"{joined.name}, {images:,} images"
    trained = "not recorded"
    if facts.data:
        fitted, selection = facts.data.train.images, facts.data.selection.images
        trained = f"{facts.data.name}, {fitted:,} images ({selection:,} more to select on)"
    reasons = _reasons(joined, facts)
    if reasons:
        sentence = "This result cannot be compared with any published one: " + "; ".join(reasons) + "."
    else:
        sentence = (
            "This result was trained on the whole VOC2012 train and tested on the whole val: it may be compared with "
            "the train to val results, and not with those on test, which had twice the images to learn from and "
            "another set to be tested on."
        )
    return Protocol(trained, tested, not reasons, sentence)


def _reasons(joined: Joined, facts: Facts) -> list[str]:
    """Why the result can stand beside no published one; empty where it can."""
    reasons = []
    if facts.seen or (facts.data and facts.data.fingerprint == joined.fingerprint):
        reasons.append("it was judged on images that it was trained or selected on")
    problem = _incomplete(_counts(joined), len(joined.image_ids), _VAL, "val")
    if problem:
        reasons.append(f"what it was judged on is not the whole VOC2012 val ({problem})")
    if facts.data is None:
        reasons.append("what it was trained on is not recorded")
        return reasons
    train, selection = facts.data.train, facts.data.selection
    both = {name: count + selection.positives.get(name, 0) for name, count in train.positives.items()}
    problem = _incomplete(both, train.images + selection.images, _TRAIN, "train")
    if problem:
        reasons.append(f"what it was trained on is not the whole VOC2012 train ({problem})")
    return reasons


def _counts(joined: Joined) -> dict[str, int]:
    positives = (joined.target * joined.mask).sum(axis=0, dtype=int)
    return {name: int(count) for name, count in zip(joined.classes, positives, strict=True)}


def _incomplete(positives: Mapping[str, int], images: int, split: int, name: str) -> str:
    """What tells these labels from the whole split of VOC2012; "" where they are it."""
    if set(positives) != set(VOC_CLASSES):
        return f"{len(set(positives) & set(VOC_CLASSES))} of its 20 classes, {len(positives)} classes in all"
    differences = []
    if images != IMAGES[split]:
        differences.append(f"{images:,} images where {name} has {IMAGES[split]:,}")
    empty = [c for c in VOC_CLASSES if not positives[c]]
    if empty:
        differences.append(f"{20 - len(empty)} of 20 classes have a positive")
    if not differences:
        other = [c for c in VOC_CLASSES if positives[c] != POSITIVES[split][c]]
        if other:
            c = other[0]
            differences.append(f"{positives[c]} images of {c} where {name} has {POSITIVES[split][c]}")
    return ", ".join(differences)
