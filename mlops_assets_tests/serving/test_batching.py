"""Requests of several clients share rounds of the engine: everyone gets their own answers, nobody waits for somebody else's thousand."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mlops_assets.serving import batching
from mlops_assets.serving.batching import Batcher, Overloaded


class Echo:
    """Answers each input with itself and remembers its rounds; `hold` stops it."""

    labels = ["a", "b"]
    system = "echo"

    def __init__(self, one_at_a_time: bool = False) -> None:
        self.one_at_a_time = one_at_a_time
        self.together, self.most_together = 0, 0
        self.counting = threading.Lock()
        self.rounds: list[list[Any]] = []
        self.entered, self.hold = threading.Event(), threading.Event()
        self.hold.set()

    def check(self, inputs: list[Any]) -> None: ...

    def predict(self, inputs: list[Any]) -> list[dict[str, Any]]:
        with self.counting:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        self.entered.set()
        assert self.hold.wait(30)
        with self.counting:
            self.together -= 1
        self.rounds.append(list(inputs))
        if "poison" in inputs:
            raise RuntimeError("poison")
        return [{"text": one} for one in inputs]


def texts(answers: list[dict[str, Any]]) -> list[Any]:
    return [a["text"] for a in answers]


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


@pytest.mark.parametrize("threads", [1, 3])
def test_everyone_gets_their_own_answers_from_shared_rounds(threads: int) -> None:
    async def scenario() -> None:
        batcher, echo = Batcher(threads), Echo()
        requests = [[f"{client}.{i}" for i in range(client % 5 + 1)] for client in range(50)]
        answers = await asyncio.gather(*(batcher.predict(echo, request) for request in requests))
        assert [texts(a) for a in answers] == requests
        assert len(echo.rounds) < len(requests)
        assert batcher.waiting == 0
        batcher.close()

    run(scenario())


def test_a_single_text_does_not_wait_for_a_thousand() -> None:
    async def scenario() -> None:
        batcher, echo = Batcher(), Echo()
        echo.hold.clear()
        big = asyncio.create_task(batcher.predict(echo, list(range(1000))))
        await asyncio.to_thread(echo.entered.wait, 30)
        small = asyncio.create_task(batcher.predict(echo, ["small"]))
        await asyncio.sleep(0)
        echo.hold.set()
        assert texts(await small) == ["small"]
        assert not big.done()
        assert texts(await big) == list(range(1000))
        batcher.close()

    run(scenario())


def test_two_models_are_never_in_one_round() -> None:
    async def scenario() -> None:
        batcher, one, two = Batcher(), Echo(), Echo()
        answers = await asyncio.gather(*(batcher.predict(model, [name]) for model, name in [(one, "one"), (two, "two")] * 20))
        assert texts([a for answer in answers for a in answer]) == ["one", "two"] * 20
        assert {x for r in one.rounds for x in r} == {"one"}
        assert {x for r in two.rounds for x in r} == {"two"}
        batcher.close()

    run(scenario())


def test_a_request_that_fails_does_not_fail_the_others() -> None:
    async def scenario() -> None:
        batcher, echo = Batcher(), Echo()
        echo.hold.clear()
        first = asyncio.create_task(batcher.predict(echo, ["first"]))
        await asyncio.to_thread(echo.entered.wait, 30)
        bad = asyncio.create_task(batcher.predict(echo, ["poison", *range(500)]))
        good = asyncio.create_task(batcher.predict(echo, ["good"]))
        await asyncio.sleep(0)
        echo.hold.set()
        with pytest.raises(RuntimeError, match="poison"):
            await bad
        assert texts(await good) == ["good"]
        assert texts(await first) == ["first"]
        assert batcher.waiting == 0
        assert texts(await batcher.predict(echo, ["later"])) == ["later"]
        batcher.close()

    run(scenario())


def test_too_much_at_once_is_refused_and_the_rest_is_answered() -> None:
    async def scenario() -> None:
        batcher, echo = Batcher(max_waiting=10), Echo()
        echo.hold.clear()
        running = asyncio.create_task(batcher.predict(echo, ["running"]))
        await asyncio.to_thread(echo.entered.wait, 30)
        accepted = asyncio.create_task(batcher.predict(echo, list(range(10))))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.predict(echo, ["one more"])
        echo.hold.set()
        assert texts(await running) == ["running"]
        assert texts(await accepted) == list(range(10))
        assert texts(await batcher.predict(echo, ["one more"])) == ["one more"]
        batcher.close()

    run(scenario())


def test_a_long_request_is_answered_by_all_threads_in_order() -> None:
    async def scenario() -> None:
        batcher, echo = Batcher(3), Echo()
        answers = await asyncio.gather(*(batcher.predict(echo, list(range(n, n + 400))) for n in range(5)))
        assert [texts(a) for a in answers] == [list(range(n, n + 400)) for n in range(5)]
        assert batcher.waiting == 0
        batcher.close()

    run(scenario())


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_a_model_that_wants_it_has_one_round_at_a_time_and_holds_no_other_model_up(one_at_a_time: bool) -> None:
    """The control: any other model has as many rounds at a time as there are threads."""

    async def scenario() -> None:
        batcher, alone, other = Batcher(3), Echo(one_at_a_time), Echo()
        alone.hold.clear()
        requests = [asyncio.create_task(batcher.predict(alone, [number])) for number in range(2)]
        await asyncio.to_thread(alone.entered.wait, 30)
        requests += [asyncio.create_task(batcher.predict(alone, [number])) for number in range(2, 8)]
        assert texts(await batcher.predict(other, ["other"])) == ["other"]
        while not one_at_a_time and alone.together < 2:
            await asyncio.sleep(0)
        alone.hold.set()
        assert [texts(await request) for request in requests] == [[number] for number in range(8)]
        assert (alone.most_together == 1) == one_at_a_time
        batcher.close()

    run(scenario())


@pytest.mark.parametrize("gather", [0.3, 0.0])
def test_who_was_answered_together_is_asked_together_while_another_round_runs(gather: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the moment to ask again, whoever is back first has a round alone."""
    monkeypatch.setattr(batching, "GATHER_SECONDS", gather)

    async def scenario() -> None:
        batcher, slow, echo = Batcher(2), Echo(), Echo()
        slow.hold.clear()
        busy = asyncio.create_task(batcher.predict(slow, ["busy"]))
        await asyncio.to_thread(slow.entered.wait, 30)

        async def client(way_back: float) -> None:
            for _ in range(3):
                await batcher.predict(echo, [way_back])
                await asyncio.sleep(way_back)

        await asyncio.gather(client(0.001), client(0.03))
        slow.hold.set()
        await busy
        assert ([len(round) for round in echo.rounds] == [2, 2, 2]) == (gather > 0)
        batcher.close()

    run(scenario())
