import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from eval import page
from eval.joining import Joined
from eval.judge import Judgement, judge


@pytest.fixture(scope="module")
def judgement(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    """Three classes; "a<b" has a tail, "low" has none, "none" has no positive. Image 0 is an ignored "low"."""
    path = tmp_path_factory.mktemp("photographs") / "a.png"
    Image.new("RGB", (40, 30), (0, 90, 200)).save(path)
    logit = np.array([[3, -3, -1], [2, -1, -2], [-1, -2, -1], [-2, -4, -2]], np.float32)
    target = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], np.uint8)
    mask = np.array([[1, 0, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]], np.uint8)
    ids = ("i0", "i1", "i2", "i3")
    classes = ("a<b", "low", "none")
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return judge(
        Joined("toy", classes, ids, logit, score, target, mask, (path,) * 4, (), {}, 4, "f"), replicates=5
    )


def section(text: str, start: str, end: str) -> str:
    return text[text.index(start) : text.index(end)]


def test_render__navigation_leads_somewhere_and_out(judgement: Judgement) -> None:
    text = page.render(judgement, {"file": "s.csv"}, [], [("explorer.html", "Tail explorer")])
    navigation = section(text, "<nav", "</nav>")
    inside = re.findall(r'href="#([\w-]+)"', navigation)
    assert len(inside) == 8
    assert all(text.count(f'id="{name}"') == 1 for name in inside)
    assert '<a class="out" href="explorer.html">Tail explorer</a>' in navigation
    assert "explorer.html" not in page.render(judgement, {"file": "s.csv"}, [])


def test_render__class_menu_offers_the_classes_with_a_tail(judgement: Judgement) -> None:
    menu = section(page.render(judgement, {"file": "s.csv"}, []), "<fieldset>", "</fieldset>")
    assert re.findall(r'id="(pick-\d)"( checked)?> ([^<]+)<', menu) == [("pick-0", " checked", "a&lt;b")]
    assert "no line: low, none" in " ".join(menu.split())


def test_render__errors_with_score_truth_and_ignored_mark(judgement: Judgement) -> None:
    text = section(page.render(judgement, {"file": "s.csv"}, []), 'id="errors"', 'id="photographs"')
    classes = text.split("<details>")[1:]
    assert len(classes) == 2
    found = re.findall(
        r'alt="(\w+)"><figcaption>([\d.]+)\s+<span class="(\w+)">.*?labelled: ([^<]*)<', classes[0], re.DOTALL
    )
    assert found == [
        ("i1", "0.8808", "no", "low"),
        ("i3", "0.1192", "no", "nothing"),
        ("i2", "0.2689", "yes", "a&lt;b"),
        ("i0", "0.9526", "yes", "a&lt;b, low (ignored)"),
    ]
    assert 'alt="i0"' not in classes[1]


def test_render__errors_of_the_lowest_ap_where_classes_are_many(
    judgement: Judgement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_ERROR_CLASSES", 1)
    text = section(page.render(judgement, {"file": "s.csv"}, []), 'id="errors"', 'id="photographs"')
    assert "for the 1 with the lowest AP" in text
    assert re.findall(r"<summary>(\S+)", text) == ["a&lt;b"]


def test_render__without_photographs_no_errors(judgement: Judgement) -> None:
    bare = replace(judgement, joined=replace(judgement.joined, paths=()))
    assert 'id="errors"' not in page.render(bare, {"file": "s.csv"}, [])
