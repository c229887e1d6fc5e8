import asyncio
import threading

import pytest

from streetvision.serving.batcher import Batcher


def test_items_that_wait_while_the_function_runs_form_the_next_batch_and_get_their_own_results():
    sizes, release = [], threading.Event()

    def double(items):
        release.wait(10)
        sizes.append(len(items))
        return [2 * item for item in items]

    async def submit_many():
        batcher = Batcher(double, max_batch=4)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(10)]
        await asyncio.sleep(0)
        release.set()
        results = await asyncio.gather(*tasks)
        assert batcher.batches == len(sizes)
        assert await batcher.submit(21) == 42  # after it was idle
        return results

    assert asyncio.run(submit_many()) == [2 * number for number in range(10)]
    assert sum(sizes) == 11
    assert max(sizes) == 4
    assert len(sizes) <= 5


def test_an_exception_is_raised_for_its_batch_only():
    def reject_13(items):
        if 13 in items:
            raise ValueError("unlucky")
        return items

    async def submit():
        batcher = Batcher(reject_13, max_batch=1)
        tasks = (batcher.submit(1), batcher.submit(13), batcher.submit(2))
        first, error, last = await asyncio.gather(*tasks, return_exceptions=True)
        assert (first, last) == (1, 2)
        with pytest.raises(ValueError, match="unlucky"):
            raise error

    asyncio.run(submit())


def test_a_cancelled_item_does_not_affect_the_others():
    async def submit():
        batcher = Batcher(lambda items: items, max_batch=8)
        cancelled, other = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await other == 2

    asyncio.run(submit())
