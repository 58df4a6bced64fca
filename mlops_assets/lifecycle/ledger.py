"""The append-only rows that the lifecycle writes and reads: attempts, reports, verdicts, and the references assets hand to each other.

Belongs here: one function per row kind. Does not belong here: deciding, keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle.bundle import File, Files
from mlops_assets.lifecycle.gate import Verdict
from mlops_assets.lifecycle.report import Report
from mlops_assets.lifecycle.signing import BadSignature, Signer, verify
from mlops_assets.settings import canonical

if TYPE_CHECKING:
    from sqlalchemy import Connection


class LedgerError(RuntimeError):
    """A row that was asked for does not exist, or is not what it says. The message names the next command."""


class UnverifiedReport(LedgerError):
    """A report that was not written through `record_report`, or was changed since: no evidence of anything."""


@dataclass(frozen=True)
class Attempt:
    """One training that produced a bundle. `id` is 0 before it is recorded."""

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
    id: int = 0
    created_at: datetime | None = None

    @property
    def origin(self) -> str:
        """What made it, for people: the model where there are several, and the data."""
        return ", ".join(part for part in (self.variant, self.dataset_version) if part)

    @property
    def title(self) -> str:
        return " ".join(part for part in (self.system, self.variant, self.dataset_version) if part)


def record_attempt(connection: Connection, attempt: Attempt) -> tuple[int, bool]:
    """The attempt's id, and whether it is new. The same digest again for the same data is a no-op that returns the first id."""
    from sqlalchemy import text

    values = {name: getattr(attempt, name) for name in _ATTEMPT} | {
        "config": canonical(dict(attempt.config)),
        "bundle_files": canonical({name: list(file) for name, file in attempt.bundle_files.items()}),
        "metrics": json.dumps({name: value if math.isfinite(value) else str(value) for name, value in attempt.metrics.items()}),
    }
    columns, marks = ", ".join(_ATTEMPT), ", ".join(f":{name}" for name in _ATTEMPT)
    found = connection.execute(
        text(f"INSERT INTO attempt ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING RETURNING id"), values
    ).scalar()
    new = found is not None
    if found is None:
        found = connection.execute(
            text(
                "SELECT id FROM attempt WHERE system = :system AND variant = :variant AND dataset_version = :dataset_version "
                "AND bundle_sha256 = :bundle_sha256"
            ),
            values,
        ).scalar_one()
    # Training made again what retention had deleted: the bytes are back, and so is the version.
    connection.execute(text("DELETE FROM bundle_deleted WHERE system = :system AND bundle_sha256 = :bundle_sha256"), values)
    return int(found), new


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


def attempt(connection: Connection, attempt_id: int) -> Attempt:
    """Raises LedgerError when there is none."""
    from sqlalchemy import text

    row = connection.execute(text("SELECT * FROM attempt WHERE id = :id"), {"id": attempt_id}).mappings().first()
    if row is None:
        raise LedgerError(f"there is no attempt {attempt_id}: train again")
    return Attempt(
        **{
            **row,
            "bundle_files": {name: File(*file) for name, file in row["bundle_files"].items()},
            "metrics": {name: float(value) for name, value in row["metrics"].items()},
        }
    )


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
                "signature": signer.sign(_signed(report.attempt_id, body)),
                "key_id": signer.key_id,
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
    if row.signature is None or row.key_id is None:
        raise UnverifiedReport(f"report {report_id} is not signed (older than schema 0009, or not written by the platform): {_AGAIN}")
    try:
        verify(_signed(row.attempt_id, row.written), row.signature, row.key_id, public_keys)
    except BadSignature as error:
        raise UnverifiedReport(f"report {report_id} is not what the platform wrote ({error}): {_AGAIN}") from None
    return Report.from_body(json.loads(row.written))


_AGAIN = "materialize evaluation_report again"


def _signed(attempt_id: int, body: str) -> str:
    """What of a report is signed. No JSON, so that it never passes for the payload of a receipt or a promotion, which one key signs too."""
    return f"report of attempt {attempt_id}\n{body}"


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


def put_value(connection: Connection, asset: str, partition: str, run_id: str, value: Mapping[str, Any]) -> None:
    """Remember what `asset` made of `partition` in this run."""
    from sqlalchemy import text

    connection.execute(
        text("INSERT INTO asset_value (asset, partition, run_id, value) VALUES (:asset, :partition, :run_id, :value)"),
        {"asset": asset, "partition": partition, "run_id": run_id, "value": canonical(dict(value))},
    )


def get_value(connection: Connection, asset: str, partition: str, run_id: str) -> dict[str, Any] | None:
    """What `asset` made of `partition`: in this run if it ran here, else the last time it did."""
    from sqlalchemy import text

    row = connection.execute(
        text(
            "SELECT value FROM asset_value WHERE asset = :asset AND partition = :partition "
            "ORDER BY (run_id = :run_id) DESC, id DESC LIMIT 1"
        ),
        {"asset": asset, "partition": partition, "run_id": run_id},
    ).scalar()
    return dict(row) if row is not None else None
