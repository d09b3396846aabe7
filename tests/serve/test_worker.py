import sys
import threading
import time

import pytest

from serve.decode import DecodePool
from serve.worker import InferenceWorker


@pytest.fixture
def worker():
    out = InferenceWorker(stall_s=1.0)
    yield out
    out.close(5)


def _wait(event: threading.Event) -> None:
    assert event.wait(20)


def _pool(threads: int = 2) -> DecodePool:
    pool = DecodePool(threads)
    pool.start()
    return pool


def test_worker__runs_jobs_in_order(worker):
    seen, done = [], threading.Event()
    for number in range(50):
        worker.submit(lambda number=number: seen.append((number, threading.current_thread().name)))
    worker.submit(done.set)
    _wait(done)
    assert seen == [(number, "inference") for number in range(50)]


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt()])
def test_worker__a_job_that_raises_ends_the_thread_and_another_takes_over(worker, error):
    reasons, told, done = [], threading.Event(), threading.Event()
    worker.subscribe(lambda reason: (reasons.append(reason), told.set()))

    def fail():
        raise error

    worker.submit(fail)
    _wait(told)
    worker.submit(done.set)
    _wait(done)
    assert reasons == [f"the inference worker died of {type(error).__name__}: {error}"]
    assert worker.deaths == 1


def test_worker__counts_as_hung_only_after_enough_looks_without_progress(worker):
    reasons, gate, begun = [], threading.Event(), threading.Event()
    worker.subscribe(reasons.append)

    def hang():
        begun.set()
        gate.wait(20)

    worker.submit(hang)
    _wait(begun)
    worker.check(0.5)  # sees the job for the first time
    worker.check(0.5)
    assert reasons == []
    worker.check(0.5)
    assert reasons == ["the inference worker made no progress for 1 s (--stall-s)"]
    # The old thread comes back: it takes nothing of the new one's.
    after = threading.Event()
    gate.set()
    worker.submit(after.set)
    _wait(after)
    for _ in range(5):
        worker.check(0.5)
    assert worker.deaths == 1


def test_worker__one_of_several_threads_that_hangs_is_the_death_of_all(worker):
    reasons, gate = [], threading.Event()
    both, begun = threading.Barrier(2, timeout=20), threading.Event()
    worker.grow(2)
    for _ in range(2):
        worker.submit(both.wait)  # two at once, or the barrier breaks
    worker.subscribe(reasons.append)
    worker.submit(lambda: (begun.set(), gate.wait(20)))
    _wait(begun)
    for _ in range(3):
        done = threading.Event()
        worker.submit(done.set)  # the other one goes on
        _wait(done)
        worker.check(0.5)
    assert reasons == ["the inference worker made no progress for 1 s (--stall-s)"]
    for _ in range(2):
        worker.submit(both.wait)
    after = threading.Event()
    worker.submit(after.set)
    _wait(after)
    assert not both.broken
    assert (worker.deaths, worker.threads) == (1, 2)
    gate.set()
    assert worker.close(20)  # the threads that were given up have ended too


def test_worker__long_idleness_and_many_short_jobs_are_no_stall(worker):
    for _ in range(10):
        worker.check(1.0)
    for _ in range(10):
        done = threading.Event()
        worker.submit(done.set)
        _wait(done)
        worker.check(1.0)
    assert worker.deaths == 0


def test_worker__a_thread_goes_on_with_what_its_job_led_to_unless_older_jobs_wait(worker):
    worker.grow(2)
    seen, done, full = [], threading.Event(), threading.Event()

    def step(left):
        seen.append(threading.get_ident())
        if left:
            worker.submit(lambda: step(left - 1))
        else:
            done.set()

    worker.submit(lambda: step(50))
    _wait(done)
    assert len(set(seen)) == 1  # the other thread was idle all the time
    order, gates = [], [threading.Event(), threading.Event()]
    worker.submit(lambda: (gates[1].wait(20), order.append("other")))

    def first():
        _wait(gates[0])
        worker.submit(lambda: (order.append("child"), full.set()))

    worker.submit(first)
    worker.submit(lambda: order.append("older"))
    gates[0].set()
    _wait(full)
    assert order == ["older", "child"]
    gates[1].set()


def test_worker__what_a_dying_job_led_to_is_dropped(worker):
    seen, done = [], threading.Event()

    def fail():
        worker.submit(lambda: seen.append("child"))
        raise SystemExit(1)

    worker.subscribe(lambda reason: worker.submit(done.set))  # from the dying thread, to its successor
    worker.submit(fail)
    _wait(done)
    assert seen == []


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_close__says_whether_the_threads_have_ended():
    gate = threading.Event()
    for make in (lambda: InferenceWorker(1.0), _pool):
        busy = make()
        busy.submit(lambda: gate.wait(20))
        began = time.monotonic()
        assert not busy.close(0.05)
        assert time.monotonic() - began < 10
        idle = make()
        done = threading.Event()
        idle.submit(done.set)
        assert idle.close(20)
        assert done.is_set()
    gate.set()


def test_decode_pool__decodes_in_as_many_threads_as_it_has():
    pool = _pool(3)
    together = threading.Barrier(3, timeout=20)
    passed = []
    for _ in range(3):
        pool.submit(lambda: passed.append(together.wait()))
    assert pool.close(20)
    assert sorted(passed) == [0, 1, 2]
