"""Somebody has the database's password: each attack as psql writes it, what holds, and the reader that would have lost (the control)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError

from mlops_assets import names
from mlops_assets.ingest import objects
from mlops_assets.lifecycle import bundle, history, ledger, outbox, pipeline, promotion, retention, signing
from mlops_assets.lifecycle.mirror import Mirror
from mlops_assets.lifecycle.registrar import Registrar
from mlops_assets.serving.models import Follower
from mlops_assets.store import ObjectStore
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.serving.running import promote, register, running

BIGGEST = 2**63 - 1
MANUAL = config_of(mode="manual")


def psql(world: World, sql: str, **values):
    with world.engine.begin() as connection:
        result = connection.execute(text(sql), values)
        return result.all() if result.returns_rows else []


def forge_promotions(world: World, first: int, last: int, version: int = 1) -> None:
    """Copies of a genuine promotion under other numbers: every column is well formed, the signature is somebody's."""
    psql(
        world,
        "INSERT INTO promotion (system, sequence, channel, kind, version, bundle_sha256, payload, signature, key_id, actor, reason, at) "
        "SELECT p.system, n, 'champion', 'promote', r.version, r.bundle_sha256, p.payload, p.signature, p.key_id, 'x', 'y', now() "
        "FROM promotion p, receipt r, generate_series(CAST(:a AS bigint), CAST(:b AS bigint)) n "
        "WHERE p.system = :s AND r.system = :s AND p.sequence = 1 AND r.version = :v",
        a=first,
        b=last,
        s=world.system,
        v=version,
    )


def champion(world: World) -> int | None:
    with world.engine.connect() as connection:
        found, _ = promotion.latest_verified(connection, world.system, "champion", world.settings.public_keys_path)
        return found.version if found else None


def of_run(world: World, run: str, root: str | None = None) -> Registrar:
    return Registrar(world.engine, world.settings, world.config, actor="t", dagster_run_id=run, root_run_id=root)


# --- what does not verify does not count: limits, numbers, names ---------------------------------------------------------------


def test_a_thousand_unsigned_promotions_hide_no_champion_from_the_gate(world):
    world.registered("v1", {**GOOD, "f1": 0.9})
    forge_promotions(world, 2, 1500)
    worse = world.registered("v2", {**GOOD, "f1": 0.85}, content="worse")
    assert (worse.verdict.outcome, champion(world)) == ("registered", 1)
    with world.engine.connect() as connection:
        keys = world.settings.public_keys_path
        newest = promotion.history(connection, "toy", "champion", limit=1000)
        assert not any(found.payload and found.sequence == json.loads(found.payload)["sequence"] for found in newest), "control: LIMIT 1000"
        looked_at = dict(signing._found)
        assert len(promotion.verified_history(connection, "toy", "champion", keys)) == 1
        assert signing._found == looked_at, "a row is verified once, however often the ledger is read"
        assert [row["model"] for row in history.events(connection, "toy", keys) if row["channel"]] == ["v1"]
        assert (history.champion_at(connection, "toy", keys) or {})["version"] == 1


def test_taken_numbers_are_stepped_over_and_the_highest_ends_nothing(world):
    world.registered("v1", {**GOOD, "f1": 0.85})
    forge_promotions(world, BIGGEST, BIGGEST)
    forge_promotions(world, 2, 4)
    better = world.registered("v2", {**GOOD, "f1": 0.9}, content="two")
    assert better.promotion is not None and (better.promotion.sequence, champion(world)) == (5, 2)
    forge_promotions(world, 7, 7)
    assert (world.registrar().rollback(reason="x").sequence, champion(world)) == (6, 1)
    assert (world.registrar().produce(version=2, reason="x").sequence, champion(world)) == (8, 2)
    with pytest.raises(DataError, match="out of range"):  # control: what the next number was before
        psql(world, "SELECT coalesce(max(sequence), 0) + 1 FROM promotion WHERE system = 'toy'")


def test_a_forged_receipt_takes_no_version_and_no_bundle(world):
    """The receipt of a bundle is forged before the bundle is registered, under the next number and under the highest there is."""
    world.registered("v1", {**GOOD, "f1": 0.85})
    attempt = world.attempt("v2", content="two")
    for version in (2, 2**31 - 1):
        psql(
            world,
            "INSERT INTO receipt (system, version, variant, dataset_version, attempt_id, report_id, bundle_sha256, payload, signature, "
            "key_id) SELECT system, :v, variant, 'v2', attempt_id, report_id, :b, payload, signature, key_id FROM receipt "
            "WHERE version = 1",
            v=version,
            b=attempt.bundle_sha256,
        )
    done = world.registrar().register(attempt.id, world.report(attempt, {**GOOD, "f1": 0.9}))
    assert done.receipt is not None and (done.receipt.version, done.verdict.outcome, champion(world)) == (3, "promoted", 3)
    promotion.verify_receipt(done.receipt, world.settings.public_keys_path)
    with pytest.raises(DataError, match="out of range"):  # control
        psql(world, "SELECT max(version) + 1 FROM receipt")
    assert psql(world, "SELECT min(version) FROM receipt WHERE bundle_sha256 = :b", b=attempt.bundle_sha256) == [(2,)], "control"


def test_the_highest_attempt_of_a_run_request_ends_no_later_one(world):
    world.dataset("v1")
    for attempt in (2**31 - 1, -5, 2):
        psql(world, "INSERT INTO run_request (system, version, attempt, reason) VALUES ('toy', 'v1', :a, 'psql')", a=attempt)
    with world.engine.begin() as connection:
        assert [objects.request_run(connection, "toy", "v1", "again") for _ in range(2)] == [1, 3]
    with pytest.raises(DataError, match="out of range"):  # control
        psql(world, "SELECT max(attempt) + 1 FROM run_request")


def test_a_server_follows_the_newest_genuine_promotion_whatever_lies_above(engine, settings, store, tmp_path):
    world = World(engine, settings, store, "sentiment", config_of("sentiment"))
    first, second = register(world, tmp_path / "a", strength=1.0), register(world, tmp_path / "b", strength=2.0)
    promote(world, first)
    with running(settings) as server:
        server.serves(first)
        forge_promotions(world, BIGGEST, BIGGEST, second)
        forge_promotions(world, 2, 1200, second)
        server.refused("bad_signature")
        before = psql(world, "SELECT max(sequence) FROM promotion")
        genuine = promote(world, second)
        assert genuine.sequence == 1201 and psql(world, "SELECT max(sequence) FROM promotion") == before, "control: max() sees nothing"
        server.serves(second)
        world.registrar(config_of("sentiment", mode="manual")).rollback(reason="worse")
        server.serves(first)


# --- names that become paths -----------------------------------------------------------------------------------------------------


def test_a_system_called_like_a_path_is_refused_by_the_database_and_by_the_server(world, tmp_path):
    victim = tmp_path / "victim"
    (victim / "bundles" / ".git").mkdir(parents=True)
    forged = (
        "INSERT INTO promotion (system, sequence, channel, kind, version, bundle_sha256, payload, signature, key_id, actor, reason) "
        "SELECT :name, 1, channel, kind, version, bundle_sha256, payload, signature, key_id, actor, reason FROM promotion "
        "WHERE system = 'toy'"
    )
    world.registered()
    with pytest.raises(IntegrityError, match="system_name"):
        psql(world, forged, name=str(victim))
    # Rows of before, which the constraint does not look at.
    psql(world, "ALTER TABLE promotion DROP CONSTRAINT system_name, DROP CONSTRAINT promotion_system_version_fkey")
    for name in (str(victim), "../../../victim", "toy/../victim", "", "Toy", "stranger", "."):
        psql(world, forged, name=name)
    follower = Follower(world.settings, "champion", lambda: world.engine)
    with world.engine.connect() as connection:
        follower.check(connection)
    assert set(follower.hosts()) == {"toy"} and (victim / "bundles" / ".git").is_dir()
    assert world.settings.home / "serving" / "champion" / str(victim) == victim, "control: where the name led"
    with pytest.raises(names.BadName):
        follower.make_host(str(victim))


@pytest.mark.parametrize("table", ["dataset_version", "run_request"])
def test_a_dataset_version_called_like_a_path_is_refused_by_the_database(world, table):
    more = {"dataset_version": "", "run_request": ", 1, 'x'"}[table]
    columns = {"dataset_version": "system, version", "run_request": "system, version, attempt, reason"}[table]
    for name in ("../v1", "/v1", "a..b", "a/b", "A", "a" * 64, "a\nb", ""):
        with pytest.raises(IntegrityError, match="version_name"):
            psql(world, f"INSERT INTO {table} ({columns}) VALUES ('toy', :name{more})", name=name)
    psql(world, f"INSERT INTO {table} ({columns}) VALUES ('toy', 'nsmc-2.b_1'{more})")  # control


def test_a_fingerprint_from_a_study_names_no_folder_elsewhere(world):
    with pytest.raises(names.BadName):
        pipeline.workdir_of(world.settings, "../../../victim")


# --- deletion --------------------------------------------------------------------------------------------------------------------


def retain(world: World, **arguments) -> retention.Plan:
    return retention.apply(
        world.engine, world.store, world.system, world.settings.public_keys_path, rollback_depth=1, actor="t", **arguments
    )


def has_bytes(world: World, digest: str) -> bool:
    return bool(list(world.store.list(f"bundles/{digest}")))


def test_a_row_that_says_deleted_deletes_nothing(world):
    """The champion, the one before it and the newest attempt are declared deleted by whoever may insert."""
    made = [world.registered(f"v{n}", {**GOOD, "f1": 0.81 + n / 100}, content=f"c{n}").receipt for n in range(6)]
    psql(world, "INSERT INTO bundle_deleted SELECT DISTINCT system, bundle_sha256, 1, 'psql' FROM attempt")
    ordered = psql(  # control: what retention deleted before
        world,
        "SELECT DISTINCT d.bundle_sha256 FROM bundle_deleted d WHERE NOT EXISTS (SELECT FROM attempt a WHERE a.bundle_sha256 = "
        "d.bundle_sha256 AND NOT EXISTS (SELECT FROM bundle_deleted e WHERE e.system = a.system AND e.bundle_sha256 = a.bundle_sha256))",
    )
    assert (made[5].bundle_sha256,) in ordered
    assert world.registrar().produce(version=2, reason="its bytes are there").version == 2
    assert world.registrar().rollback(reason="back").version == 6
    assert sorted(version for _, version, _ in retain(world).delete) == [1, 3]  # 2 was champion before 6 now
    assert [n for n, receipt in enumerate(made, 1) if has_bytes(world, receipt.bundle_sha256)] == [2, 4, 5, 6]


def test_a_killed_retention_is_finished_by_the_next_without_being_told(world, monkeypatch):
    for number in range(6):
        world.registered(f"v{number}", {**GOOD, "f1": 0.81 + number / 100}, content=f"c{number}")
    delete, before = ObjectStore.delete, []

    def killed(self, key):
        if before:
            raise SystemExit
        before.append(delete(self, key))

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(ObjectStore, "delete", killed)
        retain(world)
    planned = {digest for digest, _, _ in retain(world, dry_run=True).delete}
    retain(world)
    assert planned and not any(has_bytes(world, digest) for digest in planned)
    assert retain(world).delete == []


def test_a_forged_attempt_of_another_system_keeps_and_deletes_nothing(world):
    first = world.registered("v0", content="c0").receipt
    psql(
        world,
        "INSERT INTO attempt (system, variant, dataset_version, manifest_sha256, config, config_sha256, code_version, git_commit, seed, "
        "fingerprint, bundle_sha256, bundle_files, metrics) SELECT 'other', variant, dataset_version, manifest_sha256, config, "
        "config_sha256, code_version, git_commit, seed, fingerprint, bundle_sha256, bundle_files, metrics FROM attempt",
    )
    other = World(world.engine, world.settings, world.store, "other", config_of("other"))
    assert retain(other).delete == [] and has_bytes(world, first.bundle_sha256)
    for number in range(1, 6):
        world.registered(f"v{number}", {**GOOD, "f1": 0.87 + number / 100}, content=f"c{number}")
    retain(world)
    assert not has_bytes(world, first.bundle_sha256)


# --- provenance ------------------------------------------------------------------------------------------------------------------


def forged_attempt(world: World, folder: Path) -> int:
    """Other bytes under the provenance of a genuine attempt: its columns, and its signature too."""
    folder.mkdir()
    (folder / "bundle.json").write_text(json.dumps({"system": "toy", "f1": 0.99, "seed": 1}))
    digest, files = bundle.publish(world.store, folder)
    columns = (
        "system, variant, dataset_version, manifest_sha256, config, config_sha256, code_version, git_commit, seed, fingerprint, metrics, "
        "payload, signature, key_id"
    )
    listed = json.dumps({name: list(file) for name, file in files.items()})
    sql = f"INSERT INTO attempt ({columns}, bundle_sha256, bundle_files) SELECT {columns}, :b, :f FROM attempt RETURNING id"
    return psql(world, sql, b=digest, f=listed)[0][0]


def test_other_bytes_under_a_genuine_attempts_provenance_are_registered_by_nobody(world, tmp_path):
    genuine = world.attempt()
    forged = forged_attempt(world, tmp_path / "evil")
    (claimed,) = psql(world, "SELECT bundle_sha256 FROM attempt WHERE id = :id", id=forged)[0]
    report = world.report(genuine, attempt_id=forged, bundle_sha256=claimed)  # as if even the evidence had been had
    verdict = world.registrar().register(forged, report).verdict
    assert (verdict.outcome, verdict.code) == ("refused", "unverified_attempt") and "again" in verdict.sentence
    assert champion(world) is None
    assert world.registrar().register(genuine.id, world.report(genuine)).verdict.outcome == "promoted", "control"


@pytest.mark.parametrize("copied", ["unsigned", "signed for another run", "an older one again"])
def test_a_value_belongs_to_the_run_that_wrote_it(world, copied):
    keys, signer = world.settings.public_keys_path, signing.load_signer(world.settings)
    with world.engine.begin() as connection:
        ledger.put_value(connection, "toy/trained_model", "v1", "run-1", {"attempt_id": 1}, signer)
        ledger.put_value(connection, "toy/trained_model", "v1", "run-2", {"attempt_id": 2}, signer)
    signed = "NULL, NULL, NULL" if copied == "unsigned" else "payload, signature, key_id"
    run = "'run-3'" if copied == "signed for another run" else "run_id"
    psql(
        world,
        f"INSERT INTO asset_value (asset, partition, run_id, value, payload, signature, key_id) SELECT asset, partition, {run}, "
        f"'{{\"attempt_id\": 1}}', {signed} FROM asset_value WHERE run_id = 'run-1'",
    )
    with world.engine.connect() as connection:
        assert ledger.get_value(connection, "toy/trained_model", "v1", "run-3", keys) == {"attempt_id": 2}
        assert ledger.get_value(connection, "toy/trained_model", "v1", "run-1", keys) == {"attempt_id": 1}
    newest = psql(world, "SELECT value FROM asset_value WHERE asset = 'toy/trained_model' ORDER BY id DESC LIMIT 1")
    assert newest == [({"attempt_id": 1},)], "control: the last row is the forged one"


def test_numbers_of_attempts_that_forged_rows_took_are_passed_over(world):
    first = world.attempt()
    columns = (
        "system, variant, dataset_version, manifest_sha256, config, config_sha256, code_version, git_commit, seed, fingerprint, "
        "bundle_sha256, bundle_files, metrics"
    )
    psql(
        world,
        f"INSERT INTO attempt (id, {columns}) OVERRIDING SYSTEM VALUE SELECT n, {columns} "
        "FROM attempt, generate_series(CAST(:a AS bigint), :b) n",
        a=first.id + 1,
        b=first.id + 50,
    )
    assert world.attempt(content="two").id == first.id + 51
    again = world.attempt()
    assert again.id == first.id, "the same bytes again: the genuine row, not the first that claims them"


# --- once ------------------------------------------------------------------------------------------------------------------------


def test_a_retried_rollback_goes_back_once(world):
    """Its worker dies after the commit, the daemon runs it again: another run, the same root."""
    for number in (1, 2, 3):
        world.registered(f"v{number}", {**GOOD, "f1": 0.85 + number / 100}, content=f"c{number}")
    first = of_run(world, "a").rollback(reason="bad")
    retried = of_run(world, "b", "a").rollback(reason="bad")
    assert (first.sequence, retried.sequence, champion(world)) == (4, 4, 2)
    assert retried.body["root_run_id"] == "a"
    assert of_run(world, "c").rollback(reason="bad").version == 1, "control: another run goes further back"


def test_every_other_operation_is_done_once_too(world):
    world.registered("v1", content="a", config=MANUAL)
    world.registered("v2", {**GOOD, "f1": 0.9}, content="b", config=MANUAL)
    for number, call in enumerate((lambda r: r.produce(version=1, reason="x"), lambda r: r.produce("f1", reason="x"), lambda r: r.stage())):
        first = call(of_run(world, f"run-{number}"))
        world.registrar().produce(version=3 - (champion(world) or 1), reason="somebody else, meanwhile")
        before = champion(world)
        assert call(of_run(world, f"again-{number}", f"run-{number}")) == first and champion(world) == before
        world.registrar().rollback(reason="as it was", to=3 - (before or 1))


def test_a_retried_registration_does_not_undo_a_rollback(world):
    world.registered("v1", {**GOOD, "f1": 0.85}, content="a")
    attempt = world.attempt("v2", content="b")
    report = world.report(attempt, {**GOOD, "f1": 0.9})
    assert of_run(world, "a").register(attempt.id, report).verdict.outcome == "promoted"
    world.registrar().rollback(reason="complaints")
    retried = of_run(world, "b", "a").register(attempt.id, report)
    assert (retried.verdict.outcome, retried.verdict.code, champion(world)) == ("registered", "promoted_before", 1)
    assert of_run(world, "c").register(attempt.id, report).verdict.outcome == "promoted", "control: what a retry did before"


# --- an emergency exit says so ----------------------------------------------------------------------------------------------------


def test_a_rollback_below_todays_thresholds_is_done_and_says_so_everywhere(world):
    world.registered("v1", {**GOOD, "f1": 0.85}, content="a")
    world.registered("v2", {**GOOD, "f1": 0.9}, content="b")
    strict = config_of(threshold=0.88)
    back = world.registrar(strict).rollback(reason="complaints")
    wanted = "complaints (an emergency exit: it is under today's register_threshold: v1: F1 0.850 < 0.880)"
    assert (back.version, back.reason, back.body["reason"]) == (1, wanted, wanted)
    (told,) = psql(world, "SELECT payload ->> 'text' FROM outbox WHERE topic = 'slack' ORDER BY id DESC LIMIT 1")[0]
    assert wanted in told and "최소값" in told
    world.registrar().produce(version=2, reason="on")
    assert world.registrar().rollback(reason="complaints").reason == "complaints", "control: above the thresholds nothing is added"


# --- the outbox -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["{}", "[]", "null", '"x"', '{"text": 1}'])
def test_a_message_that_nobody_can_take_holds_back_no_other(world, payload):
    told: list[str] = []
    with world.engine.begin() as connection:
        connection.execute(text("INSERT INTO outbox (topic, payload) VALUES ('slack', CAST(:p AS jsonb))"), {"p": payload})
        outbox.tell(connection, "promoted: a genuine one")
    naive: list[str] = []
    with pytest.raises((KeyError, TypeError, AssertionError)):  # control: what the receiver did with it, for ever
        naive.append(json.loads(payload)["text"] + "")
    assert outbox.deliver(world.engine, {outbox.SLACK: lambda message: told.append(message["text"])}) == 2
    assert told == ["promoted: a genuine one"]
    assert psql(world, "SELECT count(*) FROM outbox WHERE delivered_at IS NULL") == [(0,)]


def test_a_message_about_a_model_of_others_takes_no_alias_from_it(world):
    class Client:
        """Fails the test when it is asked for anything."""

        def __getattr__(self, name):
            raise AssertionError(f"MLflow was asked: {name}")

    psql(world, 'INSERT INTO outbox (topic, payload) VALUES (\'mlflow.aliases\', \'{"system": "theirs", "version": 1}\')')
    mirror = Mirror(world.engine, Client(), world.settings.public_keys_path)
    assert outbox.deliver(world.engine, mirror.receivers()) == 1
    with pytest.raises(AssertionError, match="MLflow was asked"):  # control: what followed from the row before
        mirror.align("theirs")
