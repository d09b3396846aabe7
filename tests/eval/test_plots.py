import re

import numpy as np
import pytest

from eval.calibration import reliability
from eval.joining import Joined
from eval.judge import Judgement, judge
from eval.metrics import ranked_average_precision
from eval.plots import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    class_tail_plots,
    pooled,
    precision_recall,
    precision_recall_panels,
    reliability_panels,
)
from eval.ranking import rankings


@pytest.fixture(scope="module")
def judgement() -> Judgement:
    """Four classes: two as drawn, one without a positive, one without any image that counts."""
    rng = np.random.default_rng(3)
    logit = rng.normal(0, 2, (60, 4)).astype(np.float32)
    logit[:, 2] = -1 - np.abs(logit[:, 2])  # nothing above the threshold
    target = (logit + rng.normal(0, 2, logit.shape) > 1).astype(np.uint8)
    target[:, 2] = 0
    mask = np.ones_like(target)
    mask[:9, 0] = 0
    mask[:, 3] = 0
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    ids = tuple(f"i{n:02d}" for n in range(60))
    joined = Joined("toy", ("cat", "dog", "cow", "bus"), ids, logit, score, target, mask, (), (), {}, 60, "f")
    return judge(joined, replicates=5)


def test_precision_recall__by_hand() -> None:
    # By score: yes no yes no no yes, and an ignored image above all.
    logit = np.array([[9], [6], [5], [4], [3], [2], [1]], np.float32)
    target = np.array([[1], [1], [0], [1], [0], [0], [1]], np.uint8)
    mask = np.array([[0], [1], [1], [1], [1], [1], [1]], np.uint8)
    (ranking,) = rankings(logit, target, mask)
    recall, precision, envelope = precision_recall(ranking)
    assert recall.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert precision.tolist() == pytest.approx([1, 2 / 3, 1 / 2])
    assert envelope.tolist() == pytest.approx([1, 2 / 3, 1 / 2])
    assert envelope.mean() == pytest.approx(ranked_average_precision(ranking, "voc2010"))


def test_precision_recall_panels__area_is_the_ap(judgement: Judgement) -> None:
    panels = precision_recall_panels(judgement)
    assert [p.name for p in panels] == ["cat", "dog"]
    for c, panel in enumerate(panels):
        x, y = np.array([p.split() for p in panel.area[1:].split("L")], np.float64).T
        area = np.trapezoid(PANEL_HEIGHT - y, x) / (PANEL_WIDTH * PANEL_HEIGHT)
        assert area == pytest.approx(judgement.ap["voc2010"][c], abs=1e-3)
        assert panel.caption == f"AP {100 * judgement.ap['voc2010'][c]:.2f} %"


def test_reliability_panels__a_dot_for_each_bin_with_images(judgement: Judgement) -> None:
    panels = reliability_panels(judgement)
    assert [p.name for p in panels] == ["cat", "dog", "cow"]
    diagram = judgement.reliability[0]
    x, y, _ = np.array(panels[0].dots).T
    some = diagram.count > 0
    assert x / PANEL_WIDTH == pytest.approx(diagram.mean_score[some], abs=1e-3)
    assert 1 - y / PANEL_HEIGHT == pytest.approx(diagram.positive_share[some], abs=1e-3)


def test_pooled__is_the_diagram_of_all_pairs_together(judgement: Judgement) -> None:
    joined = judgement.joined
    count, score, share = pooled(judgement.reliability)
    whole = reliability(joined.score.ravel(), joined.target.ravel(), joined.mask.ravel())
    assert count.tolist() == whole.count.tolist()
    assert score == pytest.approx(whole.mean_score, nan_ok=True)
    assert share == pytest.approx(whole.positive_share, nan_ok=True)


def test_class_tail_plots__two_lines_of_each_class_that_the_page_can_show(judgement: Judgement) -> None:
    drawn = class_tail_plots(judgement.headline)
    assert set(drawn) == {"relative", "coverage", "absolute"}
    for text in drawn.values():
        for c in range(4):
            assert text.count(f'class="by class-{c}"') == 2
        assert not re.search(r'id="pick', text)
