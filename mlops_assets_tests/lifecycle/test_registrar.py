"""The registrar on a real PostgreSQL: what is committed, what is not, and who wins."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from mlops_assets import crash
from mlops_assets.lifecycle import promotion, retention
from mlops_assets.lifecycle.registrar import Refused
from mlops_assets.lifecycle.report import UnknownMetric
from mlops_assets.lifecycle.signing import BadSignature, KeyProblem, load_signer, rotate_key
from mlops_assets.settings import canonical
from mlops_assets_tests.factories import BAD, GOOD, World, config_of


def count(world: World, table: str) -> int:
    with world.engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()


def champion(world: World, channel: promotion.Channel = "champion") -> int | None:
    with world.engine.connect() as connection:
        found, _ = promotion.latest_verified(connection, world.system, channel, world.settings.public_keys_path)
        return found.version if found else None


def test_a_good_attempt_is_registered_and_promoted_with_valid_signatures(world):
    done = world.registered()
    assert done.verdict.outcome == "promoted" and done.receipt and done.promotion
    promotion.verify(done.promotion, world.settings.public_keys_path)
    assert champion(world) == 1
    body = done.receipt.body
    assert body["metrics"]["f1"] == GOOD["f1"] and body["thresholds"] == {"f1": 0.8, "accuracy": 0.8} and body["actor"] == "test"


@pytest.mark.parametrize(
    ("code", "metrics", "changes"),
    [
        ("below_threshold", BAD, {}),
        ("not_a_number", {**GOOD, "f1": math.nan}, {}),
        ("missing_metric", {"accuracy": 0.9}, {}),
        ("stale_report", GOOD, {"created_at": datetime.now(UTC) - timedelta(days=30)}),
        ("other_attempt", GOOD, {"bundle_sha256": "f" * 64}),
        ("other_data", GOOD, {"manifest_sha256": "f" * 64}),
    ],
)
def test_refused_leaves_a_verdict_and_nothing_else(world, code, metrics, changes):
    attempt = world.attempt()
    done = world.registrar().register(attempt.id, world.report(attempt, metrics, **changes))
    assert (done.verdict.outcome, done.verdict.code) == ("refused", code)
    assert (count(world, "verdict"), count(world, "receipt"), count(world, "promotion")) == (1, 0, 0)
    # Control: the same attempt with a sound report passes.
    assert world.registrar().register(attempt.id, world.report(attempt)).verdict.outcome == "promoted"


def test_no_report_and_the_report_of_another_attempt_are_refused(world):
    first, second = world.attempt(content="a"), world.attempt(content="b")
    report = world.report(first)
    assert world.registrar().register(second.id, None).verdict.code == "missing_report"
    assert world.registrar().register(second.id, report).verdict.code == "other_attempt"
    assert champion(world) is None


def test_a_report_changed_in_the_database_is_not_believed(world):
    attempt = world.attempt()
    report = world.report(attempt, BAD)
    with world.engine.begin() as connection:
        connection.execute(text("ALTER TABLE report DISABLE TRIGGER append_only"))
        connection.execute(text("UPDATE report SET body = replace(replace(body::text, '0.51', '0.99'), '0.5', '0.99')::json"))
        connection.execute(text("UPDATE report SET body_sha256 = encode(sha256(body::text::bytea), 'hex')"))
    verdict = world.registrar().register(attempt.id, report).verdict
    assert verdict.code == "unverified_report" and "materialize evaluation_report again" in verdict.sentence
    assert champion(world) is None


def test_a_report_of_before_without_a_signature_is_refused_with_what_to_do(world):
    attempt = world.attempt()
    report = world.report(attempt)
    with world.engine.begin() as connection:
        connection.execute(text("ALTER TABLE report DISABLE TRIGGER append_only"))
        connection.execute(text("UPDATE report SET signature = NULL, key_id = NULL"))
    for verdict in (world.registrar().judge(attempt.id, report), world.registrar().register(attempt.id, report).verdict):
        assert (verdict.outcome, verdict.code) == ("refused", "unverified_report")
        assert "is not signed" in verdict.sentence and "materialize evaluation_report again" in verdict.sentence
    assert (count(world, "verdict"), count(world, "receipt")) == (2, 0)
    assert world.registrar().register(attempt.id, world.report(attempt)).verdict.outcome == "promoted", "control: evaluated again"


def test_a_signed_report_under_another_attempts_number_is_refused(world):
    """A genuine row, copied: the attempt is part of what is signed."""
    first, second = world.attempt(content="a"), world.attempt(content="b")
    report = world.report(first)
    with world.engine.begin() as connection:
        copied = connection.execute(
            text(
                "INSERT INTO report (attempt_id, system, bundle_sha256, manifest_sha256, holdout_sha256, body, body_sha256, "
                "signature, key_id) "
                "SELECT :other, system, :bundle, manifest_sha256, holdout_sha256, body, body_sha256, signature, key_id FROM report "
                "WHERE id = :id RETURNING id"
            ),
            {"other": second.id, "bundle": second.bundle_sha256, "id": report},
        ).scalar_one()
    assert world.registrar().register(second.id, copied).verdict.code == "unverified_report"
    assert champion(world) is None


def test_a_report_signed_before_the_key_was_rotated_still_counts(world):
    attempt = world.attempt()
    report = world.report(attempt)
    for public in world.settings.public_keys_path.glob("*.pub"):
        public.unlink()  # rotating gives a lost one back first
    rotate_key(world.settings)
    assert world.registrar().register(attempt.id, report).verdict.outcome == "promoted"


def test_the_same_bundle_again_is_a_no_op(world):
    first = world.registered()
    again = world.registered()
    assert again.verdict.code == "already_champion" and again.receipt == first.receipt
    assert (count(world, "receipt"), count(world, "promotion"), count(world, "attempt")) == (1, 1, 1)


def test_better_is_promoted_worse_is_registered_older_data_never_displaces(world):
    world.dataset("v0", age_hours=5)
    world.registered("v1", content="first")
    worse = world.registered("v2", {**GOOD, "f1": 0.85}, content="worse")
    better = world.registered("v2", {**GOOD, "f1": 0.9}, content="better")
    backfilled = world.registered("v0", {**GOOD, "f1": 0.99}, content="backfill")
    assert [worse.verdict.outcome, better.verdict.outcome] == ["registered", "promoted"]
    assert (backfilled.verdict.outcome, backfilled.verdict.code) == ("registered", "older_data")
    assert champion(world) == better.receipt.version


def test_manual_policy_registers_and_produce_promotes(world):
    manual = config_of(mode="manual")
    assert world.registered(config=manual).verdict.code == "manual"
    assert champion(world) is None
    with pytest.raises(ValueError, match="needs a reason"):
        world.registrar(manual).produce("F1", reason=" ")
    promoted = world.registrar(manual, actor="kim").produce("F1", reason="looked at it")
    assert (promoted.version, promoted.actor, champion(world)) == (1, "kim", 1)
    with pytest.raises(Refused, match="is the champion already"):
        world.registrar(manual).produce("F1", reason="again")


def test_selection_is_by_the_metric_and_its_direction(world):
    manual = config_of(mode="manual")
    world.registered(metrics={**GOOD, "loss": 0.30, "f1": 0.82}, content="a", config=manual)
    world.registered(metrics={**GOOD, "loss": 0.40, "f1": 0.92}, content="b", config=manual)
    assert world.registrar(manual).stage("Loss").version == 1
    assert world.registrar(manual).stage("F1_Score").version == 2
    assert champion(world, "candidate") == 2 and champion(world) is None
    with pytest.raises(UnknownMetric, match="choose one of accuracy, ece, f1, loss, precision, recall"):
        world.registrar(manual).stage("BLEU")


def test_staging_says_how_the_version_was_chosen_beside_a_reason_where_one_is_given(world):
    manual = config_of(mode="manual")
    with pytest.raises(Refused, match=r"toy has no registered version: train one with `mlops train toy --dataset-version V`"):
        world.registrar(manual).stage("F1")
    world.registered(metrics={**GOOD, "f1": 0.92}, config=manual)
    assert world.registrar(manual).stage("F1").reason == "best F1 0.920"
    assert world.registrar(manual).stage("F1", "to be looked at").reason == "to be looked at (best F1 0.920)"
    assert world.registrar(manual).stage(version=1).reason == "v1 by number"
    assert world.registrar(manual).produce(reason="seen").reason == "seen (best F1 0.920)", "by promotion.metric"


def test_the_best_of_all_is_that_of_those_that_the_gate_lets_pass_unless_it_is_overridden(world):
    manual = config_of(mode="manual")
    world.registered(metrics={**GOOD, "f1": 0.85, "ece": 0.01}, content="a", config=manual)
    world.registered("v2", {**GOOD, "f1": 0.95, "ece": 0.2}, content="b", config=manual)
    watching = config_of(mode="manual", limits={"ece": 0.05})
    assert world.registrar(watching).stage("F1").version == 1
    done = world.registrar(watching).produce("F1", reason="the limit is wrong", override=True)
    assert (done.version, done.reason) == (2, "the limit is wrong (best F1 0.950; overrides the gate: v2: ECE 0.200 > 0.050)")
    strict = config_of(mode="manual", threshold=0.99)
    with pytest.raises(Refused, match=r"no registered version of toy meets .*: v2: .*; `mlops produce --override --reason TEXT`"):
        world.registrar(strict).produce("F1", reason="x")


def test_a_version_that_never_had_the_metric_is_not_chosen_by_it(world):
    manual = config_of(mode="manual")
    world.registered(metrics={**GOOD, "f1": 0.85}, content="a", config=manual)
    attempt = world.attempt("v2", content="b")
    report = world.report(attempt, {"f1": 0.9, "accuracy": 0.9}, directions={"f1": "more", "accuracy": "more"})
    assert world.registrar(manual).register(attempt.id, report).receipt is not None
    assert world.registrar(manual).stage("loss").version == 1
    assert world.registrar(manual).stage("f1").version == 2, "a control"


def test_versions_of_other_rows_than_the_newest_are_not_compared_with_it(world):
    """A better figure on an easier holdout is no better."""
    manual = config_of(mode="manual")
    easy = world.attempt("v1", content="a")
    world.registrar(manual).register(easy.id, world.report(easy, {**GOOD, "f1": 0.99}, holdout_sha256="easy"))
    world.registered("v2", {**GOOD, "f1": 0.86}, content="b", config=manual)
    world.registered("v2", {**GOOD, "f1": 0.88}, content="c", config=manual)
    world.registered("v2", {**GOOD, "f1": 0.88}, content="d", config=manual)
    assert world.registrar(manual).stage("F1").version == 4, "of two alike the newer one"


def test_selection_goes_by_the_directions_that_the_system_reported(world):
    """Here a greater loss is the better one: the receipt says so, and nobody's table of names says otherwise."""
    manual = config_of(mode="manual")
    for name, loss in (("a", 0.3), ("b", 0.4)):
        attempt = world.attempt(content=name)
        report = world.report(attempt, {**GOOD, "loss": loss, "mape": loss}, directions={"f1": "more", "accuracy": "more", "loss": "more"})
        assert world.registrar(manual).register(attempt.id, report).receipt is not None
    assert world.registrar(manual).stage("loss").version == 2
    with pytest.raises(UnknownMetric, match="choose one of accuracy, f1, loss"):
        world.registrar(manual).stage("mape")


def test_a_raised_threshold_holds_for_promotions_by_hand(world):
    manual, strict = config_of(mode="manual"), config_of(mode="manual", threshold=0.95)
    world.registered(config=manual)
    for call in (lambda r: r.produce("F1", reason="x"), lambda r: r.produce(version=1, reason="x"), lambda r: r.stage("F1")):
        with pytest.raises(Refused, match="threshold"):
            call(world.registrar(strict))
    assert world.registrar(manual).produce("F1", reason="control").version == 1


def test_what_the_gate_would_refuse_today_is_promoted_by_hand_only_with_an_override(world):
    """Labels of which 15 % are wrong: registered before calibration was watched. The reason and the objection are signed and told."""
    manual = config_of(mode="manual")
    world.registered(metrics={**GOOD, "ece": 0.017}, content="right", config=manual)
    world.registered("v2", {**GOOD, "f1": 0.9, "ece": 0.089}, content="15 % flipped", config=manual)
    watching = config_of(mode="manual", limits={"ece": 0.05})
    for call in (lambda r: r.produce(version=2, reason="x"), lambda r: r.stage(version=2)):
        with pytest.raises(Refused, match=r"v2: ECE 0\.089 > 0\.050; `mlops produce --override --reason TEXT`"):
            call(world.registrar(watching))
    assert world.registrar(watching).produce(reason="the best that is eligible").version == 1, "though v2 has the better F1"
    done = world.registrar(watching).produce(version=2, reason="the labels are right, the limit is not", override=True)
    assert (
        champion(world) == 2
        and done.reason == "the labels are right, the limit is not (v2 by number; overrides the gate: v2: ECE 0.089 > 0.050)"
    )
    with world.engine.connect() as connection:
        told = connection.execute(text("SELECT payload ->> 'text' FROM outbox WHERE topic = 'slack' ORDER BY id DESC LIMIT 1")).scalar_one()
    assert "overrides the gate: v2: ECE 0.089 > 0.050" in told
    assert world.registrar(manual).produce(version=1, reason="x").version == 1, "a control: by the old rules nobody objects"
    with pytest.raises(ValueError, match="needs a reason"):
        world.registrar(watching).produce(version=2, reason="", override=True)


def test_a_version_that_fell_against_the_champion_on_the_same_rows_needs_an_override(world):
    """Registered first, beside no champion: what it is compared with is the champion that was promoted since."""
    manual = config_of(mode="manual", max_fall={"recall": 0.03})
    world.registered(metrics={**GOOD, "recall": 0.809}, content="a", config=manual)
    world.registered("v2", {**GOOD, "recall": 0.854}, content="b", config=manual)
    world.registrar(manual).produce(version=2, reason="first")
    with pytest.raises(Refused, match=r"Recall 0\.8090, -0\.0450 against the champion's 0\.8540"):
        world.registrar(manual).produce(version=1, reason="x")
    assert champion(world) == 2
    assert world.registrar(config_of(mode="manual")).produce(version=1, reason="x").version == 1, "a control: the rule, not the version"


def test_rollback_goes_to_former_champions_only(world):
    world.registered(content="a")
    with pytest.raises(Refused, match="only champion there ever was"):
        world.registrar().rollback(reason="x")
    world.registered("v2", {**GOOD, "f1": 0.9}, content="b")
    world.registered("v2", {**GOOD, "f1": 0.85}, content="never champion")
    with pytest.raises(Refused, match="never was champion"):
        world.registrar().rollback(reason="x", to=3)
    back = world.registrar().rollback(reason="complaints")
    assert (back.kind, back.version, back.sequence, champion(world)) == ("rollback", 1, 3, 1)


def test_a_second_rollback_goes_further_back_and_not_forward_again(world):
    for number in (1, 2, 3):
        world.registered(f"v{number}", {**GOOD, "f1": 0.85 + number / 100}, content=f"c{number}")
    assert [world.registrar().rollback(reason="bad").version for _ in range(2)] == [2, 1]
    with pytest.raises(Refused, match="v1 was the first champion; `--to VERSION` serves a later one again: v2, v3"):
        world.registrar().rollback(reason="bad")
    assert world.registrar().rollback(reason="v3 was not it", to=3).version == 3
    world.registrar().produce(version=1, reason="back by hand")
    assert world.registrar().rollback(reason="bad").version == 3, "what was champion before it was promoted again"


def forge_champion(world, version: int, sequence: int) -> None:
    """A row that nobody signed, as somebody with the database's password writes it."""
    sql = (
        "INSERT INTO promotion (system, sequence, channel, kind, version, bundle_sha256, payload, signature, key_id, actor, reason, at) "
        "SELECT system, :q, 'champion', 'promote', version, bundle_sha256, '{}', 'none', key_id, 'x', 'x', now() FROM receipt "
        "WHERE system = 'toy' AND version = :v"
    )
    with world.engine.begin() as connection:
        connection.execute(text(sql), {"v": version, "q": sequence})


def test_a_forged_champion_is_neither_rolled_back_from_nor_to_and_displaces_nothing(world):
    for number in (1, 2):
        world.registered(f"v{number}", {**GOOD, "f1": 0.85 + number / 100}, content=f"c{number}")
    world.registered("v2", {**GOOD, "f1": 0.82}, content="never champion")
    for sequence, version in ((3, 3), (4, 1)):
        forge_champion(world, version, sequence)
    keys = world.settings.public_keys_path
    kept = {kept.why: kept.version for kept in retention.apply(world.engine, world.store, "toy", keys, rollback_depth=1, actor="t").keep}
    assert kept["champion"] == 2 and kept["rollback depth 1 of 1"] == 1
    with pytest.raises(Refused, match="never was champion"):
        world.registrar().rollback(reason="x", to=3)
    with pytest.raises(Refused, match="v2 is the champion already"):
        world.registrar().produce(version=2, reason="x")
    assert world.registrar().rollback(reason="control").version == 1


def test_retention_gives_nothing_up_when_it_can_verify_nothing(world, tmp_path):
    world.registered()
    with pytest.raises(BadSignature, match="nothing is deleted"):
        retention.apply(world.engine, world.store, "toy", tmp_path / "no-keys", rollback_depth=1, actor="t")


def test_retention_deletes_bytes_keeps_receipts_and_rollback_says_so(world):
    for index in range(6):
        world.registered(f"v{index}", {**GOOD, "f1": 0.81 + index / 100}, content=f"c{index}")
    planned = retention.apply(world.engine, world.store, "toy", world.settings.public_keys_path, rollback_depth=1, actor="t", dry_run=True)
    assert [v for _, v, _ in planned.delete] == [3, 2, 1] and count(world, "bundle_deleted") == 0
    with world.engine.begin() as connection:
        connection.execute(text("INSERT INTO hold VALUES ('toy', 2, 'audit', 'kim', now())"))
    done = retention.apply(world.engine, world.store, "toy", world.settings.public_keys_path, rollback_depth=1, actor="t")
    assert [v for _, v, _ in done.delete] == [3, 1]
    with world.engine.connect() as connection:
        gone = promotion.receipt(connection, "toy", 1)
    assert gone is not None and list(world.store.list(f"bundles/{gone.bundle_sha256}")) == []
    with pytest.raises(Refused, match="were deleted by retention on .* train it again: `mlops train toy --dataset-version v0`"):
        world.registrar().rollback(reason="x", to=1)
    assert world.registrar().rollback(reason="control", to=2).version == 2
    # Trained again to the same bytes, it is whole again.
    world.attempt("v0", content="c0")
    assert world.registrar().rollback(reason="back", to=1).version == 1


def test_forged_rows_are_not_followed(world):
    """Every column that matters is signed; the control is that the untouched row verifies."""
    world.registered(content="a")
    world.registered("v2", {**GOOD, "f1": 0.9}, content="b")
    with world.engine.begin() as connection:
        real = promotion.latest(connection, "toy", "champion")
        assert real is not None
        promotion.verify(real, world.settings.public_keys_path)
        # Copied with another version, as somebody with psql would.
        connection.execute(
            text(
                "INSERT INTO promotion SELECT system, sequence + 10, channel, kind, 1, bundle_sha256, payload, signature, key_id, actor, "
                "reason, at FROM promotion WHERE sequence = 2"
            )
        )
    assert champion(world) == 2
    stranger = world.settings.model_copy(update={"home": world.settings.home / "stranger"})
    rotate_key(stranger)
    signer = load_signer(stranger)
    payload = canonical({**real.__dict__, "payload": 0, "at": 0, "receipt": 0, "sequence": 50, "version": 1})
    with world.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO promotion VALUES ('toy', 50, 'champion', 'promote', 1, :b, :p, :s, :k, 'x', 'y', now())"),
            {"b": real.bundle_sha256, "p": payload, "s": signer.sign(payload), "k": signer.key_id},
        )
    assert champion(world) == 2
    with world.engine.connect() as connection:
        newest = promotion.latest(connection, "toy", "champion")
    with pytest.raises(BadSignature):
        promotion.verify(newest, world.settings.public_keys_path)


def test_rotation_keeps_what_the_old_key_signed_and_an_open_key_is_refused(world):
    old = world.registered(content="a").receipt
    rotate_key(world.settings)
    new = world.registered("v2", {**GOOD, "f1": 0.9}, content="b").receipt
    assert old.key_id != new.key_id
    for receipt in (old, new):
        promotion.verify_receipt(receipt, world.settings.public_keys_path)
    world.settings.signing_key_path.chmod(0o644)
    with pytest.raises(KeyProblem, match="chmod 600"):
        world.registrar()


def test_history_cannot_be_rewritten(world):
    world.registered()
    for statement in ("UPDATE receipt SET version = 9", "DELETE FROM promotion", "TRUNCATE verdict"):
        with pytest.raises(Exception, match="append-only"), world.engine.begin() as connection:
            connection.execute(text(statement))


def test_two_registrars_racing_leave_one_order(world):
    attempts = [world.attempt(content=f"c{i}") for i in range(8)]
    reports = [world.report(a, {**GOOD, "f1": 0.81 + i / 100}) for i, a in enumerate(attempts)]
    outcomes, errors = [], []

    def race(attempt, report):
        try:
            outcomes.append(world.registrar().register(attempt.id, report).verdict.outcome)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=race, args=pair) for pair in zip(attempts, reports, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # All reports say "no champion yet": whoever is first is promoted, for the others the champion has changed.
    assert not errors and sorted(outcomes) == ["promoted"] + ["registered"] * 7
    with world.engine.connect() as connection:
        versions = list(connection.execute(text("SELECT version FROM receipt ORDER BY version")).scalars())
    assert versions == list(range(1, 9)) and count(world, "promotion") == 1


def test_control_without_the_lock_two_registrars_collide(world, monkeypatch):
    """What the lock is for: without it racing registrars fail on the same version number or both promote."""
    import contextlib

    monkeypatch.setattr("mlops_assets.lifecycle.registrar.Registrar._locked", lambda self, connection: contextlib.nullcontext())
    barrier = threading.Barrier(2)
    receipt = type(world.registrar())._receipt

    def together(self, *arguments):
        barrier.wait(timeout=10)
        return receipt(self, *arguments)

    monkeypatch.setattr("mlops_assets.lifecycle.registrar.Registrar._receipt", together)
    attempts = [world.attempt(content=f"c{i}") for i in range(2)]
    reports = [world.report(a) for a in attempts]
    outcomes, errors = [], []

    def race(attempt, report):
        try:
            outcomes.append(world.registrar().register(attempt.id, report).verdict.outcome)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=race, args=pair) for pair in zip(attempts, reports, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collided = [type(error) for error in errors] == [IntegrityError] and outcomes == ["promoted"]
    assert collided or outcomes == ["promoted"] * 2, (errors, outcomes)


@pytest.mark.parametrize("point", [p for p in crash.REGISTRAR_POINTS if p.startswith(("check.", "registrar."))])
def test_killed_at_every_point_it_is_all_or_nothing_and_a_second_try_completes(world, point):
    attempt = world.attempt()
    report = world.report(attempt)
    call = "judge" if point.startswith("check.") else "register"
    code = (
        "from mlops_assets.settings import load_settings; from mlops_assets import database\n"
        "from mlops_assets.lifecycle.registrar import Registrar\n"
        "from mlops_assets_tests.factories import config_of\n"
        "s = load_settings(); e = database.connect(s.database_url)\n"
        f"Registrar(e, s, config_of(), actor='t').{call}({attempt.id}, {report})\n"
    )
    environment = {**os.environ, **world.settings.environment(), "MLOPS_CRASH_AT": point}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert killed.returncode == -9, killed.stderr.decode()
    committed = point == "registrar.after_commit"
    assert (count(world, "receipt"), count(world, "promotion"), champion(world)) == ((1, 1, 1) if committed else (0, 0, None))
    world.registrar().register(attempt.id, report)
    assert (count(world, "receipt"), count(world, "promotion"), champion(world)) == (1, 1, 1)
