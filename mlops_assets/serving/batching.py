"""Concurrent requests share the engine: whatever waits while it works goes into its next rounds.

An idle engine starts at once, without a timer. One that has just answered, while another round keeps the processors busy, gives those
whom it answered a moment to ask again: its next round is then as large as the last one, and not what happened to wait. Each processor has
an engine thread of its own that runs whole rounds: a model spread over the processors waits for itself at every layer, and gives a fifth
less. A model whose work is mostly Python's has one round at a time (`one_at_a_time`): two would take the interpreter from each other and
from the event loop. A round is sized by time, from the speed just measured, so that one client's thousand texts never hold up another's
single one.

Belongs here: queueing. Does not belong here: HTTP, models.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from mlops_assets.serving.loading import Predictor

#: How long one round of an engine thread should take; on a slow processor longer, four texts together cost a tenth less than one by one.
ROUND_SECONDS = 0.030
MIN_ROUND, MAX_ROUND = 4, 256
#: The first round of a model, before its speed is known.
FIRST_ROUND = 8
#: That moment: an answer's way to a client near by and its next question's way back.
GATHER_SECONDS = 0.002
#: Inputs that may wait; beyond it requests are refused at once, which is kinder than a late answer.
MAX_WAITING = 2_000

Answer = dict[str, Any]


class Overloaded(Exception):
    """Too much is waiting already. `retry_after` in whole seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} inputs are waiting already")
        self.waiting, self.retry_after = waiting, retry_after


class _Job:
    """One request: its inputs, the answers so far, how many inputs were taken and how many answers are missing."""

    __slots__ = ("answers", "future", "inputs", "missing", "predictor", "taken")

    def __init__(self, predictor: Predictor, inputs: list[Any], future: asyncio.Future[list[Answer]]) -> None:
        self.predictor, self.inputs, self.future = predictor, inputs, future
        self.answers: list[Answer] = [{}] * len(inputs)
        self.taken, self.missing = 0, len(inputs)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Share(NamedTuple):
    """The part of a job that goes into one round."""

    job: _Job
    start: int
    inputs: list[Any]


class Batcher:
    """Engine threads fed from the event loop. All methods are called on the loop.

    Args:
        threads: rounds that may run at the same time; predictors should use one thread each.
        on_round: called after each round with (inputs, seconds), for metrics.
    """

    def __init__(self, threads: int = 1, max_waiting: int = MAX_WAITING, on_round: Callable[[int, float], None] | None = None) -> None:
        self._max_waiting = max_waiting
        self._on_round = on_round
        self._engine = ThreadPoolExecutor(threads, thread_name_prefix="engine")
        self._idle = threads
        self._jobs: deque[_Job] = deque()
        self._sizes: dict[int, float] = {}
        self._rounds: set[asyncio.Task[None]] = set()
        self._occupied: set[int] = set()
        self.waiting = 0

    async def predict(self, predictor: Predictor, inputs: list[Any]) -> list[Answer]:
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
        if self._idle:
            self._idle -= 1
            task = loop.create_task(self._work())
            self._rounds.add(task)
            task.add_done_callback(self._rounds.discard)
        return await job.future

    def close(self) -> None:
        self._engine.shutdown(wait=True)

    async def _work(self) -> None:
        """Rounds on one engine thread until nothing waits."""
        loop = asyncio.get_running_loop()
        share: list[_Share] = []
        try:
            await asyncio.sleep(0)  # let what has already arrived on other connections join the first round
            while (predictor := self._next_predictor()) is not None:
                share = self._next_round(predictor)
                started = time.perf_counter()
                self._occupied.add(id(predictor))
                try:
                    answered = await loop.run_in_executor(self._engine, _answer, predictor, share)
                finally:
                    self._occupied.discard(id(predictor))
                self._learn(predictor, sum(len(part.inputs) for part in share), time.perf_counter() - started)
                for part, answers in answered:
                    self._deliver(part, answers)
                if len(self._rounds) > 1 and self.waiting < MIN_ROUND:
                    await asyncio.sleep(GATHER_SECONDS)
        except BaseException as error:
            for job in [*self._jobs, *(part.job for part in share)]:
                job.fail(error if isinstance(error, Exception) else RuntimeError("the server is stopping"))
            self._jobs.clear()
            self.waiting = 0
            raise
        finally:
            self._idle += 1

    def _next_predictor(self) -> Predictor | None:
        """That of the request which waits longest, of those whose round may begin; None: the threads at work go on with the others."""
        waiting = (job.predictor for job in self._jobs)
        return next((one for one in waiting if not (one.one_at_a_time and id(one) in self._occupied)), None)

    def _next_round(self, predictor: Predictor) -> list[_Share]:
        """An equal share for every request that waits for this predictor; what is unfinished goes to the end of the queue."""
        mine = [job for job in self._jobs if job.predictor is predictor]
        room = max(1, int(self._sizes.get(id(predictor), FIRST_ROUND)))
        waiting = sum(len(job.inputs) - job.taken for job in mine)
        if not predictor.one_at_a_time:
            room = min(room, -(-waiting // (self._idle + 1)))  # idle threads get theirs
        share: list[_Share] = []
        for position, job in enumerate(mine):
            if room <= 0:
                break
            inputs = job.inputs[job.taken : job.taken + max(1, room // (len(mine) - position))]
            share.append(_Share(job, job.taken, inputs))
            job.taken += len(inputs)
            room -= len(inputs)
            self.waiting -= len(inputs)
        served = {id(part.job) for part in share}
        unfinished = [part.job for part in share if part.job.taken < len(part.job.inputs)]
        self._jobs = deque([job for job in self._jobs if id(job) not in served] + unfinished)
        return share

    def _deliver(self, part: _Share, answers: list[Answer] | Exception) -> None:
        job = part.job
        if isinstance(answers, Exception):
            if job in self._jobs:
                self._jobs.remove(job)
                self.waiting -= len(job.inputs) - job.taken
            job.fail(answers)
            return
        job.answers[part.start : part.start + len(answers)] = answers
        job.missing -= len(answers)
        if job.missing == 0 and not job.future.done():
            job.future.set_result(job.answers)

    def _learn(self, predictor: Predictor, count: int, seconds: float) -> None:
        if self._on_round is not None:
            self._on_round(count, seconds)
        if len(self._sizes) > 32:  # predictors that are long gone
            self._sizes.clear()
        fits = count * ROUND_SECONDS / max(seconds, 1e-6)
        before = self._sizes.get(id(predictor), FIRST_ROUND)
        self._sizes[id(predictor)] = min(MAX_ROUND, max(MIN_ROUND, 0.7 * before + 0.3 * fits))


def _answer(predictor: Predictor, share: list[_Share]) -> list[tuple[_Share, list[Answer] | Exception]]:
    """One round on an engine thread. When it fails, every request is tried on its own: one must not fail the others."""
    try:
        answers = iter(predictor.predict([one for part in share for one in part.inputs]))
        return [(part, [next(answers) for _ in part.inputs]) for part in share]
    except Exception as error:
        if len(share) == 1:
            return [(share[0], error)]
        return [pair for part in share for pair in _answer(predictor, [part])]
