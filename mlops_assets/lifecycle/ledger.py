"""The append-only rows that the lifecycle writes and reads: attempts, reports, verdicts, and the references assets hand to each other.

Belongs here: one function per row kind. Does not belong here: deciding, keys.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.database import lock
from mlops_assets.lifecycle.bundle import File, Files
from mlops_assets.lifecycle.gate import Verdict
from mlops_assets.lifecycle.report import Report
from mlops_assets.lifecycle.signing import BadSignature, Signature, Signer, verify_row
from mlops_assets.settings import canonical

if TYPE_CHECKING:
    from sqlalchemy import Connection


class LedgerError(RuntimeError):
    """A row that was asked for does not exist, or is not what it says. The message names the next command."""


class UnverifiedReport(LedgerError):
    """A report that was not written through `record_report`, or was changed since: no evidence of anything."""


class UnverifiedAttempt(LedgerError):
    """An attempt that was not written through `record_attempt`, or was changed since. `claimed` is what its columns say."""

    def __init__(self, message: str, claimed: Attempt) -> None:
        super().__init__(message)
        self.claimed = claimed


@dataclass(frozen=True)
class Attempt:
    """One training that produced a bundle. `id` is 0 before it is recorded.

    Attributes:
        table_sha256: of the cleaned table that it was trained on.
        weights_files: the fp32 weights that were kept beside the bundle.
        sha256: of what was signed; empty before it is recorded.
    """

    system: str
    variant: str
    dataset_version: str
    manifest_sha256: str
    config: Mapping[str, Any]
    config_sha256: str
    code_version: str
    git_commit: str
    seed: int
    fingerprint: str
    parent_bundle_sha256: str | None
    bundle_sha256: str
    bundle_files: Files
    metrics: Mapping[str, float]
    mlflow_run_id: str | None
    dagster_run_id: str | None
    table_sha256: str = ""
    weights_files: Files = field(default_factory=dict)
    id: int = 0
    created_at: datetime | None = None
    sha256: str = ""

    @property
    def origin(self) -> str:
        """What made it, for people: the model where there are several, and the data."""
        return ", ".join(part for part in (self.variant, self.dataset_version) if part)

    @property
    def title(self) -> str:
        return " ".join(part for part in (self.system, self.variant, self.dataset_version) if part)


def record_attempt(connection: Connection, attempt: Attempt, signer: Signer, public_keys: Path) -> tuple[int, bool]:
    """Write the attempt, signed, and return its id and whether it is new. The same digest again for the same data is a no-op that returns
    the first id: of those that verify."""
    from sqlalchemy import text

    with lock(connection, f"mlops_assets.attempt.{attempt.system}"):
        same = text(
            "SELECT id FROM attempt WHERE system = :system AND variant = :variant AND dataset_version = :dataset_version "
            "AND bundle_sha256 = :bundle_sha256 AND signature IS NOT NULL ORDER BY id"
        )
        wanted = {name: getattr(attempt, name) for name in ("system", "variant", "dataset_version", "bundle_sha256")}
        known = (found for found in connection.execute(same, wanted).scalars().all() if _is_genuine(connection, found, public_keys))
        found, new = next(known, None), False
        if found is None:
            found, new = _append_attempt(connection, attempt, signer), True
        # Training made again what retention had deleted: the bytes are back, and so is the version.
        connection.execute(text("DELETE FROM bundle_deleted WHERE system = :system AND bundle_sha256 = :bundle_sha256"), wanted)
    return found, new


def _append_attempt(connection: Connection, attempt: Attempt, signer: Signer) -> int:
    metrics = {name: value if math.isfinite(value) else str(value) for name, value in attempt.metrics.items()}
    files = {"bundle_files": _listed(attempt.bundle_files), "weights_files": _listed(attempt.weights_files)}
    body = (
        {name: getattr(attempt, name) for name in (*_ATTEMPT, "table_sha256")}
        | {"config": dict(attempt.config), "metrics": metrics}
        | files
    )
    columns = {name: canonical(body[name]) if isinstance(body[name], dict) else body[name] for name in _ATTEMPT}
    return _append(connection, "attempt", columns, body, signer)


def _append(connection: Connection, table: str, columns: Mapping[str, Any], body: Mapping[str, Any], signer: Signer) -> int:
    """Append a row whose payload, its own number among it, is signed as a row of that table: copied under another number it is void."""
    from sqlalchemy import text

    names = (*columns, "id", "payload", "signature", "key_id")
    number = text(f"SELECT nextval(pg_get_serial_sequence('{table}', 'id'))")
    sql = text(
        f"INSERT INTO {table} ({', '.join(names)}) OVERRIDING SYSTEM VALUE VALUES ({', '.join(':' + name for name in names)}) "
        "ON CONFLICT (id) DO NOTHING RETURNING id"
    )
    while True:  # a number that a forged row took is passed over
        id = int(connection.execute(number).scalar_one())
        payload = canonical({**body, "id": id})
        signed = signer.sign_row(table, payload)
        if connection.execute(sql, {**columns, "id": id, "payload": payload, **signed._asdict()}).scalar() is not None:
            return id


def _listed(files: Files) -> dict[str, Any]:
    return {name: list(file) for name, file in files.items()}


_ATTEMPT = (
    "system",
    "variant",
    "dataset_version",
    "manifest_sha256",
    "config",
    "config_sha256",
    "code_version",
    "git_commit",
    "seed",
    "fingerprint",
    "parent_bundle_sha256",
    "bundle_sha256",
    "bundle_files",
    "metrics",
    "mlflow_run_id",
    "dagster_run_id",
)


#: The columns that rows are looked for by.
_FOUND_BY = ("system", "variant", "dataset_version", "manifest_sha256", "parent_bundle_sha256", "bundle_sha256")


def attempt(connection: Connection, attempt_id: int, public_keys: Path) -> Attempt:
    """The attempt as it was signed.

    Raises:
        UnverifiedAttempt: it is not signed, or not what was signed.
        LedgerError: there is none.
    """
    from sqlalchemy import text

    row = connection.execute(text("SELECT * FROM attempt WHERE id = :id"), {"id": attempt_id}).mappings().first()
    if row is None:
        raise LedgerError(f"there is no attempt {attempt_id}: train again")
    claimed = _attempt({name: row[name] for name in _ATTEMPT}, row["id"], row["created_at"])
    again = f"materialize `{'/'.join(part for part in (claimed.system, claimed.variant, 'trained_model') if part)}` again"
    if row["payload"] is None:
        raise UnverifiedAttempt(
            f"attempt {attempt_id} is not signed (older than schema 0016, or not written by the platform): {again}", claimed
        )
    try:
        verify_row("attempt", row["payload"], Signature(row["signature"], row["key_id"]), public_keys)
        body = json.loads(row["payload"])
        _same(body, dict(row), ("id", *_FOUND_BY))
    except BadSignature as error:
        raise UnverifiedAttempt(f"attempt {attempt_id} is not what the platform wrote ({error}): {again}", claimed) from None
    sha256 = hashlib.sha256(row["payload"].encode()).hexdigest()
    return replace(_attempt(body, row["id"], row["created_at"]), sha256=sha256)


def _attempt(values: Mapping[str, Any], id: int, created_at: datetime) -> Attempt:
    files = {name: {path: File(*file) for path, file in values.get(name, {}).items()} for name in ("bundle_files", "weights_files")}
    metrics = {name: float(value) for name, value in values["metrics"].items()}
    return Attempt(**{**values, **files, "metrics": metrics, "id": id, "created_at": created_at})


def _same(body: Mapping[str, Any], row: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises BadSignature unless the columns say what was signed."""
    for name in names:
        if body.get(name) != row[name]:
            raise BadSignature(f"{name} is {row[name]!r}, {body.get(name)!r} was signed")


def _is_genuine(connection: Connection, attempt_id: int, public_keys: Path) -> bool:
    try:
        attempt(connection, attempt_id, public_keys)
    except UnverifiedAttempt:
        return False
    return True


def attempts(connection: Connection, system: str, public_keys: Path, *, bundle_sha256: str | None = None) -> Iterator[Attempt]:
    """The system's attempts that verify (of that bundle), newest first."""
    from sqlalchemy import text

    sql = text(
        "SELECT id FROM attempt WHERE system = :s AND (CAST(:b AS text) IS NULL OR bundle_sha256 = :b) AND signature IS NOT NULL "
        "ORDER BY id DESC"
    )
    for found in connection.execute(sql, {"s": system, "b": bundle_sha256}).scalars().all():
        with suppress(UnverifiedAttempt):
            yield attempt(connection, found, public_keys)


def record_report(connection: Connection, report: Report, dagster_run_id: str | None, signer: Signer) -> int:
    """Write the evidence, signed: who can only INSERT cannot make any."""
    from sqlalchemy import text

    body = canonical(report.body())
    return int(
        connection.execute(
            text(
                "INSERT INTO report (attempt_id, system, bundle_sha256, manifest_sha256, holdout_sha256, body, body_sha256, "
                "dagster_run_id, signature, key_id) VALUES (:attempt_id, :system, :bundle_sha256, :manifest_sha256, :holdout_sha256, "
                ":body, :body_sha256, :run, :signature, :key_id) RETURNING id"
            ),
            {
                "attempt_id": report.attempt_id,
                "system": report.system,
                "bundle_sha256": report.bundle_sha256,
                "manifest_sha256": report.manifest_sha256,
                "holdout_sha256": report.holdout_sha256,
                "body": body,
                "body_sha256": report.sha256,
                "run": dagster_run_id,
                **signer.sign_row(_report_of(report.attempt_id), body)._asdict(),
            },
        ).scalar_one()
    )


def report(connection: Connection, report_id: int | None, public_keys: Path) -> Report | None:
    """The report as it was written; None when there is none.

    Raises:
        UnverifiedReport: it is not signed, or is not what was signed.
    """
    from sqlalchemy import text

    row = connection.execute(
        text("SELECT attempt_id, body::text AS written, signature, key_id FROM report WHERE id = :id"), {"id": report_id}
    ).first()
    if row is None:
        return None
    if row.signature is None:
        raise UnverifiedReport(f"report {report_id} is not signed (older than schema 0009, or not written by the platform): {_AGAIN}")
    try:
        verify_row(_report_of(row.attempt_id), row.written, Signature(row.signature, row.key_id), public_keys)
    except BadSignature as error:
        raise UnverifiedReport(f"report {report_id} is not what the platform wrote ({error}): {_AGAIN}") from None
    return Report.from_body(json.loads(row.written))


_AGAIN = "materialize evaluation_report again"


def _report_of(attempt_id: int) -> str:
    """The kind that a report is signed as: one attempt's report is no other's."""
    return f"report of attempt {attempt_id}"


def record_verdict(
    connection: Connection,
    verdict: Verdict,
    attempt: Attempt,
    report_id: int | None,
    *,
    actor: str,
    dagster_run_id: str | None,
) -> None:
    from sqlalchemy import text

    connection.execute(
        text(
            "INSERT INTO verdict (system, variant, dataset_version, attempt_id, report_id, outcome, code, sentence, actor, dagster_run_id) "
            "VALUES (:system, :variant, :dataset_version, :attempt_id, :report_id, :outcome, :code, :sentence, :actor, :run)"
        ),
        {
            "system": attempt.system,
            "variant": attempt.variant,
            "dataset_version": attempt.dataset_version,
            "attempt_id": attempt.id,
            "report_id": report_id,
            "outcome": verdict.outcome,
            "code": verdict.code,
            "sentence": verdict.sentence,
            "actor": actor,
            "run": dagster_run_id,
        },
    )


def put_value(connection: Connection, asset: str, partition: str, run_id: str, value: Mapping[str, Any], signer: Signer) -> None:
    """Remember, signed, what `asset` made of `partition` in this run."""
    columns = {"asset": asset, "partition": partition, "run_id": run_id}
    _append(connection, "asset_value", {**columns, "value": canonical(dict(value))}, {**columns, "value": dict(value)}, signer)


def get_value(connection: Connection, asset: str, partition: str, run_id: str, public_keys: Path) -> dict[str, Any] | None:
    """What `asset` made of `partition`: in this run if it ran here, else the last time it did. What does not verify was made by nobody."""
    from sqlalchemy import text

    sql = text(
        "SELECT id, asset, partition, run_id, payload, signature, key_id FROM asset_value WHERE asset = :asset AND partition = :partition "
        "AND (run_id = :run_id) = :here AND signature IS NOT NULL AND (CAST(:before AS bigint) IS NULL OR id < :before) "
        "ORDER BY id DESC LIMIT 100"
    )
    for here in (True, False):
        values: dict[str, Any] = {"asset": asset, "partition": partition, "run_id": run_id, "here": here, "before": None}
        while rows := connection.execute(sql, values).mappings().all():
            for row in rows:
                with suppress(BadSignature):
                    verify_row("asset_value", row["payload"], Signature(row["signature"], row["key_id"]), public_keys)
                    body = json.loads(row["payload"])
                    _same(body, dict(row), ("id", "asset", "partition", "run_id"))
                    return dict(body["value"])
            values["before"] = rows[-1]["id"]
    return None
