import pytest

from data.errors import InputError
from data.labels import VOC_CLASSES
from serve import sources
from serve.sources import ImageList, find_images


def ids(found):
    return [found.image_id(row) for row in range(len(found))]


def test_find_images__a_folder_to_any_depth(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/er/c.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    found = find_images(str(tmp_path), "val")
    assert ids(found) == ["a", "b", "c"]
    assert found.sizes.tolist() == [5, 5, 14]
    assert found.path(2) == tmp_path / "deep" / "er" / "c.jpeg"
    before = found.fingerprint
    (tmp_path / "b.jpg").write_bytes(b"longer than before")
    assert find_images(str(tmp_path), "val").fingerprint != before
    assert find_images(str(tmp_path), "val").order == found.order


def test_find_images__a_list(tmp_path):
    (tmp_path / "one.jpg").write_bytes(b"1")
    (tmp_path / "two.jpg").write_bytes(b"2")
    listed = tmp_path / "list.txt"
    listed.write_text(f"two.jpg\n\n{tmp_path / 'one.jpg'}\n")
    found = find_images(str(listed), "val")
    assert ids(found) == ["two", "one"]
    assert found.path(0) == tmp_path / "two.jpg"
    assert found.path(1) == tmp_path / "one.jpg"


def test_find_images__the_order_is_told_apart_but_is_no_part_of_the_fingerprint(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    listed = tmp_path / "list.txt"
    listed.write_text("two.jpg\none.jpg\n")
    turned, plain = find_images(str(listed), "val"), find_images(str(tmp_path), "val")
    assert turned.fingerprint == plain.fingerprint
    assert turned.order != plain.order


def test_image_list__takes_few_bytes_an_image():
    files = ((f"/photographs/of/the/year/2026/photo_{n:08d}.jpg", n) for n in range(20_000))
    found = ImageList("many", files)
    assert found.image_id(19_999) == "photo_00019999"
    # 48 bytes of path, 8 where it ends, 8 of size, and what growing leaves unused.
    assert found.nbytes <= 80 * 20_000


def test_image_list__a_name_that_is_not_utf_8_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"the name of b'.*caf\\xe9\.jpg' is not UTF-8; rename the file"):
        ImageList("x", [(str(tmp_path / "caf\udce9.jpg"), 1)])


def _devkit(root):
    main = root / "VOC2012" / "ImageSets" / "Main"
    images = root / "VOC2012" / "JPEGImages"
    main.mkdir(parents=True)
    images.mkdir()
    for split, name in (("val", "2012_01"), ("train", "2012_02")):
        (images / f"{name}.jpg").write_bytes(b"\xff\xd8\xff\xe0")
        (main / f"{split}.txt").write_text(f"{name}\n")
        for label in VOC_CLASSES:
            (main / f"{label}_{split}.txt").write_text(f"{name} {1 if label == 'cat' else -1}\n")
    return root


@pytest.mark.parametrize(("split", "wanted"), [("val", ["2012_01"]), ("train", ["2012_02"])])
def test_find_images__a_devkit(tmp_path, split, wanted):
    found = find_images(str(_devkit(tmp_path)), split)
    assert ids(found) == wanted
    assert split in found.name


def test_find_images__nothing_given_is_the_default_devkit(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "default_devkit", lambda: _devkit(tmp_path))
    assert ids(find_images("", "val")) == ["2012_01"]


def test_find_images__bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="no folder or list at nowhere"):
        find_images("nowhere", "val")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"no image in .*empty: it holds no file that ends in \.jpg"):
        find_images(str(empty), "val")
    listed = tmp_path / "list.txt"
    listed.write_text("\n\n")
    with pytest.raises(InputError, match="the list is empty"):
        find_images(str(listed), "val")
    listed.write_text("\nmissing.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt:2: no file at .*missing\.jpg"):
        find_images(str(listed), "val")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="is not a text file"):
        find_images(str(tmp_path / "photo.jpg"), "val")
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jpg").write_bytes(b"1")
    with pytest.raises(InputError, match="share the id 'same'"):
        find_images(str(tmp_path), "val")
