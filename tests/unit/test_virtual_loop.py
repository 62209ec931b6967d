"""The simulator's event loop: virtual time, inline executors, deadlocks, and the same order every time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.simulation.loop import Deadlock, VirtualLoop, run


def now() -> float:
    return asyncio.get_running_loop().time()


def virtual() -> VirtualLoop:
    return cast(VirtualLoop, asyncio.get_running_loop())


def test_an_hour_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return now()

    began = time.monotonic()
    assert run(main()) == 3600.0
    assert time.monotonic() - began < 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6, allow_nan=False), max_size=30))
def test_timers_fire_in_the_order_of_their_time(delays: list[float]) -> None:
    async def main() -> list[float]:
        fired: list[float] = []

        async def one(delay: float) -> None:
            await asyncio.sleep(delay)
            fired.append(now())
            assert now() == pytest.approx(delay, abs=1e-8)  # the loop joins timers within its resolution

        await asyncio.gather(*map(one, delays))
        return fired

    fired = run(main())
    assert fired == sorted(fired) and len(fired) == len(delays)


def test_a_timeout_is_virtual_too() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await asyncio.Event().wait()
        return now()

    assert run(main()) == 7.0


def test_a_deadlock_names_who_waits() -> None:
    async def main() -> None:
        await asyncio.create_task(asyncio.Event().wait(), name="waits for ever")

    with pytest.raises(Deadlock, match="waits for ever"):
        run(main())


def test_an_executor_takes_one_job_after_the_other_and_the_default_one_all_at_once() -> None:
    def job(seconds: float) -> float:
        virtual().spend(seconds)
        return now()

    async def main() -> None:
        loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(1)
        began = await asyncio.gather(*(loop.run_in_executor(pool, job, 3.0) for _ in range(3)))
        assert (began, now()) == ([0.0, 3.0, 6.0], 9.0)
        assert await asyncio.gather(*(asyncio.to_thread(job, 2.0) for _ in range(3))) == [9.0, 9.0, 9.0]
        assert now() == 11.0

    run(main())


def test_what_a_job_raises_reaches_who_awaits_it() -> None:
    def broken() -> None:
        raise ValueError("no")

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await asyncio.to_thread(broken)
        with pytest.raises(RuntimeError, match="belongs into"):
            virtual().spend(1.0)

    run(main())


def test_a_cancelled_wait_for_a_job_leaves_the_executor_usable() -> None:
    async def main() -> float:
        loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await loop.run_in_executor(pool, lambda: virtual().spend(5.0))
        await loop.run_in_executor(pool, lambda: None)
        return now()

    assert run(main()) == 5.0


def cancelled_in_order() -> Coroutine[Any, Any, list[int]]:
    """A group whose children are cancelled: TaskGroup walks a set of tasks."""

    async def main() -> list[int]:
        order: list[int] = []

        async def child(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                order.append(number)

        async def failing() -> None:
            await asyncio.sleep(1)
            raise ValueError

        ballast = [bytearray(random.randrange(1, 4096)) for _ in range(random.randrange(50))]  # other addresses
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                for number in range(40):
                    tasks.create_task(child(number))
                tasks.create_task(failing())
        del ballast
        return order

    return main()


def test_tasks_are_cancelled_in_the_same_order_every_time() -> None:
    orders = [run(cancelled_in_order()) for _ in range(5)]
    assert len(orders[0]) == 40 and all(order == orders[0] for order in orders)
