"""The state machine: examples of each rule, and random walks through all interleavings of its events."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from data.errors import InputError
from serve.batcher import Answer, Batcher, Decode, Item, Request, Run, Verdict

DECODE_S = 0.25


class Driver:
    """Carries out actions with a clock of its own, and checks each against the rules."""

    def __init__(
        self, max_batch=4, max_delay=0.1, decoders=2, ahead=None, pad=False, runners=1, shared=False
    ):
        buckets = [size for size in (1, 2, 4, 8) if size < max_batch] + [max_batch]
        ahead = ahead or 2 * max_batch + decoders
        self.batcher = Batcher(buckets, max_delay, decoders, ahead, pad, runners, shared)
        self.decoders, self.runners, self.shared = decoders, runners, shared
        self.threads = max(decoders, runners) if shared else decoders + runners
        self.ahead = ahead
        self.now = 0.0
        self.requests: list[Request] = []
        self.answered: dict[Request, int] = {}
        self.decoding: list[Item] = []
        self.ready: list[Item] = []  # in the order in which they became ready
        self.waiting: list[Item] = []  # to be decoded, in the order of arrival
        self.batches = []
        self.dead_batches = []
        self.dead_decodes: list[Item] = []
        self.ran = []
        self.expected = {}

    def act(self, actions):
        for action in actions:
            match action:
                case Answer(request):
                    self.answered[request] = self.answered.get(request, 0) + 1
                    assert request.verdict is not None
                    self._forget(request)
                case Decode(item):
                    self._may_start(item)
                    assert item is self._first(self.waiting)
                    self.waiting.remove(item)
                    self.decoding.append(item)
                    assert len(self.decoding) <= self.decoders
                    assert len(self.decoding) + len(self.batches) <= self.threads
                    assert len(self.decoding) + len(self.ready) <= self.ahead
                case Run(batch):
                    assert len(self.batches) < self.runners
                    assert len(self.decoding) + len(self.batches) < self.threads
                    assert not self.batcher.down
                    assert 1 <= len(batch.items) <= batch.bucket <= self.batcher.buckets[-1]
                    assert batch.bucket in self.batcher.buckets
                    assert self.batcher.pad or len(batch.items) == batch.bucket
                    for item in batch.items:
                        self._may_start(item)
                        assert item.content == ("pixels", item.request, item.index)
                        assert item is self._first(self.ready)
                        self.ready.remove(item)
                    others = self.ready or self.waiting or self.decoding or self.batches
                    assert batch.alone == (len(batch.items) == 1 and not others)
                    self.batches.append(batch)
                    self.ran.append(len(batch.items))

    def _may_start(self, item):
        assert item.request.verdict is None
        assert item.request.deadline > self.now

    @staticmethod
    def _first(line):
        """By priority, then in order: written another way than in the module."""
        return min(enumerate(line), key=lambda pair: (pair[1].request.priority or 1000, pair[0]))[1]

    def _forget(self, request):
        self.waiting = [item for item in self.waiting if item.request is not request]
        self.ready = [item for item in self.ready if item.request is not request]

    def arrive(self, encoded=1, pixels=0, deadline=math.inf, priority=0):
        request = Request([None] * (encoded + pixels), self.now + deadline, priority)
        items = [Item(request, index, b"jpeg") for index in range(encoded)]
        ready = [
            Item(request, index, ("pixels", request, index)) for index in range(encoded, encoded + pixels)
        ]
        self.requests.append(request)
        self.expected[request] = [("row", index) for index in range(encoded + pixels)]
        taken = not (self.batcher.draining or self.batcher.down)
        if taken:
            self.waiting += items
            self.ready += ready
        self.act(self.batcher.arrive(request, items, ready, self.now))
        return request

    def decoded(self, position=0, ok=True):
        item = self.decoding.pop(position)
        live = item.request.verdict is None and item.request.deadline > self.now
        if ok:
            if live:
                self.ready.append(item)
            pixels = ("pixels", item.request, item.index)
            self.act(self.batcher.decoded(item, pixels, DECODE_S, self.now))
        else:
            self.expected[item.request][item.index] = ("bad", item.index)
            self.act(self.batcher.decode_failed(item, ("bad", item.index), self.now))

    def ended(self, position=0, ok=True):
        batch = self.batches.pop(position)
        if ok:
            outcomes = [("row", item.index) for item in batch.items]
            self.act(self.batcher.batch_done(batch, outcomes, self.now))
            return
        for item in batch.items:
            self.expected[item.request][item.index] = "failed"
        self.act(self.batcher.batch_failed(batch, "failed", self.now))

    def die(self):
        self.dead_batches += self.batches
        self.batches = []
        if self.shared:  # the worker's threads were decoding
            self.dead_decodes += self.decoding
            self.decoding = []
        self.act(self.batcher.worker_died("the worker died", self.now))

    def pass_time(self, seconds):
        self.now += seconds
        self.act(self.batcher.tick(self.now))

    def verdicts(self):
        return [request.verdict for request in self.requests]

    def check(self):
        batcher = self.batcher
        assert all(count == 1 for count in self.answered.values())
        assert {r for r in self.requests if r.verdict is not None} == set(self.answered)
        assert batcher.held == len(self.requests) - len(self.answered)
        assert batcher.decoding == len(self.decoding)
        assert batcher.queued == len(self.waiting)
        assert batcher.ready == len(self.ready)
        assert batcher.running == sum(len(batch.items) for batch in self.batches)
        for request in self.requests:
            if request.verdict is Verdict.DONE:
                assert request.outcomes == self.expected[request]
            if request.verdict is Verdict.EXPIRED:
                assert request.deadline <= self.now
            if request.verdict is None:
                assert request.deadline > self.now
        free = self.threads - len(self.decoding) - len(self.batches)
        if self.shared:
            # No thread is idle while there is work for it.
            assert not (free and batcher.ready and len(self.batches) < self.runners)
        elif batcher.ready and len(self.batches) < self.runners:
            # Never idle where there is a full batch, or nothing to wait for; else the alarm is set.
            assert batcher.ready < batcher.buckets[-1]
            assert batcher.queued or batcher.decoding
            assert self.now < batcher.wake_at() <= self.now + batcher.max_delay
        if free and batcher.queued and len(self.decoding) < self.decoders:
            assert len(self.decoding) + batcher.ready >= self.ahead

    def finish(self):
        """Let all that goes on come to its end."""
        for _ in range(10_000):
            if self.decoding:
                self.decoded()
            elif self.batches:
                self.ended()
            elif self.batcher.held:
                self.pass_time(self.batcher.max_delay or 0.01)
            else:
                break
        self.check()
        assert len(self.answered) == len(self.requests)
        assert self.batcher.idle
        assert (self.batcher.queued, self.batcher.ready) == (0, 0)
        assert self.batcher.wake_at() == math.inf or not self.batcher._held
        assert not self.batcher._queued._levels
        assert not self.batcher._ready._levels
        assert all(not request._items for request in self.requests)


class Walk(RuleBasedStateMachine):
    """Every event at any time, in any order."""

    @initialize(
        max_batch=st.sampled_from([1, 2, 3, 4, 8]),
        max_delay=st.sampled_from([0.0, 0.1]),
        decoders=st.integers(1, 3),
        slack=st.integers(0, 4),
        pad=st.booleans(),
        runners=st.integers(1, 3),
        shared=st.booleans(),
    )
    def begin(self, max_batch, max_delay, decoders, slack, pad, runners, shared):
        self.driver = Driver(max_batch, max_delay, decoders, max_batch + slack, pad, runners, shared)

    @rule(
        encoded=st.integers(0, 5),
        pixels=st.integers(0, 3),
        deadline=st.sampled_from([math.inf, math.inf, 0.0, 0.05, 0.3, 1.0]),
        priority=st.sampled_from([0, 0, 1, 2]),
    )
    def arrive(self, encoded, pixels, deadline, priority):
        self.driver.arrive(encoded, pixels, deadline, priority)

    @precondition(lambda self: self.driver.requests)
    @rule(data=st.data())
    def cancel(self, data):
        request = data.draw(st.sampled_from(self.driver.requests[-8:]))
        self.driver.act(self.driver.batcher.cancel(request, self.driver.now))

    @precondition(lambda self: self.driver.decoding)
    @rule(data=st.data(), ok=st.sampled_from([True, True, False]))
    def decoded(self, data, ok):
        self.driver.decoded(data.draw(st.integers(0, len(self.driver.decoding) - 1)), ok)

    @precondition(lambda self: self.driver.batches)
    @rule(data=st.data(), ok=st.sampled_from([True, True, False]))
    def ended(self, data, ok):
        self.driver.ended(data.draw(st.integers(0, len(self.driver.batches) - 1)), ok)

    @rule(seconds=st.sampled_from([0.01, 0.06, 0.2, 2.0]))
    def pass_time(self, seconds):
        self.driver.pass_time(seconds)

    @rule()
    def die(self):
        self.driver.die()

    @precondition(lambda self: self.driver.batcher.down)
    @rule()
    def restart(self):
        self.driver.batcher.worker_started()

    @precondition(lambda self: self.driver.dead_batches)
    @rule()
    def a_dead_worker_comes_back(self):
        batch = self.driver.dead_batches.pop()
        assert not self.driver.batcher.batch_done(batch, ["late"] * len(batch.items), self.driver.now)

    @precondition(lambda self: self.driver.dead_decodes)
    @rule(ok=st.booleans())
    def a_dead_worker_s_decode_comes_back(self, ok):
        item, batcher, now = self.driver.dead_decodes.pop(), self.driver.batcher, self.driver.now
        assert not (
            batcher.decoded(item, "late", DECODE_S, now) if ok else batcher.decode_failed(item, "late", now)
        )

    @precondition(lambda self: len(self.driver.requests) > 5)
    @rule()
    def drain(self):
        self.driver.act(self.driver.batcher.drain(self.driver.now))

    @invariant()
    def holds(self):
        if hasattr(self, "driver"):
            self.driver.check()

    def teardown(self):
        if hasattr(self, "driver"):
            self.driver.finish()


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_batcher__a_lone_image_does_not_wait():
    driver = Driver(max_delay=5.0)
    driver.arrive(1)
    driver.decoded()
    assert driver.ran == [1]
    driver.ended()
    assert driver.verdicts() == [Verdict.DONE]


def test_batcher__waits_for_those_on_their_way_and_no_longer_than_the_delay():
    driver = Driver(max_batch=4, max_delay=0.1, decoders=2)
    driver.arrive(3)
    driver.decoded()
    assert driver.ran == []
    assert driver.batcher.wake_at() == pytest.approx(0.1)
    driver.pass_time(0.09)
    assert driver.ran == []
    driver.pass_time(0.02)
    assert driver.ran == [1]


@pytest.mark.parametrize(("pad", "ran", "buckets"), [(False, [4, 2, 1], [4, 2, 1]), (True, [7], [8])])
def test_batcher__takes_full_buckets_or_pads(pad, ran, buckets):
    driver = Driver(max_batch=8, max_delay=0, decoders=1, pad=pad)
    driver.arrive(0, 1)  # holds the worker
    driver.arrive(0, 7)
    seen = []
    driver.ended()
    while driver.batches:
        seen.append(driver.batches[0].bucket)
        driver.ended()
    assert driver.ran[1:] == ran
    assert seen == buckets


def test_batcher__priorities_first_then_order():
    driver = Driver(max_batch=2, decoders=1)
    driver.arrive(0, 1)
    late = driver.arrive(0, 2)
    second = driver.arrive(0, 1, priority=2)
    first = driver.arrive(0, 1, priority=1)
    driver.ended()
    assert [item.request for item in driver.batches[0].items] == [first, second]
    driver.ended()
    assert [item.request for item in driver.batches[0].items] == [late, late]


def test_batcher__what_expired_is_neither_decoded_nor_run():
    driver = Driver(max_batch=2, decoders=1)
    driver.arrive(2, deadline=1.0)
    other = driver.arrive(1)
    driver.now = 1.5  # nobody has called tick
    driver.decoded()
    assert driver.verdicts() == [Verdict.EXPIRED, None]
    assert [item.request for item in driver.decoding] == [other]
    assert driver.requests[0].message == (
        "the deadline passed after 1.500 s on the server, with 2 of 2 images to go"
    )
    driver.arrive(0, 1, deadline=1.0)
    driver.now = 3.0
    driver.decoded()
    assert {item.request for item in driver.batches[0].items} == {other}


def test_batcher__images_decoded_ahead_are_bounded():
    driver = Driver(max_batch=2, decoders=4, ahead=5, max_delay=0)
    driver.arrive(20)
    while driver.decoding:
        driver.decoded()
    # One batch runs; the rest waits as pixels, and all others are still files.
    assert (driver.batcher.running, driver.batcher.ready) == (1, 5)
    assert driver.batcher.queued == 14


def test_batcher__on_shared_cores_a_full_batch_goes_before_a_decode_and_that_before_half_a_batch():
    driver = Driver(max_batch=2, max_delay=1.0, runners=2, shared=True)
    driver.arrive(6)
    assert len(driver.decoding) == 2
    driver.decoded()
    assert (driver.ran, len(driver.decoding)) == ([], 2)
    driver.decoded()
    assert (driver.ran, len(driver.decoding)) == ([2], 1)
    driver.ended()
    assert (driver.ran, len(driver.decoding)) == ([2], 2)
    # What has waited for long enough goes, though there is more to decode.
    driver.decoded()
    driver.now = 1.5
    driver.decoded()
    driver.decoded()
    assert driver.ran == [2, 2]
    driver.finish()


def test_batcher__free_cores_share_what_is_left():
    driver = Driver(max_batch=4, runners=2, shared=True)
    driver.arrive(0, 6)
    assert driver.ran == [2, 4]
    assert not any(batch.alone for batch in driver.batches)
    driver.ended()
    driver.ended()
    driver.arrive(0, 1)
    assert driver.batches[0].alone


def test_batcher__a_free_core_does_not_wait_for_what_another_one_decodes():
    driver = Driver(max_batch=4, max_delay=5.0, runners=2, shared=True)
    driver.arrive(2)
    driver.decoded()
    assert driver.ran == [1]
    assert not driver.batches[0].alone


def test_batcher__a_batch_that_ends_leaves_the_other_running():
    driver = Driver(max_batch=1, runners=2, shared=True)
    first, second = driver.arrive(0, 1), driver.arrive(0, 1)
    driver.ended(1)
    assert driver.verdicts() == [None, Verdict.DONE]
    driver.ended(0, ok=False)
    assert (first.outcomes, second.outcomes) == (["failed"], [("row", 0)])


def test_batcher__the_worker_s_death_gives_all_back_and_refuses_until_another_starts():
    driver = Driver(max_batch=1, decoders=1)
    for _ in range(3):
        driver.arrive(1)
    driver.decoded()
    driver.die()
    late = driver.arrive(1)
    assert driver.verdicts() == [Verdict.LOST] * 4
    assert late.message == "the worker died"
    driver.batcher.worker_started()
    driver.decoded()  # the pool comes back with what nobody waits for
    driver.arrive(1)
    driver.decoded()
    driver.ended()
    assert driver.verdicts()[-1] is Verdict.DONE


def test_batcher__a_dead_worker_that_comes_back_changes_nothing():
    driver = Driver(max_batch=1, decoders=1)
    driver.arrive(0, 1)
    driver.die()
    driver.batcher.worker_started()
    driver.arrive(0, 1)
    driver.arrive(0, 1)
    (late,) = driver.dead_batches
    assert driver.batcher.batch_done(late, ["late"], driver.now) == []
    driver.check()  # the new batch still runs, and no second one beside it
    driver.finish()
    assert driver.verdicts() == [Verdict.LOST, Verdict.DONE, Verdict.DONE]


def test_batcher__where_the_worker_decodes_its_death_ends_what_it_was_decoding():
    driver = Driver(max_batch=1, decoders=1, shared=True)
    driver.arrive(2)
    driver.die()
    driver.batcher.worker_started()
    driver.arrive(1)  # decoded at once: the place of what was given up is free
    (late,) = driver.dead_decodes
    assert driver.batcher.decoded(late, "late", DECODE_S, driver.now) == []
    driver.finish()
    assert driver.verdicts() == [Verdict.LOST, Verdict.DONE]


def test_batcher__a_drain_refuses_what_is_new_and_waits_for_nothing():
    driver = Driver(max_batch=4, max_delay=5.0, decoders=1)
    driver.arrive(2)
    driver.decoded()
    assert driver.ran == []
    driver.act(driver.batcher.drain(driver.now))
    assert driver.ran == [1]
    assert driver.arrive(1).verdict is Verdict.REFUSED
    driver.finish()
    assert driver.verdicts() == [Verdict.DONE, Verdict.REFUSED]


def test_batcher__times_of_a_request():
    driver = Driver(max_batch=2, decoders=2, max_delay=0)
    request = driver.arrive(2)
    driver.now = 1.0
    driver.decoded()
    driver.decoded()
    driver.now = 3.0
    driver.ended()
    driver.now = 4.0
    driver.ended()
    assert (request.arrived, request.finished, request.last_batch) == (0.0, 4.0, 4.0)
    assert (request.decode_s, request.infer_s) == (2 * DECODE_S, 3.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((), 0.1, 1, 8, False), "buckets must ascend from 1, got []"),
        (((2, 4), 0.1, 1, 8, False), "buckets must ascend from 1, got [2, 4]"),
        (((1, 4, 2), 0.1, 1, 8, False), "buckets must ascend from 1, got [1, 4, 2]"),
        (((1, 2), 60.0, 1, 8, False), "max_delay must be from 0 to 60 s, got 60.0"),
        (((1, 2), 0.1, 0, 8, False), "decoders must be at least 1, got 0"),
        (((1, 2), 0.1, 1, 1, False), "ahead at least 2, got 1"),
        (((1, 2), 0.1, 1, 8, False, 0), "runners must be at least 1, got 0"),
    ],
)
def test_batcher__settings_against_the_rules(arguments, words):
    with pytest.raises(InputError) as info:
        Batcher(*arguments)
    assert words in str(info.value)
