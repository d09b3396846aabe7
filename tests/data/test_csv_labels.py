from pathlib import Path

import pytest

from data.csv_labels import read_label_csv
from data.errors import InputError


def write(path: Path, text: str) -> Path:
    path.write_text(text, newline="")
    return path


def test_read_label_csv__values(tmp_path: Path) -> None:
    path = write(tmp_path / "zoo.csv", "image, cat ,dog\r\na.jpg,1, 0\r\n\r\nb.jpg,,1.0\r\nc.jpg,0.0,\r\n")
    labels = read_label_csv(path)
    assert labels.name == "zoo"
    assert labels.classes == ("cat", "dog")
    assert labels.image_ids == ("a", "b", "c")
    assert labels.target.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert labels.mask.tolist() == [[1, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize("cell", ["p/x.jpg", "p\\x.jpg", "x.jpg", "x", "../else\\p/x.jpg", "C:\\p\\x.jpg"])
def test_read_label_csv__path_in_any_style(tmp_path: Path, cell: str) -> None:
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "x.jpg"
    photo.write_bytes(b"")
    labels = read_label_csv(write(tmp_path / "l.csv", f"image,cat\n{cell},1\n"), images=tmp_path / "photos")
    assert labels.image_ids == ("x",)
    assert labels.paths == (photo,)
    assert labels.notes == ()


def test_read_label_csv__paths_beside_the_csv(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x.png").write_bytes(b"")
    (tmp_path / "x.png").write_bytes(b"")
    labels = read_label_csv(write(tmp_path / "l.csv", "image,cat\np/x.png,1\n"))
    assert labels.paths == (tmp_path / "p" / "x.png",)  # the path as it stands goes before its last part


def test_read_label_csv__no_photographs(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    path = write(tmp_path / "l.csv", "image,cat\na.jpg,1\nb.jpg,0\n")
    labels = read_label_csv(path)
    assert labels.paths == ()
    assert "l.csv:3: image 'b.jpg' is not in" in labels.notes[0]
    assert "(1 of 2 not found)" in labels.notes[0]
    with pytest.raises(InputError, match=r"l\.csv:3: image 'b\.jpg' is not in"):
        read_label_csv(path, images=tmp_path)
    with pytest.raises(InputError, match="no folder of images at"):
        read_label_csv(path, images=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,cat,dog\na,1,0\nb,1,yes\n",
            r"l\.csv:3: a label must be 1, 0 or empty .*'yes' for class 'dog'",
        ),
        ("image,cat,dog\na,-1,0\n", r"l\.csv:2: .* got '-1' for class 'cat'"),
        ("image,cat,dog\na,nan,0\n", r"l\.csv:2: .* got 'nan' for class 'cat'"),
        ("image,cat,dog\na,0.5,0\n", r"l\.csv:2: .* got '0.5' for class 'cat'"),
        ("image,cat,dog\na,1\n", r"l\.csv:2: 2 cells where the header has 3"),
        ("image,cat\na.jpg,1\n\nq/a.png,1\n", r"l\.csv:4: image 'a' stands twice, first in line 2"),
        ("image,cat\n,1\n", r"l\.csv:2: the image cell '' names no file"),
        ("image,cat,\na,1,1\n", r"l\.csv:1: column 3 of the header has no class name"),
        ("image,cat,cat\na,1,1\n", r"class name 'cat' stands twice"),
        ("image\na\n", r"l\.csv:1: the header must be 'image,<class>,\.\.\.', got 'image'"),
        ("", r"l\.csv:1: the header must be"),
        ("image,cat\n", r"l\.csv has a header but no row"),
    ],
)
def test_read_label_csv__bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_label_csv(write(tmp_path / "l.csv", text))


def test_read_label_csv__not_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"image,cat\n\xff\xfe,1\n")
    with pytest.raises(InputError, match=r"l\.csv is not a CSV text file"):
        read_label_csv(tmp_path / "l.csv")
    with pytest.raises(InputError, match="no CSV file at"):
        read_label_csv(tmp_path / "none.csv")
