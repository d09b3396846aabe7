import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval import explorer
from eval.explorer import picture_order, write_explorer
from eval.joining import Joined

CLASSES = ("cat", "</script><b>dog")
IMAGES = 30


@pytest.fixture
def joined(tmp_path: Path) -> Joined:
    random = np.random.default_rng(3)
    logit = random.normal(0, 2, (IMAGES, 2)).astype(np.float32)
    target = (random.random((IMAGES, 2)) < 0.4).astype(np.uint8)
    path = tmp_path / "photograph.jpg"
    Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
    ids = tuple(f"id{(7 * i) % IMAGES:02d}" for i in range(IMAGES))
    mask = np.ones_like(target)
    mask[3, 1] = 0
    return Joined("val", CLASSES, ids, logit, logit, target, mask, (path,) * IMAGES, (), {}, IMAGES, "f")


def data_of(path: Path) -> tuple[str, dict[str, Any]]:
    text = path.read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return text, json.loads(data)


def test_write_explorer__stands_alone_and_data_cannot_end_its_element(joined: Joined, tmp_path: Path) -> None:
    assert write_explorer(tmp_path / "e.html", joined, "m") == ""
    text, data = data_of(tmp_path / "e.html")
    assert data["classes"] == list(CLASSES)
    assert data["ids"] == sorted(joined.image_ids)
    assert not re.search(r"""(src|href)=["']?(http|//)""", text)
    assert "</script><b>" not in text
    assert len(data["pictures"]) == IMAGES
    assert "have a picture here" not in text


def test_write_explorer__pictures_stop_at_their_budget(
    joined: Joined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_explorer(tmp_path / "all.html", joined, "m")
    everything = data_of(tmp_path / "all.html")[1]["pictures"]
    monkeypatch.setattr(explorer, "MOST_PICTURES", 10 * len(next(iter(everything.values()))))
    write_explorer(tmp_path / "e.html", joined, "m")
    text, data = data_of(tmp_path / "e.html")
    by_id = np.argsort(joined.image_ids)
    first = picture_order(joined.logit[by_id], joined.mask[by_id])[:10]
    assert {int(row) for row in data["pictures"]} == set(first.tolist())
    assert f"10 of {IMAGES} images have a picture here" in text


def test_write_explorer__no_photographs(joined: Joined, tmp_path: Path) -> None:
    without = Joined(*(getattr(joined, name) if name != "paths" else () for name in Joined.__slots__))
    write_explorer(tmp_path / "e.html", without, "m")
    text, data = data_of(tmp_path / "e.html")
    assert data["pictures"] == {}
    assert "photographs were not at hand" in text


def test_write_explorer__more_than_a_page_can_hold(
    joined: Joined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "MOST_PAIRS", 59)
    told = write_explorer(tmp_path / "e.html", joined, "m")
    assert told == "30 images of 2 classes are more than a page can hold (59 pairs)"
    assert not (tmp_path / "e.html").exists()


def test_picture_order__ends_then_tenths_then_every_step() -> None:
    # Logits 1000 ... 1, -1 ... -1000, so that at step k of 100 the cut lies after 1000 - 10 k images.
    logit = np.concatenate([np.arange(1000, 0, -1), np.arange(-1, -1001, -1)]).astype(np.float32)[:, None]
    order = picture_order(logit, np.ones_like(logit, np.uint8)).tolist()
    assert sorted(order) == list(range(2000))
    assert set(order[:18]) == {*range(994, 1006), *range(6)}  # t = 0, then t = the highest
    tenths = {row for k in range(1, 10) for row in range(994 - 100 * k, 1006 - 100 * k)}
    assert set(order[18 : 18 + 9 * 12]) == tenths
    assert order[-1] == 1999
    assert max(order[:1006]) == 1005


def test_picture_order__the_highest_that_counts_ends_the_range() -> None:
    logit = np.arange(100, 0, -1, dtype=np.float32)[:, None]
    mask = np.ones_like(logit, np.uint8)
    mask[:50] = 0
    order = picture_order(logit, mask)
    assert set(order[:18].tolist()) == {*range(94, 100), *range(44, 56)}


def test_picture_order__a_class_without_a_tail_counts_from_its_best() -> None:
    logit = np.array([[5, -9], [4, -1], [3, -2]], np.float32).repeat(20, axis=0)
    order = picture_order(logit, np.zeros_like(logit, np.uint8))
    assert set(order[:12].tolist()) == {*range(54, 60), *range(20, 26)}
