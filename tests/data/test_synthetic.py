"""The synthetic devkit: same bytes for a seed, the layout the reader wants, a long tail that can be judged."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import synthetic
from data.cli import run
from data.errors import InputError
from data.labels import VOC_CLASSES
from data.scenes import SCENES, compose
from data.sketches import KINDS
from data.synthetic import image_id, main, write_devkit
from data.voc import read_voc

TRAIN, VAL = 28, 12


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("devkit")
    write_devkit(root, TRAIN, VAL, seed=3)
    return root


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_write_devkit__exact_set_of_files(devkit: Path) -> None:
    ids = [image_id(index) for index in range(TRAIN + VAL)]
    want = {f"VOC2012/JPEGImages/{name}.jpg" for name in ids}
    want |= {f"VOC2012/Annotations/{name}.xml" for name in ids}
    for split in ("train", "val", "trainval"):
        want |= {
            f"VOC2012/ImageSets/Main/{prefix}{split}.txt" for prefix in ("", *(f"{c}_" for c in VOC_CLASSES))
        }
    assert set(digest(devkit)) == want
    assert ids[0] == "2012_000001"
    assert (devkit / "VOC2012").stat().st_mode & 0o777 == 0o755


def test_write_devkit__read_without_a_note(devkit: Path) -> None:
    train, val, both = (read_voc(devkit, split) for split in ("train", "val", "trainval"))
    assert (len(train), len(val), len(both)) == (TRAIN, VAL, TRAIN + VAL)
    assert train.notes == val.notes == both.notes == ()
    assert train.image_ids + val.image_ids == both.image_ids
    assert both.ignored().sum() > 0


def test_write_devkit__class_files_agree_with_the_annotations(devkit: Path, tmp_path: Path) -> None:
    """Without its class files the reader derives every label from the XML."""
    listed = read_voc(devkit, "trainval")
    bare = tmp_path / "VOC2012"
    (bare / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("JPEGImages", "Annotations"):
        os.symlink(devkit / "VOC2012" / name, bare / name)
    split = "ImageSets/Main/trainval.txt"
    (bare / split).write_bytes((devkit / "VOC2012" / split).read_bytes())
    derived = read_voc(tmp_path, "trainval")
    np.testing.assert_array_equal(derived.target, listed.target)
    np.testing.assert_array_equal(derived.mask, listed.mask)


def test_write_devkit__same_bytes_for_a_seed_however_many_processes(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "_CHUNK", 25)  # two child processes instead of this one
    write_devkit(tmp_path, TRAIN, VAL, seed=3)
    assert digest(tmp_path) == digest(devkit)


def test_write_devkit__another_seed_another_picture(devkit: Path, tmp_path: Path) -> None:
    write_devkit(tmp_path, 1, 1, seed=4)
    name = "VOC2012/JPEGImages/2012_000001.jpg"
    assert (tmp_path / name).read_bytes() != (devkit / name).read_bytes()


def test_write_devkit__never_over_another_one(devkit: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        write_devkit(devkit, 1, 1, seed=0)


def test_write_devkit__empty_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1 image, got train 4 and val 0"):
        write_devkit(tmp_path, 4, 0, seed=0)


def test_write_devkit__broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_split", stop)
    with pytest.raises(KeyboardInterrupt):
        write_devkit(tmp_path, 2, 1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_compose__boxes_lie_in_the_picture_and_sizes_vary() -> None:
    sizes = set()
    truncated = difficult = several = 0
    for index in range(60):
        picture, objects = compose(index, seed=0)
        sizes.add(picture.size)
        several += len({item.name for item in objects}) > 1
        for item in objects:
            left, top, right, bottom = item.box
            assert 1 <= left <= right <= picture.width
            assert 1 <= top <= bottom <= picture.height
            truncated += item.truncated
            difficult += item.difficult
    assert (500, 375) in sizes
    assert len(sizes) >= 3
    assert min(truncated, difficult, several) >= 5


def test_compose__long_tail() -> None:
    """Over the default devkit person leads by far; the rarest class keeps enough images to be judged."""
    expected = dict.fromkeys(VOC_CLASSES, 0.0)
    total = sum(scene.share for scene in SCENES.values())
    for scene in SCENES.values():
        for name, chance in scene.likely.items():
            expected[name] += scene.share / total * chance
    assert max(expected, key=expected.__getitem__) == "person"
    assert 0.33 < expected["person"] < 0.45
    assert min(expected.values()) * synthetic.DEFAULT_VAL >= 22
    assert min(expected.values()) < 0.07


def test_kinds__all_classes_in_order() -> None:
    assert tuple(KINDS) == VOC_CLASSES


def test_main__writes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path / "new"), "--train", "2", "--val", "1", "--seed", "9"]
    assert run(main, arguments) == 0
    assert "wrote 2 train and 1 val images" in capsys.readouterr().out
    assert Image.open(tmp_path / "new/VOC2012/JPEGImages/2012_000003.jpg").size[0] >= 333
    assert run(main, arguments) == 2
