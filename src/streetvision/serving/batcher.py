"""Dynamic batching: what comes in while the model is busy makes the next batch, so that nobody waits for company."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Batcher(Generic[Question, Answer]):
    """Calls a function with up to `most` questions at a time, in one thread; belongs to the loop it is first asked in.

    What the function raises goes to everyone of its batch.
    """

    def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Answer]], *, most: int) -> None:
        self._answer, self._most = answer, most
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._running: asyncio.Task[None] | None = None
        self.batches = 0
        """Batches so far."""

    async def ask(self, question: Question) -> Answer:
        """The answer, once its batch is through."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self.batches += 1
            try:
                answers = await loop.run_in_executor(self._thread, self._answer, [question for question, _ in batch])
            except Exception as error:  # whoever asked must hear of it, whatever it is
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
