import threading

import numpy as np
import pytest

from data.errors import InputError
from eval import ranking
from eval.ranking import in_threads, rank_pairs, ranked_with, rankings


def test_rankings__threads_and_blocks_have_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    shape = (300, 37)
    logit = np.round(rng.normal(size=shape), 1).astype(np.float32)
    target, mask = (rng.integers(0, 2, shape).astype(np.uint8) for _ in range(2))
    ids = [f"{i}" for i in rng.permutation(300)]
    plain = list(rankings(logit, target, mask, ids))
    monkeypatch.setattr(ranking, "_THREADED_FROM", 1)
    monkeypatch.setattr(ranking.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    names = set()

    def use(found: ranking.Ranking) -> ranking.Ranking:
        names.add(threading.current_thread().name)
        return found

    for one, two in zip(plain, ranked_with(use, logit, target, mask, ids), strict=True):
        np.testing.assert_array_equal(one.key, two.key)
        np.testing.assert_array_equal(one.hits, two.hits)
    assert threading.main_thread().name not in names


def test_in_threads__order_and_errors() -> None:
    assert list(in_threads(lambda i: i * i, 5, 10**9)) == [0, 1, 4, 9, 16]

    def fail(i: int) -> int:
        raise InputError(f"class {i}")

    with pytest.raises(InputError, match="class 0"):
        list(in_threads(fail, 3, 10**9))


def test_rank_pairs__too_many_pairs() -> None:
    many = np.broadcast_to(np.uint64(0), (2**31 + 1,))
    nothing = np.empty(0)
    with pytest.raises(InputError, match="at most 2147483648 pairs"):
        rank_pairs(nothing, nothing, nothing, many)  # type: ignore[arg-type]
