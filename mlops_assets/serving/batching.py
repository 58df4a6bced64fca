"""Concurrent requests share the engine: whatever waits while it works goes into its next round.

No timer: an idle engine starts at once, a busy one finds its next batch waiting. A round is sized by time, from the speed just measured,
so that one client's thousand texts never hold up another's single one. Belongs here: queueing. Does not belong here: HTTP, models.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlops_assets.serving.loading import Predictor

#: How long one round of the engine should take.
ROUND_SECONDS = 0.030
MIN_ROUND, MAX_ROUND = 8, 256
#: Inputs that may wait; beyond it requests are refused at once, which is kinder than a late answer.
MAX_WAITING = 2_000


class Overloaded(Exception):
    """Too much is waiting already. `retry_after` in whole seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} inputs are waiting already")
        self.waiting, self.retry_after = waiting, retry_after


class _Job:
    """One request: its inputs, and the answers so far."""

    __slots__ = ("answers", "future", "inputs", "predictor", "taken")

    def __init__(self, predictor: Predictor, inputs: list[Any], future: asyncio.Future[list[dict[str, Any]]]) -> None:
        self.predictor, self.inputs, self.future = predictor, inputs, future
        self.taken = 0
        self.answers: list[dict[str, Any]] = []

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher:
    """One engine thread fed from the event loop. All methods are called on the loop.

    Args:
        on_round: called after each round with (inputs, seconds), for metrics.
    """

    def __init__(self, max_waiting: int = MAX_WAITING, on_round: Callable[[int, float], None] | None = None) -> None:
        self._max_waiting = max_waiting
        self._on_round = on_round
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._jobs: deque[_Job] = deque()
        self._sizes: dict[int, float] = {}
        self._running: asyncio.Task[None] | None = None
        self.waiting = 0

    async def predict(self, predictor: Predictor, inputs: list[Any]) -> list[dict[str, Any]]:
        """The answers of `predictor` to checked inputs, in order.

        Raises:
            Overloaded: nothing was queued.
        """
        if self.waiting and self.waiting + len(inputs) > self._max_waiting:
            raise Overloaded(self.waiting, 1)
        loop = asyncio.get_running_loop()
        job = _Job(predictor, inputs, loop.create_future())
        self._jobs.append(job)
        self.waiting += len(inputs)
        if self._running is None:
            self._running = loop.create_task(self._work())
        return await job.future

    def close(self) -> None:
        self._engine.shutdown(wait=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(0)  # let what has already arrived on other connections join the first round
            while self._jobs:
                predictor = self._jobs[0].predictor
                share = self._next_round(predictor)
                started = time.perf_counter()
                answered = await loop.run_in_executor(self._engine, _answer, predictor, share)
                seconds = time.perf_counter() - started
                count = sum(len(inputs) for _, inputs in share)
                self.waiting -= count
                self._learn(predictor, count, seconds)
                if self._on_round is not None:
                    self._on_round(count, seconds)
                for job, answers in answered:
                    self._deliver(job, answers)
        except BaseException as error:
            for job in self._jobs:
                job.fail(error if isinstance(error, Exception) else RuntimeError("the server is stopping"))
            self._jobs.clear()
            self.waiting = 0
            raise
        finally:
            self._running = None

    def _next_round(self, predictor: Predictor) -> list[tuple[_Job, list[Any]]]:
        """An equal share of the round for every request that waits for this predictor; what is unfinished goes to the end of the queue."""
        mine = [job for job in self._jobs if job.predictor is predictor]
        room = max(1, int(self._sizes.get(id(predictor), MIN_ROUND)))
        share: list[tuple[_Job, list[Any]]] = []
        for position, job in enumerate(mine):
            if room <= 0:
                break
            take = max(1, room // (len(mine) - position))
            inputs = job.inputs[job.taken : job.taken + take]
            job.taken += len(inputs)
            room -= len(inputs)
            share.append((job, inputs))
        served = {id(job) for job, _ in share}
        unfinished = [job for job, _ in share if job.taken < len(job.inputs)]
        self._jobs = deque([job for job in self._jobs if id(job) not in served] + unfinished)
        return share

    def _deliver(self, job: _Job, answers: list[dict[str, Any]] | Exception) -> None:
        if isinstance(answers, Exception):
            if job.taken < len(job.inputs):
                self.waiting -= len(job.inputs) - job.taken
                self._jobs.remove(job)
            job.fail(answers)
            return
        job.answers += answers
        if len(job.answers) == len(job.inputs) and not job.future.done():
            job.future.set_result(job.answers)

    def _learn(self, predictor: Predictor, count: int, seconds: float) -> None:
        if len(self._sizes) > 32:  # predictors that are long gone
            self._sizes.clear()
        fits = count * ROUND_SECONDS / max(seconds, 1e-6)
        before = self._sizes.get(id(predictor), MIN_ROUND)
        self._sizes[id(predictor)] = min(MAX_ROUND, max(MIN_ROUND, 0.7 * before + 0.3 * fits))


def _answer(predictor: Predictor, share: list[tuple[_Job, list[Any]]]) -> list[tuple[_Job, list[dict[str, Any]] | Exception]]:
    """One round on the engine thread. When it fails, every request is tried on its own: one must not fail the others."""
    try:
        answers = iter(predictor.predict([one for _, inputs in share for one in inputs]))
        return [(job, [next(answers) for _ in inputs]) for job, inputs in share]
    except Exception as error:
        if len(share) == 1:
            return [(share[0][0], error)]
        return [pair for one in share for pair in _answer(predictor, [one])]
