"""Dynamic batching: the items that arrive during one call of the model form the next batch."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls a function on batches of at most `max_batch` items, in one thread.

    A batcher belongs to the event loop of its first `submit`. An exception of the function is raised for every item of
    its batch.
    """

    def __init__(self, function: Callable[[Sequence[Item]], Sequence[Result]], *, max_batch: int) -> None:
        self._function, self._max_batch = function, max_batch
        self._pending: list[tuple[Item, asyncio.Future[Result]]] = []
        self.thread = ThreadPoolExecutor(max_workers=1)
        """Runs the function, and other calls that must not run at the same time."""
        self._task: asyncio.Task[None] | None = None
        self.batches = 0
        """Number of batches so far."""

    async def submit(self, item: Item) -> Result:
        """Return the function's result for `item`, when its batch is done."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_batches())
        return await future

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending[: self._max_batch], self._pending[self._max_batch :]
            self.batches += 1
            try:
                results = await loop.run_in_executor(self.thread, self._function, [item for item, _ in batch])
            except Exception as error:  # of any class: the requests of this batch must not wait forever
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # a client that disconnects cancels its future
                    future.set_result(result)
