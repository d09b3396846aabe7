"""The explorer in a real browser: what it shows is what `eval.metrics` gives."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval import explorer
from eval.explorer import with_thumbnail, write_explorer
from eval.joining import Joined
from eval.metrics import tail_curve
from eval.ranking import Ranking, rankings

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
IMAGES = 90
CLASSES = ("cat", "</script><b>dog", "never above")


def make_joined(folder: Path) -> Joined:
    random = np.random.default_rng(3)
    target = (random.random((IMAGES, 3)) < 0.4).astype(np.uint8)
    logit = (target * 2.0 + random.normal(0, 2, (IMAGES, 3))).astype(np.float32)
    logit[:40] = np.round(logit[:40])  # ties, some exactly at a threshold that a key reaches
    logit[:, 2] = -np.abs(logit[:, 2]) - 1
    mask = (random.random((IMAGES, 3)) > 0.1).astype(np.uint8)
    paths = []
    for i in range(IMAGES):
        paths.append(folder / f"im{i:03d}.jpg")
        Image.new("RGB", (40, 30), (i, 90, 200 - i)).save(paths[-1])
    ids = tuple(f"2012_{(i * 37) % 1000:06d}" for i in range(IMAGES))
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return Joined("val", CLASSES, ids, logit, score, target * mask, mask, tuple(paths), (), {}, IMAGES, "f")


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    return make_joined(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def page(joined: Joined, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    path = tmp_path_factory.mktemp("page") / "explorer.html"
    assert write_explorer(path, joined, "a <model>") == ""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page()
        seen: list[str] = []
        tab.on("console", lambda message: seen.append(message.text))
        tab.on("pageerror", lambda error: seen.append(str(error)))
        tab.on(
            "request", lambda request: seen.append(request.url) if request.url.startswith("http") else None
        )
        tab.goto(path.as_uri())
        yield tab
        browser.close()
        assert seen == [], "the page wrote to the console or asked for something"


def ranking(joined: Joined, column: int) -> Ranking:
    return list(rankings(joined.logit, joined.target, joined.mask, joined.image_ids))[column]


def shown(page: Any, name: str) -> str:
    return str(page.locator(f"#{name}").inner_text())


def tail_at(joined: Joined, column: int, t: float) -> tuple[int, int, int]:
    """Images above t, positives among them, and images that count, by eval.metrics."""
    curve = tail_curve([ranking(joined, column)], np.zeros(1), np.array([[t]]))
    return int(curve.above[0, 0]), int(curve.hits[0, 0]), int(curve.images[0])


def check_tail(page: Any, joined: Joined, column: int) -> float:
    t = float(page.locator("#t").input_value())
    count, hits, images = tail_at(joined, column, t)
    assert shown(page, "above") == str(count)
    assert shown(page, "right") == f"{hits} right of {count}"
    assert shown(page, "tailacc") == (f"{100 * hits / count:.2f} %" if count else "n/a")
    assert shown(page, "coverage") == f"{100 * count / images:.2f} %"
    return t


@pytest.mark.parametrize("column", [0, 1])
def test_page__slider_gives_the_numbers_of_the_metrics(page: Any, joined: Joined, column: int) -> None:
    page.select_option("#class", str(column))
    assert check_tail(page, joined, column) == 0.0
    slider = page.locator("#t")
    seen = set()
    for key in (
        "ArrowRight",
        "ArrowRight",
        "PageUp",
        "PageUp",
        "ArrowLeft",
        "PageDown",
        "End",
        "Home",
        "PageUp",
    ):
        slider.press(key)
        seen.add(check_tail(page, joined, column))
    assert len(seen) >= 7
    slider.press("End")
    assert shown(page, "tailacc") == "n/a"  # strict: nothing is above the highest score
    for t in (1.0, 2.0, 0.5):  # 1 and 2 are scores of many images: equal is not above
        slider.fill(str(t))
        assert check_tail(page, joined, column) == t


def test_page__images_beside_t_are_the_next_in_the_ranking(page: Any, joined: Joined) -> None:
    page.select_option("#class", "0")
    page.locator("#t").fill("1")
    order = sorted(range(IMAGES), key=lambda row: (-joined.logit[row, 0], joined.image_ids[row]))
    cut = sum(joined.logit[row, 0] > 1 for row in order)
    for strip, rows in (
        ("just-above", order[max(0, cut - 6) : cut][::-1]),
        ("just-below", order[cut : cut + 6]),
    ):
        captions = page.locator(f"#{strip} figcaption").all_inner_texts()
        assert [caption.split("\n")[-1] for caption in captions] == [joined.image_ids[row] for row in rows]
        words = ["yes" if joined.target[r, 0] else "no" if joined.mask[r, 0] else "ignored" for r in rows]
        assert [caption.split("\n")[0].split()[-1] for caption in captions] == words
        assert page.locator(f"#{strip} img").count() == len(rows)


@pytest.mark.parametrize(("t1", "t2"), [(-1.0, 1.0), (0.0, 0.0), (-3.0, 2.0), (1.0, 4.0)])
def test_page__band_between_two_thresholds(page: Any, joined: Joined, t1: float, t2: float) -> None:
    column = 1
    page.select_option("#class", str(column))
    page.locator("#t1").fill(str(t1))
    page.locator("#t2").fill(str(t2))
    logit, truth = joined.logit[:, column].astype(np.float64), joined.target[:, column]
    valid = joined.mask[:, column] == 1
    yes, no = valid & (logit > t2), valid & (logit <= t1)
    look = valid & ~yes & ~no
    right = (yes & (truth == 1)).sum() + (no & (truth == 0)).sum() + look.sum()
    assert shown(page, "accuracy") == f"{100 * right / valid.sum():.2f} %"
    assert shown(page, "look") == str(look.sum())
    assert shown(page, "look-share") == f"images, {100 * look.sum() / valid.sum():.2f} % of all"
    assert shown(page, "precision") == f"{100 * (yes & (truth == 1)).sum() / yes.sum():.2f} %"
    assert (
        shown(page, "found-of") == f"{((truth == 1) & valid & ~no).sum()} of {((truth == 1) & valid).sum()}"
    )
    alone = ((logit > 0) == (truth == 1))[valid].mean()
    assert shown(page, "alone") == f"{100 * alone:.2f} %"


def test_page__one_slider_pushes_the_other(page: Any) -> None:
    page.select_option("#class", "0")
    page.locator("#t2").fill("0")
    page.locator("#t1").fill("1.5")
    assert float(page.locator("#t2").input_value()) == 1.5
    page.locator("#t2").fill("-1")
    assert float(page.locator("#t1").input_value()) == -1.0


def test_page__class_without_a_tail_says_so(page: Any) -> None:
    page.select_option("#class", "2")
    assert page.locator("#empty").is_visible()
    assert page.locator("#t").is_disabled()
    assert shown(page, "above") == "0"


@pytest.mark.parametrize("width", [400, 1000, 2000])
def test_page__fits_the_width_in_light_and_dark(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.select_option("#class", "0")
    colours = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def test_write_explorer__data_cannot_end_its_element(joined: Joined, tmp_path: Path) -> None:
    write_explorer(tmp_path / "e.html", joined, "m")
    text = (tmp_path / "e.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(data)["classes"] == list(CLASSES)
    assert not re.search(r"""(src|href)=["']?(http|//)""", text)


def test_write_explorer__more_than_a_page_can_hold(
    joined: Joined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "MOST_PAIRS", 100)
    assert "90 images of 3 classes are more than a page can hold" in write_explorer(
        tmp_path / "e.html", joined, "m"
    )
    assert not list(tmp_path.iterdir())


def test_with_thumbnail__the_best_of_each_class_first() -> None:
    logit = np.array([[5, 0], [4, 9], [3, 8], [2, 1], [1, 7]], dtype=np.float32)
    assert with_thumbnail(logit, 9).tolist() == [0, 1, 2, 3, 4]
    assert with_thumbnail(logit, 2).tolist() == [0, 1]
    assert with_thumbnail(logit, 3).tolist() == [0, 1, 2]
