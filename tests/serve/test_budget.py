import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.budget import ByteBudget


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=25), st.integers(1, 25), st.randoms(use_true_random=False))
def test_hold__never_above_the_limit_but_alone(sizes, limit, draw):
    async def scenario():
        budget = ByteBudget(limit)
        inside = []

        async def work(size):
            async with budget.hold(size):
                inside.append(size)
                assert budget.held == sum(inside)
                assert sum(inside) <= limit or len([s for s in inside if s]) == 1
                for _ in range(draw.randrange(4)):
                    await asyncio.sleep(0)
                inside.remove(size)

        async with asyncio.timeout(5):
            await asyncio.gather(*(work(size) for size in sizes))
        assert budget.held == 0

    asyncio.run(scenario())


def test_hold__a_large_one_is_not_passed_by_small_ones():
    async def scenario():
        budget, order = ByteBudget(10), []

        async def work(name, size):
            async with budget.hold(size):
                order.append(name)
                await asyncio.sleep(0)

        first = asyncio.create_task(work("first", 6))
        await asyncio.sleep(0)
        others = [asyncio.create_task(work(name, size)) for name, size in (("large", 9), ("small", 1))]
        await asyncio.gather(first, *others)
        assert order == ["first", "large", "small"]

    asyncio.run(scenario())


def test_hold__a_cancelled_wait_holds_nothing():
    async def scenario():
        budget = ByteBudget(10)

        async def work(size):
            async with budget.hold(size):
                await asyncio.sleep(3600)

        first, second = asyncio.create_task(work(6)), asyncio.create_task(work(6))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        async with asyncio.timeout(5), budget.hold(10):
            assert budget.held == 10

    asyncio.run(scenario())
