import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from data.errors import InputError
from data.labels import VOC_CLASSES
from data.voc import default_devkit, find_devkit, list_splits, read_voc

JPEG = b"\xff\xd8\xff\xe0rest"
CLASSES = ("cat", "dog", "train")
REAL = Path(__file__).parents[2] / ".." / "shared" / "voc" / "VOCdevkit"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def xml(*objects: tuple[str, int | None]) -> str:
    items = "".join(
        f"<object><name>{name}</name>"
        + ("" if difficult is None else f"<difficult>{difficult}</difficult>")
        + "<part><name>head</name></part></object>"
        for name, difficult in objects
    )
    return f"<annotation><filename>x.jpg</filename>{items}</annotation>"


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Three images a, b, c of split val, with all three class files."""
    main = tmp_path / "VOC2012" / "ImageSets" / "Main"
    write(main / "val.txt", "a\nb\nc\n")
    write(main / "cat_val.txt", "a  1\nb -1\nc  0\n")
    write(main / "dog_val.txt", "a -1\nb  1\nc  1\n")
    write(main / "train_val.txt", "a -1\nb -1\nc -1\n")
    for image_id in "abc":
        write(tmp_path / "VOC2012" / "JPEGImages" / f"{image_id}.jpg", JPEG)
    return tmp_path


def main_of(devkit: Path) -> Path:
    return devkit / "VOC2012" / "ImageSets" / "Main"


def test_read_voc__class_files(devkit: Path) -> None:
    labels = read_voc(devkit, "val", CLASSES)
    assert labels.name == "VOC2012 val"
    assert labels.image_ids == ("a", "b", "c")
    assert labels.target.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert labels.mask.tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1]]
    assert [path.name for path in labels.paths] == ["a.jpg", "b.jpg", "c.jpg"]
    assert all(path.is_file() for path in labels.paths)
    assert labels.notes == ()


def test_read_voc__year_folder_itself(devkit: Path) -> None:
    inside = read_voc(devkit / "VOC2012", "val", CLASSES)
    assert inside.fingerprint() == read_voc(devkit, "val", CLASSES).fingerprint()


def test_read_voc__any_spacing_and_line_ends(devkit: Path) -> None:
    write(main_of(devkit) / "val.txt", "\ufeffb\r\n\r\n  c \r\na")
    write(main_of(devkit) / "cat_val.txt", "c\t0\r\n a     1  \r\nb -1")
    labels = read_voc(devkit, "val", CLASSES)
    assert labels.image_ids == ("b", "c", "a")
    assert labels.target[:, 0].tolist() == [0, 0, 1]
    assert labels.mask[:, 0].tolist() == [1, 0, 1]


def test_read_voc__two_years(devkit: Path) -> None:
    write(devkit / "VOC2007" / "ImageSets" / "Main" / "val.txt", "000012\n")
    write(devkit / "VOC2007" / "ImageSets" / "Main" / "cat_val.txt", "000012  1\n")
    write(devkit / "VOC2007" / "JPEGImages" / "000012.jpg", JPEG)
    newest = read_voc(devkit, "val", CLASSES)
    assert newest.name == "VOC2012 val"
    assert any("VOC2007 and VOC2012: VOC2012 is read" in note for note in newest.notes)
    older = read_voc(devkit / "VOC2007", "val", ("cat",))
    assert (older.name, older.image_ids, older.notes) == ("VOC2007 val", ("000012",), ())


def test_read_voc__xml_gives_the_same_labels(devkit: Path) -> None:
    expected = read_voc(devkit, "val", CLASSES)
    annotations = devkit / "VOC2012" / "Annotations"
    write(annotations / "a.xml", xml(("cat", 1), ("cat", 0)))
    write(annotations / "b.xml", xml(("dog", 0), ("dog", 1)))
    write(annotations / "c.xml", xml(("cat", 1), ("dog", None), ("cat", 1)))
    for name in CLASSES:
        (main_of(devkit) / f"{name}_val.txt").unlink()
    labels = read_voc(devkit, "val", CLASSES)
    assert labels.target.tolist() == expected.target.tolist()
    assert labels.mask.tolist() == expected.mask.tolist()
    (note,) = labels.notes
    assert note.startswith("3 of 3 class files of split val are missing (first: cat_val.txt)")


def test_read_voc__xml_for_one_missing_class(devkit: Path) -> None:
    (main_of(devkit) / "dog_val.txt").unlink()
    for image_id, objects in {"a": [("cat", 0)], "b": [("dog", 1)], "c": [("dog", 0)]}.items():
        write(devkit / "VOC2012" / "Annotations" / f"{image_id}.xml", xml(*objects))
    labels = read_voc(devkit, "val", CLASSES)
    assert labels.target[:, 1].tolist() == [0, 0, 1]
    assert labels.mask[:, 1].tolist() == [1, 0, 1]
    assert labels.target[:, 0].tolist() == [1, 0, 0]  # still what its class file says


def test_read_voc__xml_unknown_class_is_counted(devkit: Path) -> None:
    (main_of(devkit) / "dog_val.txt").unlink()
    for image_id in "abc":
        write(devkit / "VOC2012" / "Annotations" / f"{image_id}.xml", xml(("zebra", 0), ("dog", 0)))
    note = read_voc(devkit, "val", CLASSES).notes[-1]
    assert note.startswith("3 objects of unknown classes are left out ('zebra' 3), first in ")
    assert note.endswith("a.xml")


BOMB = '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]><annotation><object>&y;</object></annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, r"a\.xml: a DOCTYPE is not allowed"),
        (BOMB.encode("utf-16"), r"a\.xml: a DOCTYPE is not allowed"),
        ("<annotation><object>", r"a\.xml is not well-formed XML"),
        ("", r"a\.xml is not well-formed XML"),
        (b"\x00\xff\xfe", r"a\.xml is not well-formed XML"),
        (xml(("cat", 2)), r"a\.xml: an object must have a name and difficult 0 or 1, got 'cat' and '2'"),
        (xml(("", 0)), r"a\.xml: an object must have a name"),
    ],
)
def test_read_voc__bad_xml(devkit: Path, content: str | bytes, message: str) -> None:
    (main_of(devkit) / "cat_val.txt").unlink()
    write(devkit / "VOC2012" / "Annotations" / "a.xml", content)
    with pytest.raises(InputError, match=message):
        read_voc(devkit, "val", CLASSES)


def test_read_voc__missing_xml(devkit: Path) -> None:
    (main_of(devkit) / "cat_val.txt").unlink()
    with pytest.raises(InputError, match=r"no labels for class 'cat': neither .*cat_val\.txt nor"):
        read_voc(devkit, "val", CLASSES)
    write(devkit / "VOC2012" / "Annotations" / "a.xml", xml())
    with pytest.raises(InputError, match=r"b\.xml is missing; it is named by .*val\.txt:2"):
        read_voc(devkit, "val", CLASSES)


def test_read_voc__no_split_file(devkit: Path) -> None:
    (main_of(devkit) / "val.txt").unlink()
    write(main_of(devkit) / "cat_val.txt", "c 0\na 1\nb -1\n")
    labels = read_voc(devkit, "val", CLASSES)
    assert labels.image_ids == ("c", "a", "b")
    assert "val.txt is missing: the images are those of cat_val.txt" in labels.notes[0]
    write(main_of(devkit) / "cat_val.txt", "c 0\na 1\n")
    with pytest.raises(InputError, match=r"dog_val\.txt:2: image 'b' is not in cat_val\.txt"):
        read_voc(devkit, "val", CLASSES)


def test_read_voc__class_file_with_extra_images(devkit: Path) -> None:
    write(main_of(devkit) / "dog_val.txt", "a -1\nx 1\nb 1\nc 1\ny 1\n")
    labels = read_voc(devkit, "val", CLASSES)
    assert labels.image_ids == ("a", "b", "c")
    (note,) = labels.notes
    assert "dog_val.txt:2: image 'x' is not in val.txt (2 such images)" in note


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dog_val.txt": "a -1\nc 1\n"}, r"dog_val\.txt has no label for image 'b' of .*val\.txt:2"),
        ({"dog_val.txt": "a -1\nb 2\nc 1\n"}, r"dog_val\.txt:2: a label must be 1, -1 or 0, got '2'"),
        ({"dog_val.txt": "a -1\nb\nc 1\n"}, r"dog_val\.txt:2: a line must be 'image id, then 1, -1 or 0'"),
        (
            {"dog_val.txt": "a 1\na -1\nb 1\nc 1\n"},
            r"dog_val\.txt:2: image 'a' stands twice, first in line 1",
        ),
        ({"val.txt": "a\nb\nc\n\na\n"}, r"val\.txt:5: image 'a' stands twice, first in line 1"),
        ({"val.txt": "a 1\nb 1\n"}, r"val\.txt:1: a line must be 'image id', got 'a 1'"),
        ({"val.txt": "\n"}, r"val\.txt names no image"),
        ({"val.txt": b"\xff\xfe\x00"}, r"val\.txt is not a text file"),
    ],
)
def test_read_voc__bad_files(devkit: Path, files: Mapping[str, str | bytes], message: str) -> None:
    for name, content in files.items():
        write(main_of(devkit) / name, content)
    with pytest.raises(InputError, match=message):
        read_voc(devkit, "val", CLASSES)


def test_read_voc__missing_image(devkit: Path) -> None:
    (devkit / "VOC2012" / "JPEGImages" / "b.jpg").unlink()
    (devkit / "VOC2012" / "JPEGImages" / "c.jpg").unlink()
    message = r"b\.jpg is missing; it is named by .*val\.txt:2 \(2 such images\)"
    with pytest.raises(InputError, match=message):
        read_voc(devkit, "val", CLASSES)


def test_read_voc__image_that_is_no_jpeg(devkit: Path) -> None:
    write(devkit / "VOC2012" / "JPEGImages" / "b.jpg", "just text")
    write(devkit / "VOC2012" / "JPEGImages" / "c.jpg", b"")
    labels = read_voc(devkit, "val", CLASSES)
    (note,) = labels.notes
    assert "b.jpg is not a JPEG by its first bytes; it is named by" in note
    assert note.endswith("val.txt:2 (2 such images)")
    assert len(labels.paths) == 3


def test_read_voc__labels_without_photographs(devkit: Path) -> None:
    for path in (devkit / "VOC2012" / "JPEGImages").iterdir():
        path.unlink()
    (devkit / "VOC2012" / "JPEGImages").rmdir()
    labels = read_voc(devkit, "val", CLASSES)
    assert labels.paths == ()
    assert "labels without photographs" in labels.notes[0]


def test_read_voc__unknown_split_lists_the_splits(devkit: Path) -> None:
    write(main_of(devkit) / "cat_test.txt", "z 1\n")
    with pytest.raises(InputError, match=r"unknown split of VOC2012 'vall'; choose one of: test, val$"):
        read_voc(devkit, "vall", CLASSES)


def test_list_splits__class_named_train(devkit: Path) -> None:
    write(main_of(devkit) / "train.txt", "a\n")
    write(main_of(devkit) / "train_train.txt", "a 1\n")
    assert list_splits(devkit / "VOC2012", CLASSES) == ("train", "val")


def test_find_devkit__not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        find_devkit(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"it holds no VOC2012/ or VOC2007/ with ImageSets/Main$"):
        find_devkit(tmp_path)
    (tmp_path / "VOCdevkit").mkdir()
    with pytest.raises(InputError, match=r"did you mean .*VOCdevkit\?"):
        find_devkit(tmp_path)


def test_default_devkit__voc_root(
    devkit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOC_ROOT", str(devkit))
    assert default_devkit() == devkit
    captured = capsys.readouterr()
    assert captured.err == f"data: {devkit} (VOC_ROOT)\n"
    assert captured.out == ""


def test_default_devkit__voc_root_without_a_devkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOC_ROOT", str(tmp_path))
    with pytest.raises(InputError, match=r"^VOC_ROOT=.*it holds no VOC2012/"):
        default_devkit()


@pytest.fixture
def small_synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from data import synthetic

    monkeypatch.delenv("VOC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "DEFAULT_TRAIN", 6)
    monkeypatch.setattr(synthetic, "DEFAULT_VAL", 4)
    return tmp_path


def test_default_devkit__synthetic_is_written_once(
    small_synthetic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = default_devkit()
    assert "writing the synthetic devkit, 6 train and 4 val images" in capsys.readouterr().err
    assert [len(read_voc(root, split)) for split in ("train", "val")] == [6, 4]
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*.jpg"))
    assert default_devkit() == root
    assert "the synthetic devkit in runs/synthetic" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*.jpg")) == before
    assert sorted(path.name for path in (small_synthetic / "runs").iterdir()) == [
        ".synthetic.lock",
        "synthetic",
    ]


def test_default_devkit__several_processes_at_once(tmp_path: Path) -> None:
    script = """
from data import synthetic, voc
synthetic.DEFAULT_TRAIN, synthetic.DEFAULT_VAL = 6, 4
print(voc.default_devkit())
"""
    environment = {name: value for name, value in os.environ.items() if name != "VOC_ROOT"}
    (tmp_path / "writer.py").write_text(script)
    processes = [
        subprocess.Popen(
            [sys.executable, "writer.py"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in outputs] == ["runs/synthetic\n"] * 3
    assert sum("writing the synthetic devkit" in errors for _, errors in outputs) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not on this machine")
def test_read_voc__real_photographs() -> None:
    train, val = read_voc(REAL, "train"), read_voc(REAL, "val")
    assert train.classes == VOC_CLASSES
    assert (len(train), len(val)) == (1697, 500)
    counts = {
        name: (int(t), int(v))
        for name, t, v in zip(train.classes, train.positives(), val.positives(), strict=True)
    }
    assert counts["cat"] == (539, 145)
    assert counts["person"] == (298, 96)
    assert counts["aeroplane"] == (0, 0)
    assert (train.notes, val.notes) == ((), ())
    assert not set(train.image_ids) & set(val.image_ids)
