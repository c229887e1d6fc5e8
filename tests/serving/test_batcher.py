import asyncio
import threading

import pytest

from streetvision.serving.batcher import Batcher


def test_what_waits_while_the_model_is_busy_is_the_next_batch_and_nobody_gets_anothers_answer():
    sizes, may_go_on = [], threading.Event()

    def double(questions):
        may_go_on.wait(10)
        sizes.append(len(questions))
        return [2 * question for question in questions]

    async def ask_many():
        batcher = Batcher(double, most=4)
        asked = [asyncio.create_task(batcher.ask(number)) for number in range(10)]
        await asyncio.sleep(0)
        may_go_on.set()
        answers = await asyncio.gather(*asked)
        assert batcher.batches == len(sizes)
        assert await batcher.ask(21) == 42  # it works again after it was idle
        return answers

    assert asyncio.run(ask_many()) == [2 * number for number in range(10)]
    assert sum(sizes) == 11
    assert max(sizes) == 4
    assert len(sizes) <= 5


def test_an_error_reaches_everyone_of_its_batch_and_no_one_else():
    def picky(questions):
        if 13 in questions:
            raise ValueError("unlucky")
        return questions

    async def ask():
        batcher = Batcher(picky, most=1)
        found = await asyncio.gather(batcher.ask(1), batcher.ask(13), batcher.ask(2), return_exceptions=True)
        assert (found[0], found[2]) == (1, 2)
        with pytest.raises(ValueError, match="unlucky"):
            raise found[1]

    asyncio.run(ask())


def test_who_left_is_not_waited_for():
    async def ask():
        batcher = Batcher(lambda questions: questions, most=8)
        left, stays = asyncio.create_task(batcher.ask(1)), asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        left.cancel()
        assert await stays == 2

    asyncio.run(ask())
