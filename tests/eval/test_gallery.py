from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from eval.gallery import _fitted, contact_sheet, errors, extremes, random_classes, sheet_names, thumbnail
from eval.joining import Joined


def toy(paths: tuple[Path, ...] = tuple(Path(f"{n}.jpg") for n in "dcba")) -> Joined:
    logit = np.array([[1, 0], [2, 0], [2, 0], [3, 0]], np.float32)
    target = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.uint8)
    mask = np.array([[1, 1], [1, 1], [1, 1], [0, 1]], np.uint8)
    return Joined(
        "toy", ("cat", "dog"), ("d", "c", "b", "a"), logit, logit / 4, target, mask, paths, (), {}, 4, "f"
    )


def test_extremes__order_ties_and_ignored_mark() -> None:
    best, worst = extremes(toy(), 0, 3)
    assert [(s.image_id, s.score, s.truth) for s in best] == [
        ("a", 0.75, "ignored"),
        ("b", 0.5, "yes"),
        ("c", 0.5, "no"),
    ]
    assert [s.image_id for s in worst] == ["d", "c", "b"]
    assert best[1].path == Path("b.jpg")


def test_errors__only_images_that_count() -> None:
    negatives, positives = errors(toy(), 0, 5)
    assert [(s.image_id, s.truth, s.labels) for s in negatives] == [("c", "no", "")]
    assert [(s.image_id, s.truth) for s in positives] == [("d", "yes"), ("b", "yes")]
    assert extremes(toy(), 0, 1)[0][0].labels == "cat (ignored)"


def test_random_classes__seeded_and_only_with_a_positive() -> None:
    assert random_classes(toy(), [0, 1], 0) == [0]
    many = Joined(
        "many",
        tuple(f"c{i}" for i in range(30)),
        ("a",),
        np.zeros((1, 30), np.float32),
        np.zeros((1, 30), np.float32),
        np.ones((1, 30), np.uint8),
        np.ones((1, 30), np.uint8),
        (),
        (),
        {},
        1,
        "f",
    )
    one, again, other = (random_classes(many, range(30), seed) for seed in (1, 1, 2))
    assert len(one) == 5
    assert one == again == sorted(one)
    assert one != other


def test_thumbnail__upright_small_and_unreadable(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees to show
    Image.new("RGB", (400, 200), (250, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    assert thumbnail(tmp_path / "turned.jpg", 100).size == (50, 100)
    (tmp_path / "text.jpg").write_text("no image")
    assert thumbnail(tmp_path / "text.jpg", 100).size == (100, 75)


def test_contact_sheet__grid_of_ten(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40), (0, 0, 250)).save(path)
    best, _ = extremes(toy((path,) * 4), 0, 4)
    sheet = contact_sheet(best * 3, "twelve images")
    assert sheet.size == (10 * 126 + 6, 2 * 158 + 30)
    assert sheet.getpixel((6 + 60, 30 + 100)) == (0, 0, 250)


def test_contact_sheet__id_under_each_image_its_end_where_it_is_long(tmp_path: Path) -> None:
    font = ImageFont.load_default(11)
    assert _fitted("2008_000002", font) == "2008_000002"
    long = _fitted("a-folder-of-some-camera/2008_000002", font)
    assert long.startswith("...")
    assert long.endswith("camera/2008_000002"[-12:])
    assert font.getlength(long) <= 113


def test_sheet_names__safe_and_unique() -> None:
    assert sheet_names(["tv/monitor", "tv monitor"]) == [
        ("01-tv_monitor-top.jpg", "01-tv_monitor-bottom.jpg"),
        ("02-tv_monitor-top.jpg", "02-tv_monitor-bottom.jpg"),
    ]
