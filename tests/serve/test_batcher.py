import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from serve.batcher import Batcher, BatcherClosed, BatchFailed, BatchQueue


class Gate:
    """A batch function that waits for `open`, doubles its numbers and remembers the batches."""

    def __init__(self, opened: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.began = threading.Event()
        if opened:
            self.open.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.began.set()
        assert self.open.wait(30)
        return [2 * item for item in items]


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_queue__due_when_full_or_after_the_delay():
    queue: BatchQueue[str] = BatchQueue(max_batch=2, max_delay=1.0)
    assert queue.due_at() is None
    queue.add("a", now=10.0)
    assert queue.due_at() == 11.0
    queue.add("b", now=10.5)
    assert queue.due_at() == 10.0
    queue.add("c", now=10.6)
    assert queue.take() == ["a", "b"]
    assert queue.due_at() == 11.6
    queue.drain()
    assert queue.due_at() == 10.6
    with pytest.raises(BatcherClosed):
        queue.add("d", now=11.0)


@pytest.mark.parametrize(("batch", "delay"), [(0, 0.1), (1, -1.0), (1, 60.0), (1, float("nan"))])
def test_queue__bad_settings(batch, delay):
    with pytest.raises(InputError, match="must be"):
        BatchQueue(batch, delay)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from(["add", "discard", "take", "drain"]), st.integers(0, 20)), max_size=60
    ),
)
def test_queue__every_entry_leaves_once_in_order(max_batch, steps):
    """Whatever the order of events: an entry is taken or discarded, never both, and oldest first."""
    queue: BatchQueue[int] = BatchQueue(max_batch, 1.0)
    expected: list[int] = []
    drained = False
    for now, (step, number) in enumerate(steps):
        if step == "add":
            if drained:
                with pytest.raises(BatcherClosed):
                    queue.add(now, now)
            else:
                queue.add(now, now)
                expected.append(now)
        elif step == "discard":
            entry = expected[number % len(expected)] if expected else number
            queue.discard(entry)
            expected = [other for other in expected if other != entry]
        elif step == "take":
            assert queue.take() == expected[:max_batch]
            expected = expected[max_batch:]
        else:
            queue.drain()
            drained = True
        assert len(queue) == len(expected)
        assert (queue.due_at() is None) == (not expected)


def test_batcher__gathers_from_many_callers(run_async):
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch=4, max_delay=0.0)
        first = asyncio.create_task(batcher.submit(1))
        await _until(gate.began.is_set)
        rest = [asyncio.create_task(batcher.submit(number)) for number in range(2, 8)]
        await _until(lambda: batcher.waiting == 6)
        gate.open.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.drain()
        return gate.batches, answers

    batches, answers = run_async(scenario())
    assert batches == [[1], [2, 3, 4, 5], [6, 7]]
    assert answers == [2, 4, 6, 8, 10, 12, 14]


def test_batcher__waits_for_company(run_async):
    async def scenario():
        gate = Gate(opened=True)
        batcher = Batcher(gate, max_batch=3, max_delay=30.0)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(2)]
        await asyncio.sleep(0.05)
        assert gate.batches == []  # two of three, and the delay is far from over
        tasks.append(asyncio.create_task(batcher.submit(2)))
        await asyncio.gather(*tasks)
        await batcher.drain()
        return gate.batches

    assert run_async(scenario()) == [[0, 1, 2]]


def test_batcher__cancelled_items_never_run(run_async):
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch=8, max_delay=0.0)
        running = asyncio.create_task(batcher.submit(0))
        await _until(gate.began.is_set)
        waiting = [asyncio.create_task(batcher.submit(number)) for number in range(1, 5)]
        await _until(lambda: batcher.waiting == 4)
        waiting[1].cancel()
        waiting[3].cancel()
        running.cancel()  # its batch runs on, its answer goes nowhere
        await asyncio.wait([running, waiting[1], waiting[3]])
        assert batcher.waiting == 2
        gate.open.set()
        assert await asyncio.gather(waiting[0], waiting[2]) == [2, 6]
        await batcher.drain()
        return gate.batches, running.cancelled(), batcher.waiting, batcher.running

    assert run_async(scenario()) == ([[0], [1, 3]], True, 0, 0)


def test_batcher__a_timeout_drops_the_item(run_async):
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch=8, max_delay=0.0)
        running = asyncio.create_task(batcher.submit(0))
        await _until(gate.began.is_set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await batcher.submit(1)
        gate.open.set()
        await running
        await batcher.drain()
        return gate.batches

    assert run_async(scenario()) == [[0]]


@pytest.mark.parametrize(
    "error", [ValueError("no"), MemoryError("no"), SystemExit("no"), KeyboardInterrupt("no")]
)
def test_batcher__an_error_answers_every_member_and_the_next_batch_runs(run_async, error):
    def run(items):
        if -1 in items:
            raise error
        return items

    async def scenario():
        batcher = Batcher(run, max_batch=3, max_delay=30.0)
        answers = await asyncio.gather(*(batcher.submit(n) for n in (1, -1, 2)), return_exceptions=True)
        after = await asyncio.gather(*(batcher.submit(n) for n in (3, 4, 5)))
        await batcher.drain()
        return answers, after

    answers, after = run_async(scenario())
    assert [type(answer) for answer in answers] == [BatchFailed] * 3
    assert all(str(answer) == f"{type(error).__name__}: no" for answer in answers)
    assert after == [3, 4, 5]


def test_batcher__a_wrong_number_of_results_is_an_error(run_async):
    async def scenario():
        batcher = Batcher(lambda items: items[:-1], max_batch=2, max_delay=30.0)
        answers = await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True)
        await batcher.drain()
        return [str(answer) for answer in answers]

    assert run_async(scenario()) == ["the model gave 1 results for 2 items"] * 2


def test_batcher__drain_answers_what_was_taken_and_refuses_the_rest(run_async):
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch=2, max_delay=30.0)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(5)]
        await _until(gate.began.is_set)
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0.01)
        with pytest.raises(BatcherClosed):
            await batcher.submit(9)
        gate.open.set()
        answers = await asyncio.gather(*tasks)
        await draining
        return answers, gate.batches, await batcher.wait_ended()

    answers, batches, error = run_async(scenario())
    assert answers == [0, 2, 4, 6, 8]
    assert batches == [[0, 1], [2, 3], [4]]  # the last one without its 30 s of delay
    assert error is None


def test_batcher__the_death_of_the_worker_answers_everybody(run_async):
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch=2, max_delay=0.0)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(5)]
        await _until(gate.began.is_set)
        batcher._worker.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(BatcherClosed):
            await batcher.submit(9)
        gate.open.set()
        return [type(answer) for answer in answers], type(await batcher.wait_ended()), batcher.waiting

    assert run_async(scenario()) == ([BatcherClosed] * 5, asyncio.CancelledError, 0)


def test_batcher__a_storm_of_callers_is_answered_exactly_once(run_async):
    """500 callers, a third of them cancelled at some moment, some batches raising: nobody waits for ever."""

    def run(items):
        time.sleep(0.0005)
        if any(item % 50 == 7 for item in items):
            raise ValueError("seven")
        return [item + 1000 for item in items]

    async def scenario():
        batcher = Batcher(run, max_batch=8, max_delay=0.001)

        async def caller(number):
            await asyncio.sleep(number % 13 / 1000)
            task = asyncio.create_task(batcher.submit(number))
            if number % 3 == 0:
                await asyncio.sleep(number % 7 / 2000)
                task.cancel()
            try:
                return await task
            except (BatchFailed, asyncio.CancelledError) as error:
                return type(error)

        answers = await asyncio.gather(*(caller(number) for number in range(500)))
        await batcher.drain()
        return answers, batcher.waiting, batcher.running

    answers, waiting, running = run_async(scenario())
    assert (waiting, running) == (0, 0)
    values = [(number, answer) for number, answer in enumerate(answers) if isinstance(answer, int)]
    assert values
    assert all(answer == number + 1000 for number, answer in values)
    assert {answer for answer in answers if not isinstance(answer, int)} <= {
        BatchFailed,
        asyncio.CancelledError,
    }


def test_batcher__a_worker_cancelled_before_its_first_step_leaves_nobody_waiting(run_async):
    async def scenario():
        batcher = Batcher(Gate(opened=True), max_batch=2, max_delay=0.0)
        batcher._worker.cancel()
        with pytest.raises(BatcherClosed):
            await batcher.submit(1)

    run_async(scenario())
