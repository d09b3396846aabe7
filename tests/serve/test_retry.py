import random

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.retry import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, pause

Code = grpc.StatusCode
KEY = "grpc-retry-pushback-ms"


@given(st.integers(0, 100_000), st.integers(0, 2**32))
def test_pause__backs_off_exponentially_with_jitter_up_to_a_limit(failures, seed):
    longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures, 50))
    seconds = pause(Code.UNAVAILABLE, {}, failures, random.Random(seed))
    assert longest / 2 <= seconds <= longest


def test_pause__is_not_the_same_for_all():
    draw = random.Random(0)
    assert len({pause(Code.UNAVAILABLE, {}, 3, draw) for _ in range(20)}) == 20


@given(st.integers(0, 10**6), st.integers(0, 20), st.sampled_from(["RESOURCE_EXHAUSTED", "UNAVAILABLE"]))
def test_pause__a_pushback_counts_and_is_never_cut(told, failures, code):
    seconds = pause(Code[code], {KEY: str(told)}, failures, random.Random(1))
    assert told / 1000 <= seconds <= 1.5 * told / 1000


@pytest.mark.parametrize(
    ("code", "metadata"),
    [
        (Code.RESOURCE_EXHAUSTED, {}),
        (Code.RESOURCE_EXHAUSTED, {KEY: "-1"}),
        (Code.UNAVAILABLE, {KEY: "-1"}),
        (Code.UNAVAILABLE, {KEY: "soon"}),
        (Code.INTERNAL, {}),
        (Code.INTERNAL, {KEY: "10"}),
        (Code.INVALID_ARGUMENT, {}),
        (Code.UNIMPLEMENTED, {}),
        (Code.UNKNOWN, {}),
    ],
)
def test_pause__what_is_final(code, metadata):
    assert pause(code, metadata, 0, random.Random(0)) is None
