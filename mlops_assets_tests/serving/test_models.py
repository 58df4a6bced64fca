"""Which model answers: following the ledger, refusing what is not signed or goes back, surviving the loss of the database."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from mlops_assets.serving import loading
from mlops_assets.serving.models import NAMED_WAITING
from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.serving.bundles import make_bundle, probabilities
from mlops_assets_tests.serving.running import MANUAL, Running, database_away, promote, register, register_folder, running, until


@pytest.fixture
def world(engine: Engine, settings: Settings, store: ObjectStore) -> World:
    return World(engine, settings, store, "sentiment", config_of("sentiment"))


def positive(running: Running, text: str = "좋은 영화", **parameters: object) -> float:
    return float(running.predict(text, **parameters).json()["predictions"][0]["probs"]["긍정"])


def test_follows_the_ledger_and_names_what_answered(world: World, settings: Settings, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        assert positive(server) == pytest.approx(probabilities("좋은 영화", 1.0)[1], abs=1e-5)
        promote(world, second)
        server.serves(second)
        answer = server.predict("좋은 영화", "별로")
        body = answer.json()
        assert answer.headers["X-Model-Version"] == str(second)
        assert (body["system"], body["version"], body["dataset_version"]) == ("sentiment", second, "v1")
        assert [p["label"] for p in body["predictions"]] == ["긍정", "부정"]
        assert body["predictions"][0]["probs"]["긍정"] == pytest.approx(probabilities("좋은 영화", 2.0)[1], abs=1e-5)
        assert body["bundle_sha256"] == server.models()["serving"]["bundle_sha256"]


def test_rollback_serves_the_resident_model_without_loading(world: World, settings: Settings, store: ObjectStore, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        promote(world, second)
        server.serves(second)
        before = server.models()["previous"][0]["loaded_at"]
        for info in list(store.list("bundles")):  # nothing can be fetched any more: only what is resident can be served
            store.delete(info.key)
        world.registrar(MANUAL).rollback(reason="worse on real users")
        server.serves(first)
        assert server.models()["serving"]["loaded_at"] == before
        assert server.models()["serving"]["kind"] == "rollback"


def test_refuses_a_ledger_that_went_back(world: World, settings: Settings, engine: Engine, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    promote(world, second)
    with running(settings) as server:
        server.serves(second)
    with engine.begin() as connection:  # a restored backup: the newest promotion is gone
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("DELETE FROM promotion WHERE version = :v"), {"v": second})
    with running(settings) as server:
        assert server.version() == second, "the last promotion that was served is remembered across a restart"
        assert "#1" in server.refused("lower_sequence")["reason"]


def test_without_its_memory_a_server_would_follow_the_ledger_back(world: World, settings: Settings, engine: Engine, tmp_path: Path) -> None:
    """The control: the refusal above is the state file's doing."""
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    promote(world, second)
    with running(settings) as server:
        server.serves(second)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("DELETE FROM promotion WHERE version = :v"), {"v": second})
    (settings.home / "serving" / "champion" / "sentiment" / "state.json").unlink()
    with running(settings) as server:
        assert server.version() == first


def test_an_invented_state_file_is_ignored(world: World, settings: Settings, tmp_path: Path) -> None:
    first = register(world, tmp_path / "a")
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
    state = settings.home / "serving" / "champion" / "sentiment" / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"sequence": 1000}))  # would lock the ledger out for a thousand promotions
    second = register(world, tmp_path / "b", strength=2.0)
    with running(settings) as server:
        server.serves(first)
        promote(world, second)
        server.serves(second)


def test_a_forged_promotion_is_never_served(world: World, settings: Settings, engine: Engine, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO promotion (system, sequence, channel, kind, version, bundle_sha256, payload, signature, key_id, actor, "
                    "reason) SELECT system, 2, channel, kind, :v, (SELECT bundle_sha256 FROM receipt WHERE version = :v), payload, "
                    "signature, key_id, actor, reason FROM promotion WHERE sequence = 1"
                ),
                {"v": second},
            )
        assert "signed" in server.refused("bad_signature")["reason"]
        assert server.version() == first
        assert positive(server) == pytest.approx(probabilities("좋은 영화", 1.0)[1], abs=1e-5)


def test_a_restarted_server_answers_with_the_last_good_model_when_the_newest_is_bad(
    world: World, settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
    promote(world, second)
    for info in list(store.list(f"bundles/{_bundle(world, second)}")):
        store.put(info.key, b"not what was registered")
    with running(settings) as server:
        assert server.predict("좋은 영화").headers["X-Model-Version"] == str(first)
        server.refused("wrong_digest")
        assert server.version() == first


def test_starts_from_the_disk_when_the_database_is_away(world: World, settings: Settings, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
    promote(world, second)
    with database_away(str(settings.database_url)) as bring_back, running(settings) as server:
        assert server.predict("좋은 영화").headers["X-Model-Version"] == str(first)
        assert server.client.get("/readyz").json()["ledger"]["connected"] is False
        bring_back()
        server.serves(second)
        until(lambda: server.client.get("/readyz").json()["ledger"]["connected"])


@contextmanager
def held_loads(monkeypatch: pytest.MonkeyPatch, bundle: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Loading that bundle sets the first event and waits for the second; the end lets everything go on."""
    entered, go_on, real = threading.Event(), threading.Event(), loading.load

    def held(folder: Path, system: str, threads: int) -> loading.Predictor:
        if folder.name == bundle:
            entered.set()
            assert go_on.wait(60)
        return real(folder, system, threads)

    monkeypatch.setattr(loading, "load", held)
    try:
        yield entered, go_on
    finally:
        go_on.set()


def test_a_bundle_that_opens_slowly_at_the_start_holds_up_nobody_else(
    world: World, settings: Settings, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manual = config_of("other", mode="manual")
    other = World(world.engine, settings, store, "other", manual)
    slow, quick = register(world, tmp_path / "a"), register_folder(other, make_bundle(tmp_path / "b", system="other"), manual)
    promote(world, slow)
    promote(other, quick, manual)
    with running(settings) as server:
        server.serves(slow)
        until(lambda: server.version("other") == quick)
    with held_loads(monkeypatch, _bundle(world, slow)) as (entered, go_on), running(settings, start=False) as server:
        try:
            assert entered.wait(30)
            until(lambda: server.version("other") == quick)
            server.client.timeout = 5
            assert server.client.get("/livez").status_code == 200
            systems = server.client.get("/models").json()["systems"]
            assert (systems["sentiment"]["serving"], systems["sentiment"]["loading"]) == (None, True)
            assert systems["other"]["serving"]["version"] == quick
            assert server.models()["serving"] is None
            assert server.predict("좋은 영화", system="other").json()["version"] == quick
        finally:
            go_on.set()
        server.serves(slow)


def test_what_the_ledger_names_wins_over_what_the_disk_still_opens(
    world: World, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
    state = settings.home / "serving" / "champion" / "sentiment" / "state.json"
    with held_loads(monkeypatch, _bundle(world, first)) as (entered, go_on), running(settings, start=False) as server:
        try:
            assert entered.wait(30)
            assert server.predict("좋은 영화", version=second).json()["version"] == second  # resident from now on
            promote(world, second)
            with world.engine.connect() as connection:
                server.server.follower.check(connection)
            assert server.version() == second
        finally:
            go_on.set()
        until(lambda: not server.models()["loading"])
        assert server.version() == second
        assert json.loads(state.read_text())["version"] == second


def test_without_a_database_and_without_a_disk_it_says_so(settings: Settings) -> None:
    with database_away(str(settings.database_url)), running(settings) as server:
        answer = server.predict("좋은 영화")
        assert (answer.status_code, answer.json()["code"]) == (503, "no_champion")


def test_keeps_serving_when_the_database_goes_away(world: World, settings: Settings, engine: Engine, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
        with database_away(str(settings.database_url)):
            until(lambda: not server.client.get("/readyz").json()["ledger"]["connected"])
            ids = [server.predict("좋은 영화").headers["X-Request-ID"] for _ in range(5)]
        promote(world, second)
        server.serves(second)

        def recorded() -> bool:
            with engine.connect() as connection:
                return set(connection.execute(text("SELECT request_id FROM answer")).scalars()) >= set(ids)

        until(recorded, what="answers given without the database are recorded afterwards")


def test_requests_in_flight_finish_on_the_old_model(world: World, settings: Settings, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        host = server.server.follower.host("sentiment")
        assert host is not None and host.current is not None
        predictor = host.current.predictor
        entered, go_on, real = threading.Event(), threading.Event(), predictor.predict

        def held(texts: list[str]) -> list[dict[str, object]]:
            entered.set()
            assert go_on.wait(30)
            return real(texts)

        predictor.predict = held  # type: ignore[method-assign]
        answers = []
        client = threading.Thread(target=lambda: answers.append(server.predict("좋은 영화")))
        client.start()
        assert entered.wait(30)
        promote(world, second)
        server.serves(second)
        go_on.set()
        client.join(30)
        body = answers[0].json()
        assert (body["version"], answers[0].headers["X-Model-Version"]) == (first, str(first))
        assert body["predictions"][0]["probs"]["긍정"] == pytest.approx(probabilities("좋은 영화", 1.0)[1], abs=1e-5)
        assert server.predict("좋은 영화").json()["version"] == second


def test_a_version_by_name(world: World, settings: Settings, engine: Engine, store: ObjectStore, tmp_path: Path) -> None:
    first, second, third = (register(world, tmp_path / str(s), strength=s) for s in (1.0, 2.0, 3.0))
    promote(world, first)
    with running(settings) as server:
        assert positive(server, version=second) == pytest.approx(probabilities("좋은 영화", 2.0)[1], abs=1e-5)
        assert server.predict("좋은 영화", version=second).headers["X-Model-Version"] == str(second)
        assert server.version() == first, "asking for a version changes nothing for others"
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO bundle_deleted SELECT system, bundle_sha256, 1, 'test' FROM receipt WHERE version = :v"), {"v": third}
            )
        for info in list(store.list(f"bundles/{_bundle(world, third)}")):  # a row alone is not believed
            store.delete(info.key)
        for version, status, code in ((third, 410, "version_deleted"), (99, 404, "unknown_version"), ("x", 400, "bad_version")):
            answer = server.predict("좋은 영화", version=version)
            assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_who_asks_for_versions_by_name_holds_up_nobody_else(
    world: World, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with (
        running(settings) as server,
        ThreadPoolExecutor(NAMED_WAITING + 1) as clients,
        held_loads(monkeypatch, _bundle(world, second)) as (_, go_on),
    ):
        asked = [clients.submit(server.predict, "좋은 영화", version=second) for _ in range(NAMED_WAITING + 1)]
        done, waiting = wait(asked, timeout=30, return_when=FIRST_COMPLETED)
        (refused,) = [one.result() for one in done]
        assert (refused.status_code, refused.json()["code"]) == (503, "versions_busy")
        assert refused.headers["Retry-After"] == "5" and refused.json()["message_ko"] and refused.json()["fix"]
        assert server.client.get("/policies", params={"region": "없는 곳"}, timeout=20).json()["code"] == "no_policies"
        go_on.set()
        assert {one.result().json()["version"] for one in waiting} == {second}
        assert server.predict("좋은 영화", version=second).json()["version"] == second


def test_the_candidate_channel_is_a_server_of_its_own(world: World, settings: Settings, tmp_path: Path) -> None:
    first = register(world, tmp_path / "a", strength=1.0)
    promote(world, first)
    with running(settings) as champion, running(settings, "candidate") as staging:
        answer = staging.predict("좋은 영화")
        assert (answer.status_code, answer.json()["code"]) == (503, "no_candidate")
        second = register(world, tmp_path / "b", strength=2.0)
        staged = world.registrar(MANUAL).stage("F1")
        assert staged.version == second
        staging.serves(second)
        assert (champion.version(), staging.predict("좋은 영화").json()["version"]) == (first, second)


def test_a_version_waiting_for_the_store_is_served_when_it_is_back(
    world: World, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
        bundles = tmp_path / "store" / "bundles"
        bundles.chmod(0o000)
        away = tmp_path / "store" / "away"
        bundles.rename(away)
        bundles.write_text("the store is broken: a file where the folder was")
        promote(world, second)
        problem = until(lambda: server.models()["retrying"] or [r for r in server.models()["refused"] if r["version"] == second])
        assert isinstance(problem, str), f"an unreachable store is no reason to refuse for ever: {problem}"
        assert server.predict("좋은 영화").json()["version"] == first
        bundles.unlink()
        away.rename(bundles)
        bundles.chmod(0o755)
        server.serves(second)


def test_the_previous_champion_is_resident_again_after_a_restart(world: World, settings: Settings, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    promote(world, second)
    with running(settings) as server:
        until(lambda: [m["version"] for m in server.models()["previous"]] == [first])


def test_the_previous_champion_is_resident_again_after_a_start_without_the_database(
    world: World, settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
        promote(world, second)
        server.serves(second)
    for key in [info.key for info in store.list("bundles") if info.key.split("/")[1] in _bundle(world, first)]:
        store.delete(key)
    with database_away(str(settings.database_url)) as bring_back, running(settings) as server:
        assert server.version() == second
        bring_back()
        until(lambda: [m["version"] for m in server.models()["previous"]] == [first], what="the previous champion loaded from the disk")


def test_reload_looks_again_at_what_was_refused(world: World, settings: Settings, store: ObjectStore, tmp_path: Path) -> None:
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    settings = settings.model_copy(update={"api_token": "secret"})
    with running(settings) as server:
        key = next(
            info.key
            for info in store.list("bundles")
            if info.key.endswith("model.onnx") and info.key.split("/")[1] in _bundle(world, second)
        )
        content = store.get(key)
        store.delete(key)
        promote(world, second)
        server.refused("missing_file")
        store.put(key, content)
        assert server.client.post("/models/sentiment/reload").status_code == 401
        assert server.client.post("/models/sentiment/reload", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert server.version() == first
        answer = server.client.post("/models/sentiment/reload", headers={"Authorization": "Bearer secret"})
        assert (answer.status_code, answer.json()["serving"]["version"]) == (200, second)


def _bundle(world: World, version: int) -> str:
    with world.engine.connect() as connection:
        return str(
            connection.execute(
                text("SELECT bundle_sha256 FROM receipt WHERE system = :s AND version = :v"), {"s": world.system, "v": version}
            ).scalar_one()
        )
