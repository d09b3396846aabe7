"""Requests of one stream at the same time, answered in order, with nothing left behind."""

import asyncio

import pytest

from serve.inference_stream import answer_in_order


class _Source:
    """A stream of numbers, which counts how many were read; it fails after the last where `error` is given."""

    def __init__(self, numbers, error=None):
        self._numbers, self._error, self.read = iter(numbers), error, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        for number in self._numbers:
            self.read += 1
            return number
        if self._error:
            raise self._error
        raise StopAsyncIteration


class _Desk:
    """Answers each number when it is released."""

    def __init__(self, count):
        self.gates = [asyncio.Event() for _ in range(count)]
        self.begun, self.written, self.cancelled = [], [], []

    async def answer(self, number):
        self.begun.append(number)
        try:
            await self.gates[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        return number * 10

    async def write(self, answer):
        self.written.append(answer)


async def _settle():
    for _ in range(50):
        await asyncio.sleep(0)


def test_answer_in_order__all_at_once_and_written_in_turn(run_async):
    async def scenario():
        desk = _Desk(4)
        stream = asyncio.create_task(answer_in_order(_Source(range(4)), desk.answer, desk.write, 8))
        await _settle()
        assert desk.begun == [0, 1, 2, 3]
        for number, written in ((2, []), (0, [0]), (3, [0]), (1, [0, 10, 20, 30])):
            desk.gates[number].set()
            await _settle()
            assert desk.written == written
        await stream

    run_async(scenario(), 10)


def test_answer_in_order__reads_no_more_than_may_be_in_flight(run_async):
    async def scenario():
        desk, source = _Desk(20), _Source(range(20))
        stream = asyncio.create_task(answer_in_order(source, desk.answer, desk.write, 3))
        await _settle()
        assert (source.read, desk.begun) == (3, [0, 1, 2])
        desk.gates[2].set()  # done, and waits for its turn: still in flight
        await _settle()
        assert source.read == 3
        for gate in desk.gates:
            gate.set()
        await stream
        assert desk.written == [number * 10 for number in range(20)]

    run_async(scenario(), 10)


def test_answer_in_order__cancelling_it_cancels_what_is_in_flight(run_async):
    async def scenario():
        desk = _Desk(5)
        stream = asyncio.create_task(answer_in_order(_Source(range(5)), desk.answer, desk.write, 8))
        await _settle()
        desk.gates[0].set()
        await _settle()
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        assert desk.written == [0]
        assert sorted(desk.cancelled) == [1, 2, 3, 4]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_async(scenario(), 10)


@pytest.mark.parametrize("broken", ["read", "write"])
def test_answer_in_order__a_broken_stream_cancels_what_is_in_flight(run_async, broken):
    async def scenario():
        desk = _Desk(3)

        async def write(answer):
            raise ConnectionError("gone")

        source = _Source(range(3), ConnectionError("gone") if broken == "read" else None)
        stream = asyncio.create_task(
            answer_in_order(source, desk.answer, desk.write if broken == "read" else write, 8)
        )
        while len(desk.begun) < 3:
            await asyncio.sleep(0)
        desk.gates[0].set()
        with pytest.raises(ExceptionGroup) as info:
            await stream
        assert info.group_contains(ConnectionError, match="gone")
        assert {1, 2} <= set(desk.cancelled)
        assert desk.written == []

    run_async(scenario(), 10)


def test_answer_in_order__an_empty_stream(run_async):
    desk_written = []

    async def write(answer):
        desk_written.append(answer)

    async def answer(number):
        raise AssertionError("nothing was asked")

    run_async(answer_in_order(_Source([]), answer, write, 1), 10)
    assert desk_written == []
