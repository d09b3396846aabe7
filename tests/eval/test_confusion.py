import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eval.confusion import Confusion, confusion_counts, most_confused


@given(data=st.data())
def test_confusion_counts__agrees_with_counting(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4)))
    logit = data.draw(arrays(np.float32, shape, elements=st.sampled_from([-1.0, 0.0, 1.0])))
    target, mask = (data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1))) for _ in range(2))
    count, chances = confusion_counts(logit, target, mask)
    for c in range(shape[1]):
        for other in range(shape[1]):
            able = [
                i
                for i in range(shape[0])
                if mask[i, c] and not target[i, c] and mask[i, other] and target[i, other]
            ]
            assert chances[c, other] == len(able)
            assert count[c, other] == sum(logit[i, c] > 0 for i in able)


def test_confusion_counts__blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=(50, 3)).astype(np.float32)
    target, mask = (rng.integers(0, 2, (50, 3)).astype(np.uint8) for _ in range(2))
    whole = confusion_counts(logit, target, mask)
    monkeypatch.setattr("eval.confusion._ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(whole, confusion_counts(logit, target, mask))


def test_most_confused__by_count_then_rate() -> None:
    # Four images of a sofa, three of which are also called chair; one cat that is called dog.
    logit = np.array([[1, 9, -1, -1]] * 3 + [[-1, 9, -1, -1], [-1, -1, 9, 1]], np.float32)
    target = np.array([[0, 1, 0, 0]] * 4 + [[0, 0, 1, 0]], np.uint8)
    found = most_confused(["chair", "sofa", "cat", "dog"], logit, target, np.ones_like(target))
    assert found == (Confusion("chair", "sofa", 3, 4), Confusion("dog", "cat", 1, 1))
    assert found[0].rate == 0.75
    assert most_confused(["chair", "sofa", "cat", "dog"], logit, target, np.ones_like(target), 1) == found[:1]
