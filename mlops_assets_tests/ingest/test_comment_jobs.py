"""Cuts and scores as Dagster runs them: due once, never twice at the same time, completed after a kill; and the command that cuts now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from mlops_assets.ingest import cuts, objects, scores
from mlops_assets.ingest.jobs import cut_definitions, score_definitions
from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import promotion
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.lifecycle.system import ModelSystem
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import CutsSection, ReviewSection, Settings
from mlops_assets.store import ObjectStore
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import World
from mlops_assets_tests.ingest.comments import add_comment, add_label, delete_comment
from mlops_assets_tests.ingest.test_cuts import SYSTEM, freeze, ids, lines
from mlops_assets_tests.toy import toy_system


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@dataclass
class Cutting:
    """The cut's definitions of one section, ticked and run as the daemon would."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    resources: dict[str, Any]
    cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        sensor = self.definitions.resolve_sensor_def(f"{SYSTEM}_cuts")
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"postgres": self.resources["postgres"]}
        ) as context:
            done = sensor(context)
        assert isinstance(done, dg.SensorResult)
        self.cursor = done.cursor
        return done

    def run(self, *, asked: bool = False) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def(f"{SYSTEM}_cut")
        config = {"ops": {f"{SYSTEM}_cut_op": {"config": {"asked": asked}}}}
        return job.execute_in_process(instance=self.instance, run_config=config, raise_on_error=False)


@pytest.fixture
def cutting(settings: Settings, instance: dg.DagsterInstance) -> Callable[..., Cutting]:
    resources = {"store": ObjectStoreResource.of(settings), "postgres": PostgresResource.of(settings)}

    def make(**section: Any) -> Cutting:
        definitions = cut_definitions(SYSTEM, CutsSection(**section), settings)
        return Cutting(dg.Definitions.merge(definitions, dg.Definitions(resources=resources)), instance, resources)

    return make


def first(engine: Engine, store: ObjectStore, tmp_path: Path) -> None:
    store.put(f"landing/{SYSTEM}/first-1/rows.tsv", b"x")
    store.put(f"landing/{SYSTEM}/first-1/_READY", b"")
    freeze(engine, store, tmp_path, "first-1")


def cut_versions(engine: Engine) -> Sequence[str]:
    with engine.connect() as connection:
        return connection.execute(text("SELECT version FROM comment_cut ORDER BY at")).scalars().all()


def test_from_a_moderators_label_to_a_version_that_the_landing_sensor_starts(
    cutting: Callable[..., Cutting], engine: Engine, store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    cut = cutting(when="labels", min_new_labels=2)
    assert "land the data set first" in str(cut.tick().skip_reason)
    first(engine, store, tmp_path)
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    assert "2 are waited for" in str(cut.tick().skip_reason)
    assert "since the last look" in str(cut.tick().skip_reason), "nothing is read again until somebody says something"
    with engine.begin() as connection:
        add_comment(connection, 2)
        add_label(connection, 2, ["지역"])
    assert len(cut.tick().run_requests or []) == 1
    assert cut.run().success
    (version,) = cut_versions(engine)
    assert "on its way" in str(cut.tick().skip_reason)
    landing = landing_sensor(SYSTEM, f"{SYSTEM}_pipeline", settings)
    with dg.build_sensor_context(instance=cut.instance, resources=cut.resources) as context:
        asked = landing(context)
    assert isinstance(asked, dg.SensorResult)
    assert version in [request.partition_key for request in asked.run_requests or []]
    assert ids(lines(store, version)) == [1, 2]


def test_a_collection_that_has_ended(cutting: Callable[..., Cutting], engine: Engine, store: ObjectStore, tmp_path: Path) -> None:
    cut = cutting(when="collection_end", quiet_minutes=10)
    first(engine, store, tmp_path)
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    assert "still arrive" in str(cut.tick().skip_reason)
    with engine.begin() as connection:  # eleven minutes later
        connection.execute(text("ALTER TABLE comment_ledger DISABLE TRIGGER append_only"))
        connection.execute(text("UPDATE comment_ledger SET seen_at = seen_at - interval '11 minutes'"))
    assert len(cut.tick().run_requests or []) == 1 and cut.run().success
    assert len(cut_versions(engine)) == 1


def test_a_cut_that_was_settled_and_not_landed_is_landed(
    cutting: Callable[..., Cutting], engine: Engine, store: ObjectStore, tmp_path: Path
) -> None:
    cut = cutting(when="schedule", cron="0 4 * * *")
    (schedule,) = cut.definitions.schedules or []
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.cron_schedule, schedule.execution_timezone, schedule.job_name) == ("0 4 * * *", "Asia/Seoul", f"{SYSTEM}_cut")
    assert not cutting(when="labels").definitions.schedules, "only where the schedule decides"
    first(engine, store, tmp_path)
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    assert not cut.tick().run_requests, "by the schedule alone"
    made, _ = cuts.cut(engine, SYSTEM, CutsSection(when="schedule"), asked=True)  # and then the process died
    assert made is not None and objects.tick(engine, store, SYSTEM, settle_seconds=0).closed == []
    assert len(cut.tick().run_requests or []) == 1
    assert cut.run(asked=True).success
    assert cut_versions(engine) == [made.version] and ids(lines(store, made.version)) == [1]


def test_no_second_run_beside_one_or_right_after_one_that_failed(
    cutting: Callable[..., Cutting], engine: Engine, store: ObjectStore, tmp_path: Path
) -> None:
    cut = cutting(when="labels")
    first(engine, store, tmp_path)
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    job = cut.definitions.resolve_job_def(f"{SYSTEM}_cut")
    run = cut.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert "is started" in str(cut.tick().skip_reason)
    cut.instance.report_run_failed(run)
    assert "minutes after it" in str(cut.tick().skip_reason)


# --- scores -----------------------------------------------------------------------------------------------------------------------


class Judge:
    """A model with several labels: how bad a text is stands in it."""

    labels = ("지역", "악플/욕설", "clean")
    rule = SimpleNamespace(thresholds=(0.4, 0.6, 1.0), fallback=2)

    def predict(self, inputs: Sequence[Any], /) -> list[dict[str, Any]]:
        if any("!" in text for text in inputs):
            raise ValueError("too loud")
        answers = []
        for one in inputs:
            region = float(one.split()[0])
            probs = {"지역": region, "악플/욕설": 0.0, "clean": 1 - region}
            answers.append({"text": one, "labels": ["지역"] if region >= 0.4 else ["clean"], "probs": probs})
        return answers


def judged_by(predictor: Any) -> ModelSystem:
    return replace(toy_system(), load_predictor=lambda folder, threads: predictor)


def test_comments_that_nobody_labelled_are_scored_by_the_champion(
    world: World, engine: Engine, settings: Settings, store: ObjectStore, instance: dg.DagsterInstance
) -> None:
    system = judged_by(Judge())
    section = ReviewSection(exclusive=("clean",), scores_per_run=3)
    platform = Platform(settings, engine, store, Tracking(None))
    definitions = score_definitions(system, section, lambda: platform)

    def tick() -> dg.SensorResult:
        with dg.build_sensor_context(instance=instance) as context:
            done = definitions.resolve_sensor_def("toy_unscored_comments")(context)
        assert isinstance(done, dg.SensorResult)
        return done

    def run() -> None:
        assert definitions.resolve_job_def("toy_score_comments").execute_in_process(instance=instance).success

    def found() -> dict[int, tuple[list[str], float]]:
        with engine.connect() as connection:
            return {row.id: (row.labels, row.uncertainty) for row in connection.execute(text("SELECT * FROM comment_score"))}

    with engine.begin() as connection:
        for number, words in ((1, "0.4"), (2, "0.9"), (3, "0.1"), (4, "0.5 !"), (5, "0.5 labelled"), (6, "0.5 deleted")):
            add_comment(connection, number, words, at=f"2026-11-20T00:00:0{number}+00:00")
        add_label(connection, 5, ["clean"])
        delete_comment(connection, 6)
    assert "no champion" in str(tick().skip_reason)
    run()
    assert found() == {}
    world.registered("v1")
    assert len(tick().run_requests or []) == 1
    run()
    assert sorted(found()) == [2, 3, 4], "bounded: the newest three"
    run()
    scored = found()
    assert scored[1] == (["지역"], 1.0), "on its threshold"
    assert scored[2][0] == ["지역"] and scored[2][1] == pytest.approx(1 - 0.5 / 0.6)
    assert scored[3][0] == ["clean"] and scored[3][1] == pytest.approx(0.25)
    assert scored[4] == ([], 1.0), "what the model does not take is for people first"
    assert sorted(scored) == [1, 2, 3, 4]
    assert "every unlabelled comment" in str(tick().skip_reason)
    with engine.begin() as connection:
        add_comment(connection, 3, "0.45 rewritten", content_hash=2)
    assert tick().run_requests
    run()
    assert found()[3][0] == ["지역"]
    world.registered("v2", metrics={"loss": 0.1, "accuracy": 0.95, "precision": 0.95, "recall": 0.95, "f1": 0.95}, content="better")
    with engine.connect() as connection:
        champion = promotion.latest(connection, "toy", "champion")
    assert champion is not None and champion.version == 2 and tick().run_requests, "another champion scores anew"


def test_uncertainty_of_one_label() -> None:
    answer = {"label": "긍정", "probs": {"긍정": 0.5, "부정": 0.5}}
    assert scores.uncertainty(answer, {}) == 1.0
    assert scores.uncertainty({"label": "긍정", "probs": {"긍정": 1.0, "부정": 0.0}}, {}) == 0.0
    assert scores.labels_of(answer) == ["긍정"]


def test_with_a_cut_it_counts_how_near_clean_is_to_it() -> None:
    before = Judge()
    with_cut = Judge()
    with_cut.rule = SimpleNamespace(thresholds=(0.4, 0.6, 1.0), fallback=2, cut=0.3)
    assert scores.thresholds_of(before) == {"지역": 0.4, "악플/욕설": 0.6}
    assert scores.thresholds_of(with_cut) == {"지역": 0.4, "악플/욕설": 0.6, "clean": pytest.approx(0.7)}
    answer = {"labels": ["clean"], "probs": {"지역": 0.0, "악플/욕설": 0.0, "clean": 0.7}}
    assert scores.uncertainty(answer, scores.thresholds_of(with_cut)) == pytest.approx(1.0)
    assert scores.uncertainty(answer, scores.thresholds_of(before)) == 0.0


def test_cut_now_by_command(
    settings: Settings, engine: Engine, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mlops_assets import cli

    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    config = SimpleNamespace(cuts=CutsSection(when="schedule"), drawings=None)
    monkeypatch.setattr(cli, "_system", lambda system: (None, config, settings))

    def mlops(*arguments: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as end:
            cli.main(["cut", SYSTEM, *arguments, "--json"])
        return int(end.value.code or 0), json.loads(capsys.readouterr().out)

    code, said = mlops()
    assert code == 0 and said["landed"] == [] and "land the data set first" in said["why"]
    first(engine, store, tmp_path)
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    code, said = mlops()
    assert code == 0 and len(said["landed"]) == 1
    assert ids(lines(store, said["landed"][0])) == [1]


def test_a_system_without_comments_cannot_be_cut(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from mlops_assets import cli

    with pytest.raises(SystemExit) as end:
        cli.main(["cut", "tires"])
    assert end.value.code == 2 and "cuts" in capsys.readouterr().err
