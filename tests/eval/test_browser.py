"""The explorer and the report page in a real browser: what the explorer shows is what `eval.metrics` gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from eval import explorer
from eval.explorer import write_explorer
from eval.joining import Joined
from eval.judge import judge
from eval.metrics import accuracy, tail_curve
from eval.page import render
from eval.ranking import Ranking, rankings

IMAGES = 90
NO_TAIL, TIED, PLAIN, ALL_IGNORED, CONSTANT = range(5)
CLASSES = ("never above", "cat", "</script><b>dog", "all ignored", "constant")


def make_joined(folder: Path) -> Joined:
    random = np.random.default_rng(3)
    shape = (IMAGES, len(CLASSES))
    target = (random.random(shape) < 0.4).astype(np.uint8)
    logit = (target * 2.0 + random.normal(0, 2, shape)).astype(np.float32)
    logit[:40] = np.round(logit[:40])  # ties, some exactly at a threshold that a key reaches
    logit[:, TIED] = np.round(logit[:, TIED])
    logit[:, NO_TAIL] = -np.abs(logit[:, NO_TAIL]) - 1
    logit[:, CONSTANT] = 0.1  # float32: not the double 0.1
    mask = (random.random(shape) > 0.1).astype(np.uint8)
    logit[80, PLAIN], mask[80, PLAIN] = 9.1234, 1  # the highest, and not a number of three digits
    mask[:, ALL_IGNORED] = 0
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


@contextmanager
def opened(browser: Any, path: Path) -> Iterator[Any]:
    """The file in a new tab, which must say nothing and ask for nothing but itself."""
    tab = browser.new_page(reduced_motion="reduce")
    seen: list[str] = []
    tab.on("console", lambda message: seen.append(message.text))
    tab.on("pageerror", lambda error: seen.append(str(error)))
    tab.on("request", lambda request: seen.append(request.url[:80]))
    tab.goto(path.as_uri())
    yield tab
    tab.close()
    known = ("data:image/webp;base64,", "data:image/jpeg;base64,", path.as_uri()[:80])
    asked = [text for text in seen if not text.startswith(known)]
    assert asked == [], "the page wrote to the console or asked for something"


@pytest.fixture(scope="module")
def page(browser: Any, joined: Joined, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    assert write_explorer(path, joined, "a <model>") == ""
    with opened(browser, path) as tab:
        yield tab


def ranking(joined: Joined, column: int) -> Ranking:
    return list(rankings(joined.logit, joined.target, joined.mask, joined.image_ids))[column]


def shown(page: Any, name: str) -> str:
    return str(page.locator(f"#{name}").inner_text())


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "n/a"


def check_tail(page: Any, joined: Joined, column: int) -> float:
    """Compare everything that is said of t with eval.metrics; gives t."""
    t = float(page.locator("#t-value").input_value())
    curve = tail_curve([ranking(joined, column)], np.zeros(1), np.array([[t]]))
    count, hits, images = int(curve.above[0, 0]), int(curve.hits[0, 0]), int(curve.images[0])
    assert shown(page, "above") == str(count)
    assert shown(page, "valid") == str(images)
    assert shown(page, "right") == f"{hits} right of {count}"
    assert shown(page, "tailacc") == percent(hits, count)
    assert shown(page, "coverage") == percent(count, images)
    said = page.locator("#t").get_attribute("aria-valuetext")
    logit, found = said.split(": ")
    assert float(logit.removeprefix("logit ")) == t
    assert found == f"Tailacc {percent(hits, count)}, {count} images above"
    counted = (joined.mask[:, column] == 1) & (joined.logit[:, column].astype(np.float64) > t)
    assert counted.sum() == count
    if count:
        interval = binomtest(hits, count).proportion_ci(method="wilson")
        wanted = f"95 % interval (Wilson): {100 * interval.low:.1f} to {100 * interval.high:.1f}"
        assert shown(page, "interval") == wanted
        assert shown(page, "lowest") == f"the lowest has a score of {joined.score[counted, column].min():.3f}"
    return t


def test_page__opens_on_a_class_with_a_tail(page: Any, joined: Joined) -> None:
    page.reload()
    assert page.locator("#class").input_value() == str(TIED)
    assert check_tail(page, joined, TIED) == 0.0


@pytest.mark.parametrize("column", [TIED, PLAIN])
def test_page__slider_gives_the_numbers_of_the_metrics(page: Any, joined: Joined, column: int) -> None:
    page.select_option("#class", str(column))
    assert check_tail(page, joined, column) == 0.0
    slider = page.locator("#t")
    seen = set()
    keys = "ArrowRight ArrowUp PageUp PageUp ArrowLeft ArrowDown PageDown End Home PageUp"
    for key in keys.split():
        slider.press(key)
        seen.add(check_tail(page, joined, column))
    assert len(seen) >= 7
    slider.press("End")
    assert check_tail(page, joined, column) == joined.logit[joined.mask[:, column] == 1, column].max()
    assert shown(page, "tailacc") == "n/a"  # strict: nothing is above the highest score
    for position in ("1", "370", "999", "1000"):  # as the mouse sets it
        slider.fill(position)
        seen.add(check_tail(page, joined, column))
    assert shown(page, "tailacc") == "n/a"
    assert len(seen) >= 11
    for t in (1.0, 2.0, 0.5, 1.999999, 2.000001):
        page.locator("#t-value").fill(repr(t))  # 1 and 2 are scores of many images: equal is not above
        assert check_tail(page, joined, column) == t


def test_page__float32_scores_against_a_double_t(page: Any, joined: Joined) -> None:
    page.select_option("#class", str(CONSTANT))
    for t, tail in ((0.1, True), (float(np.float32(0.1)), False)):  # float32(0.1) is above 0.1
        page.locator("#t-value").fill(repr(t))
        check_tail(page, joined, CONSTANT)
        assert (shown(page, "above") != "0") == tail


def test_page__images_beside_t_are_the_next_in_the_ranking(page: Any, joined: Joined) -> None:
    page.select_option("#class", str(TIED))
    page.locator("#t-value").fill("1")
    order = sorted(range(IMAGES), key=lambda row: (-joined.logit[row, TIED], joined.image_ids[row]))
    cut = sum(joined.logit[row, TIED] > 1 for row in order)
    for strip, rows in (
        ("just-above", order[max(0, cut - 6) : cut][::-1]),
        ("just-below", order[cut : cut + 6]),
    ):
        captions = page.locator(f"#{strip} figcaption").all_inner_texts()
        assert captions == [
            f"{joined.score[r, TIED]:.3f} {truth(joined, r, TIED)}\nlogit {joined.logit[r, TIED]:.3f}\n"
            + joined.image_ids[r]
            for r in rows
        ]
        assert page.locator(f"#{strip} img").count() == len(rows) == 6
    assert page.evaluate("Array.from(document.images).every((i) => i.complete && i.naturalWidth > 0)")


def truth(joined: Joined, row: int, column: int) -> str:
    return "ignored" if not joined.mask[row, column] else "yes" if joined.target[row, column] else "no"


@pytest.mark.parametrize("column", [TIED, PLAIN])
@pytest.mark.parametrize(("t1", "t2"), [(-1.0, 1.0), (0.0, 0.0), (-3.0, 2.0), (1.0, 4.0)])
def test_page__band_between_two_thresholds(
    page: Any, joined: Joined, column: int, t1: float, t2: float
) -> None:
    page.select_option("#class", str(column))
    page.locator("#t1-value").fill(str(t1))
    page.locator("#t2-value").fill(str(t2))
    logit, target = joined.logit[:, column].astype(np.float64), joined.target[:, column]
    valid = joined.mask[:, column] == 1
    yes, no = valid & (logit > t2), valid & (logit <= t1)
    look = valid & ~yes & ~no
    yes_right, positives = (yes & (target == 1)).sum(), (valid & (target == 1)).sum()
    right = yes_right + (no & (target == 0)).sum() + look.sum()
    assert shown(page, "accuracy") == percent(right, valid.sum())
    assert shown(page, "look") == shown(page, "band-look") == str(look.sum())
    assert shown(page, "look-share") == f"images, {percent(look.sum(), valid.sum())} of all"
    assert shown(page, "precision") == percent(yes_right, yes.sum())
    assert shown(page, "precision-of") == f"{yes_right} of {yes.sum()}"
    assert (shown(page, "said-no"), shown(page, "said-yes")) == (str(no.sum()), str(yes.sum()))
    found = (valid & ~no & (target == 1)).sum()
    assert shown(page, "found") == percent(found, positives)
    assert shown(page, "found-of") == f"{found} of {positives}"
    assert shown(page, "alone") == percent(float(accuracy([ranking(joined, column)])[0]), 1)
    sample = page.locator("#sample figcaption").all_inner_texts()
    ids = {joined.image_ids[row] for row in np.flatnonzero(look)}
    assert len(sample) == min(12, look.sum())
    assert {caption.split("\n")[-1] for caption in sample} <= ids


def test_page__one_band_slider_pushes_the_other_and_the_ends_leave_all_to_the_person(page: Any) -> None:
    page.select_option("#class", str(PLAIN))
    low, high = page.locator("#t1-value"), page.locator("#t2-value")
    high.fill("0")
    low.fill("1.5")
    assert float(high.input_value()) == 1.5
    high.fill("-1")
    assert float(low.input_value()) == -1.0
    page.locator("#t1").press("Home")
    page.locator("#t2").press("End")
    assert shown(page, "accuracy") == "100.00 %"
    assert shown(page, "look-share") == "images, 100.00 % of all"
    assert shown(page, "precision") == "n/a"


@pytest.mark.parametrize("column", [NO_TAIL, ALL_IGNORED])
def test_page__class_without_a_tail_says_so(page: Any, column: int) -> None:
    page.select_option("#class", str(column))
    assert page.locator("#empty").is_visible()
    assert page.locator("#t").is_disabled()
    assert page.locator("#plot").is_hidden()
    assert shown(page, "above") == shown(page, "said-yes") == "0"
    assert page.locator("#t-value").is_disabled()
    if column == ALL_IGNORED:
        assert shown(page, "accuracy") == shown(page, "coverage") == "n/a"
        assert shown(page, "just-below").count("ignored") == 6


def test_page__every_control_has_a_name_and_shows_its_focus(page: Any) -> None:
    page.select_option("#class", str(TIED))
    page.locator("#class").focus()
    named = []
    for _ in range(7):
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        name = "(document.activeElement.ariaLabel || document.activeElement.labels[0].textContent)"
        named.append(page.evaluate(name))
        page.keyboard.press("Tab")
    one, two = ["t1 (logit)", "t1, typed"], ["t2 (logit)", "t2, typed"]
    assert named == ["Class", "t (logit)", "t, typed", *one, *two]  # in the order of the tab key


def test_page__pictures_that_are_missing(
    browser: Any, joined: Joined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_explorer(tmp_path / "none.html", replace(joined, paths=()), "m")
    with opened(browser, tmp_path / "none.html") as tab:
        assert tab.locator(".strip figure").count() > 12
        assert tab.locator(".strip img, .strip .none").count() == 0
    monkeypatch.setattr(explorer, "MOST_PICTURES", 4_000)
    write_explorer(tmp_path / "some.html", joined, "m")
    with opened(browser, tmp_path / "some.html") as tab:
        assert "images have a picture here" in tab.inner_text("main")
        tab.select_option("#class", str(PLAIN))
        tab.locator("#t").press("ArrowRight")
        with_one, without = (tab.locator(f".strip {kind}").count() for kind in ("img", ".none"))
        assert with_one > 0
        assert without > 0
        assert with_one + without == tab.locator(".strip figure").count()


@pytest.mark.parametrize("width", [400, 1000, 2000])
def test_page__fits_the_width_in_light_and_dark(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.select_option("#class", str(TIED))
    colours = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    page.locator("#t").press("PageUp")
    assert page.evaluate("document.getAnimations().length") == 0


def test_report__fits_the_width_with_all_open_and_shows_the_class_that_is_picked(
    browser: Any, joined: Joined, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(judge(joined, replicates=5), {"file": "s.csv"}, [TIED, PLAIN]), encoding="utf-8")
    with opened(browser, path) as tab:
        for width in (400, 1000, 2000):
            tab.set_viewport_size({"width": width, "height": 900})
            for is_open in ("false", "true"):
                tab.evaluate(
                    f"document.querySelectorAll('details').forEach((d) => {{ d.open = {is_open}; }})"
                )
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator(f".class-{TIED}").count() == 6
        for column in (PLAIN, TIED):
            tab.locator(f"#pick-{column}").check()
            visible = "(e) => getComputedStyle(e).display !== 'none'"
            for c in (TIED, PLAIN):
                lines = tab.locator(f".class-{c}").all()
                assert [line.evaluate(visible) for line in lines] == [c == column] * 6
