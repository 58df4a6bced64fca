"""Installations of before: the schema as it was, with the rows that its code had written, brought to today's by what `mlops up` calls."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text

from mlops_assets import database
from mlops_assets.lifecycle import bundle, promotion
from mlops_assets.lifecycle.report import ChampionScore, Report
from mlops_assets.lifecycle.signing import load_signer
from mlops_assets.settings import canonical
from mlops_assets_tests.factories import GOOD, World, manifest_of

BETTER = dict.fromkeys(GOOD, 0.9) | {"loss": 0.2}


def migrate_to(url: str, revision: str) -> None:
    """An empty database as that revision's code left it."""
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    engine = database.connect(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


class Before:
    """Rows as the code of 0007 to 0009 wrote them: no attempt, no value was signed; of 0009 on, reports were."""

    def __init__(self, world: World, revision: str) -> None:
        self.world, self.revision, self.signer = world, revision, load_signer(world.settings)

    def insert(self, table: str, **values) -> int:
        names = ", ".join(values)
        sql = f"INSERT INTO {table} ({names}) VALUES ({', '.join(':' + name for name in values)}) RETURNING *"
        with self.world.engine.begin() as connection:
            return connection.execute(text(sql), values).scalar()

    def attempt(self, version: str, content: str) -> tuple[int, str, bundle.Files]:
        folder = self.world.settings.home / "made" / content
        folder.mkdir(parents=True)
        (folder / "bundle.json").write_text(json.dumps({"weights": content}))
        digest, files = bundle.publish(self.world.store, folder)
        self.insert(
            "dataset_version", system="toy", version=version, state="frozen", manifest_sha256=manifest_of(version), manifest_key="m"
        )
        listed = canonical({name: list(file) for name, file in files.items()})
        attempt = self.insert(
            *("attempt",), system="toy", variant="", dataset_version=version, manifest_sha256=manifest_of(version), config="{}",
            config_sha256="c", code_version="1", git_commit="unknown", seed=1, fingerprint="f", bundle_sha256=digest, bundle_files=listed,
            metrics="{}",
        )  # fmt: skip
        return attempt, digest, files

    def report(self, attempt: int, digest: str, version: str, champion: ChampionScore | None = None) -> int:
        report = Report("toy", "", version, attempt, digest, manifest_of(version), "h", 1000, BETTER, datetime.now(UTC), champion)
        body = canonical(report.body())
        columns = {"attempt_id": attempt, "system": "toy", "bundle_sha256": digest, "manifest_sha256": report.manifest_sha256}
        columns |= {"holdout_sha256": "h", "body": body, "body_sha256": report.sha256}
        if self.revision >= "0009":
            columns |= {"signature": self.signer.sign(f"report of attempt {attempt}\n{body}"), "key_id": self.signer.key_id}
        return self.insert("report", **columns)

    def champion(self, number: int, version: str, content: str) -> int:
        attempt, digest, files = self.attempt(version, content)
        report, at = self.report(attempt, digest, version), datetime.now(UTC)
        same = {"system": "toy", "version": number, "bundle_sha256": digest}
        origin = {"variant": "", "dataset_version": version, "attempt_id": attempt, "report_id": report}
        body = {"format": 1, **same, **origin, "manifest_sha256": manifest_of(version), "holdout_sha256": "h", "report_sha256": "r"}
        body |= {"files": {name: list(file) for name, file in files.items()}, "metrics": BETTER, "rows": 1000, "thresholds": {"f1": 0.8}}
        body |= {"champion": None, "code_version": "1", "git_commit": "unknown", "seed": 1, "mlflow_run_id": None, "dagster_run_id": None}
        self.sign("receipt", {**same, **origin}, body | {"actor": "run:1", "reason": "F1"}, at)
        step = {**same, "sequence": number, "channel": "champion", "kind": "promote", "actor": "run:1", "reason": "F1"}
        self.sign("promotion", step, {"format": 1, **step}, at)
        return attempt

    def sign(self, table: str, columns: dict, body: dict, at: datetime) -> None:
        payload = canonical(body | {"at": at.isoformat()})
        self.insert(table, **columns, payload=payload, signature=self.signer.sign(payload), key_id=self.signer.key_id, at=at)


@pytest.fixture
def old(make_database, settings, store, request):
    """(what writes rows of the revision, the world that they are in), before the upgrade."""
    url = make_database("template1")
    migrate_to(url, request.param)
    engine = database.connect(url)
    world = World(engine, settings.model_copy(update={"database_url": url}), store)
    yield Before(world, request.param), world
    engine.dispose()


@pytest.mark.parametrize("old", ["0007", "0009"], indirect=True)
def test_an_installation_of_before_keeps_its_champion_and_its_history_when_it_is_upgraded(old):
    before, world = old
    before.champion(1, "v1", "one")
    before.champion(2, "v2", "two")
    waits, digest, _ = before.attempt("v3", "three")
    report = before.report(waits, digest, "v3")
    database.migrate(world.settings.require("database_url"))
    keys = world.settings.public_keys_path
    with world.engine.connect() as connection:
        found, rejected = promotion.latest_verified(connection, "toy", "champion", keys)
    assert found is not None and (found.version, rejected) == (2, [])
    assert world.registrar().rollback(reason="a look back").version == 1
    assert world.registrar().produce(version=2, reason="and on").version == 2
    verdict = world.registrar().register(waits, report).verdict
    assert (verdict.outcome, verdict.code) == ("refused", "unverified_attempt")
    assert "older than schema 0016" in verdict.sentence and "materialize `toy/trained_model` again" in verdict.sentence
    trained = world.attempt("v3", content="three")
    assert world.registrar().register(trained.id, world.report(trained, BETTER | {"f1": 0.95})).verdict.outcome == "promoted"


def test_migrations_stand_in_one_line():
    """Two that were written side by side both follow the same one: nothing migrates any more."""
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1
