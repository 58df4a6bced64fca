"""The registrar: the only writer of receipts and promotions. One transaction under one lock per system; MLflow hears of it afterwards.

Belongs here: register, stage, produce, rollback. Does not belong here: Dagster, MLflow (`mirror.py`), evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mlops_assets import crash
from mlops_assets.database import lock
from mlops_assets.lifecycle import clients, ledger, outbox, promotion
from mlops_assets.lifecycle.bundle import digest_of
from mlops_assets.lifecycle.gate import Policy, Subject, Verdict, behind_baseline, decide, objection
from mlops_assets.lifecycle.promotion import Channel, Promotion, Receipt
from mlops_assets.lifecycle.report import ChampionScore, Report, better, label, metric_name
from mlops_assets.lifecycle.signing import BadSignature, Signer, load_signer
from mlops_assets.settings import Settings, SystemConfig, canonical
from mlops_assets.store import ObjectStore

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


#: Kind of promotion -> how people are told of it, and the Korean line below.
TOLD = {
    "promote": ("promoted", "운영 모델로 승격되었습니다."),
    "rollback": ("rolled back to", "이전 운영 모델로 되돌렸습니다."),
    "stage": ("staged", "검토할 후보 모델로 스테이지되었습니다."),
}


#: What a run may ask for once -> the channel that it moves, and the kind of its row.
OPERATIONS: Mapping[str, tuple[Channel, str]] = {
    "register": ("champion", "promote"),
    "produce": ("champion", "promote"),
    "rollback": ("champion", "rollback"),
    "stage": ("candidate", "stage"),
}


class Refused(Exception):
    """What was asked for is not done, for a reason the gate or the ledger gives. Exit code 1."""


@dataclass(frozen=True)
class Registration:
    verdict: Verdict
    receipt: Receipt | None
    promotion: Promotion | None


def policy_of(config: SystemConfig) -> Policy:
    return Policy(
        thresholds={name.lower(): value for name, value in config.register_threshold.items()},
        metric=config.promotion.metric.lower(),
        min_improvement=config.promotion.min_improvement,
        max_report_age=timedelta(hours=config.promotion.max_report_age_hours),
        auto_promote=config.promotion.mode == "auto",
        max_fall={name.lower(): value for name, value in config.promotion.max_fall.items()},
        min_rows=config.promotion.min_rows,
        min_class_rows=config.promotion.min_class_rows,
        alpha=config.promotion.alpha,
        max_earlier_fall=config.promotion.max_earlier_fall,
    )


class Registrar:
    """Writes under the lock `mlops_assets.promotion.<system>`: two registrars never interleave.

    Args:
        settings: for the signing key, the public keys and the object store.
        sections_sha256: digest of the sections that the run was asked for with (`sections.py`); it stands in the receipt.
        actor: who is behind the calls (`run:<id>` or a user), recorded and signed.
        root_run_id: the first of the runs that retry one another, signed with what is appended: what it did, no retry does again.
            Default: `dagster_run_id`; without either each call is one of its own.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        config: SystemConfig,
        *,
        actor: str,
        dagster_run_id: str | None = None,
        root_run_id: str | None = None,
        sections_sha256: str | None = None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.system = config.project.name
        self.policy = policy_of(config)
        self.actor = actor
        self.dagster_run_id = dagster_run_id
        self.root_run_id = root_run_id or dagster_run_id
        self.store = ObjectStore.of(settings)
        self.sections_sha256 = sections_sha256
        self.public_keys = settings.public_keys_path
        self._signer: Signer = load_signer(settings)

    def judge(self, attempt_id: int, report_id: int | None) -> Verdict:
        """The gate's verdict now, for the check. A refusal is recorded; anything else the registrar records when it acts."""
        with self.engine.begin() as connection:
            attempt, verdict, _ = self._decide(connection, attempt_id, report_id)
            crash.reach("check.before_verdict")
            if verdict.outcome == "refused":
                self._record(connection, verdict, attempt, report_id)
        return verdict

    def register(self, attempt_id: int, report_id: int | None) -> Registration:
        """Decide again from the rows themselves and commit what follows: receipt, promotion, outbox. All of it or nothing.

        Registering the same bundle again returns its first receipt and appends nothing but the verdict. A retry of the run that promoted it
        returns that promotion, whatever was promoted or rolled back since.
        """
        with self.engine.begin() as connection, self._locked(connection):
            attempt, verdict, champion = self._decide(connection, attempt_id, report_id)
            self._record(connection, verdict, attempt, report_id)
            if verdict.outcome == "refused":
                return Registration(verdict, None, None)
            crash.reach("registrar.before_receipt")
            receipt = self._receipt(connection, attempt, report_id, verdict, champion)
            crash.reach("registrar.after_receipt")
            promoted = self._done_before(connection, "register", receipt.version)
            if promoted is not None:
                sentence = f"promoted before, #{promoted.sequence}, by a run that this one retries: {promoted.reason}"
                verdict = Verdict("registered", "promoted_before", sentence)
            elif verdict.outcome == "promoted":
                promoted = self._append(connection, receipt, "register", verdict.sentence, verdict.sentence_ko)
            crash.reach("registrar.before_commit")
        crash.reach("registrar.after_commit")
        return Registration(verdict, receipt, promoted)

    def best(self, metric: str, connection: Connection, *, override: bool = False) -> tuple[Receipt, str, float]:
        """The registered version that is best by `metric`, the metric's own name and the value. What the gate would refuse today does not
        count, unless `override`.

        Raises:
            Refused: no version qualifies. UnknownMetric: no report has that metric.
        """
        genuine = promotion.genuine_receipts(connection, self.system, self.public_keys)
        found = [receipt for receipt in genuine if promotion.deleted(connection, self.store, receipt) is None]
        if not found:
            raise Refused(f"{self.system} has no registered version: train one with `mlops train {self.system} --dataset-version V`")
        name = metric_name(metric, sorted({known for receipt in found for known in receipt.metrics if known in receipt.directions}))
        objections = {} if override else {r.version: self._objection(connection, r) for r in found}
        passing = [r for r in found if name in r.metrics and name in r.directions and not objections.get(r.version)]
        if not passing:
            why = next((said for said in objections.values() if said), f"none has {label(name)}")
            raise Refused(
                f"no registered version of {self.system} meets register_threshold and promotion as they are now: {why}; "
                "`mlops produce --override --reason TEXT` promotes one all the same"
            )
        # Versions that were measured on the same rows as the newest one come first: only those figures compare.
        newest = max(passing, key=lambda r: r.version)
        comparable = [r for r in passing if r.body["holdout_sha256"] == newest.body["holdout_sha256"]]
        chosen = max(comparable, key=lambda r: (better(newest.directions[name], r.metrics[name], 0.0), r.version))
        return chosen, name, chosen.metrics[name]

    def stage(self, metric: str | None = None, reason: str = "", *, version: int | None = None) -> Promotion:
        """Make the best registered version by `metric` (default: the policy's), or `version`, the candidate: staging serves it."""
        with self.engine.begin() as connection, self._locked(connection):
            if (done := self._done_before(connection, "stage")) is not None:
                return done
            receipt, why = self._chosen(connection, metric, version)
            return self._append(connection, receipt, "stage", f"{reason} ({why})" if reason else why)

    def produce(self, metric: str | None = None, *, reason: str, version: int | None = None, override: bool = False) -> Promotion:
        """Promote the best registered version by `metric` (default: the policy's), or `version`, to champion.

        Args:
            override: also one that the gate would refuse today; its objection is signed and told with the reason.
        """
        if not reason.strip():
            raise ValueError("a promotion by hand needs a reason: --reason TEXT")
        with self.engine.begin() as connection, self._locked(connection):
            if (done := self._done_before(connection, "produce")) is not None:
                return done
            receipt, why = self._chosen(connection, metric, version, override=override)
            current, _ = promotion.latest_verified(connection, self.system, "champion", self.public_keys)
            if current is not None and current.version == receipt.version:
                raise Refused(f"{self.system} v{receipt.version} is the champion already")
            return self._append(connection, receipt, "produce", f"{reason} ({why})")

    def rollback(self, *, reason: str, to: int | None = None) -> Promotion:
        """Serve a former champion again: `to`, or the one before the current was promoted. What was rolled back from does not come back by
        rolling back once more. An emergency exit: one that is under today's thresholds is served all the same, and the reason says so.

        Raises:
            Refused: there is none, it never was champion, or its bytes are gone.
        """
        if not reason.strip():
            raise ValueError("a rollback needs a reason: --reason TEXT")
        with self.engine.begin() as connection, self._locked(connection):
            if (done := self._done_before(connection, "rollback")) is not None:
                return done
            champions = promotion.verified_history(connection, self.system, "champion", self.public_keys)
            if not champions:
                raise Refused(f"{self.system} has no champion to roll back from")
            current = champions[0].version
            former = list(dict.fromkeys(p.version for p in champions if p.version != current))
            if to is None and not former:
                raise Refused(f"{self.system} v{current} is the only champion there ever was")
            known = ", ".join(f"v{v}" for v in former) or "none"
            promoted = next((place for place, p in enumerate(champions) if p.version == current and p.kind != "rollback"), 0)
            before = next((p.version for p in champions[promoted:] if p.version != current), None)
            if to is None and before is None:
                raise Refused(f"{self.system} v{current} was the first champion; `--to VERSION` serves a later one again: {known}")
            version = to if to is not None else before
            if version not in former:
                raise Refused(f"{self.system} v{version} never was champion before v{current}; former champions: {known}")
            receipt = self._registered(connection, version)
            below = self._below(receipt)
            if below is None:
                return self._append(connection, receipt, "rollback", reason)
            said = f"{reason} (an emergency exit: it is under today's register_threshold: {below})"
            return self._append(connection, receipt, "rollback", said, f"{TOLD['rollback'][1]} 단, 현재 최소값을 넘지 못하는 모델입니다.")

    # --- what the transactions above are made of ---

    def _locked(self, connection: Connection) -> Any:
        return lock(connection, f"mlops_assets.promotion.{self.system}")

    def _chosen(self, connection: Connection, metric: str | None, version: int | None, *, override: bool = False) -> tuple[Receipt, str]:
        """The receipt that a person chose, by number or by metric, and how. The gate's rules of today hold for both, unless `override`."""
        if version is None:
            receipt, name, value = self.best(metric or self.policy.metric, connection, override=override)
            why = f"best {label(name)} {value:.3f}"
        else:
            receipt, why = self._registered(connection, version), f"v{version} by number"
        objection = self._objection(connection, receipt)
        if objection is None:
            return receipt, why
        if not override:
            raise Refused(
                f"{self.system} v{receipt.version} would be refused today (register_threshold, promotion): {objection}; "
                "`mlops produce --override --reason TEXT` promotes it all the same"
            )
        return receipt, f"{why}; overrides the gate: {objection}"

    def _objection(self, connection: Connection, receipt: Receipt) -> str | None:
        """What the gate would say today of what was measured when the version was registered, against the champion in place; None: nothing.

        Versions that were measured on other rows than the champion, and never beside it, are not compared: a person decides.
        """
        report = receipt.evidence
        current, _ = promotion.latest_verified(connection, self.system, "champion", self.public_keys)
        champion = _score(current)
        if current is not None and (report.champion is None or report.champion.bundle_sha256 != current.bundle_sha256):
            same = current.receipt.body["holdout_sha256"] == report.holdout_sha256 and current.bundle_sha256 != report.bundle_sha256
            report = replace(report, champion=champion if same else None)
        # A version is as old as its figures: what nobody measured then cannot fall.
        known = {name: fall for name, fall in self.policy.max_fall.items() if any(fnmatchcase(metric, name) for metric in report.metrics)}
        found = objection(report, champion, replace(self.policy, max_fall=known))
        behind = behind_baseline(report, self.policy)
        said = found.sentence if found else behind[1] if behind else None
        return f"v{receipt.version}: {said}" if said else None

    def _below(self, receipt: Receipt) -> str | None:
        """The same of the version alone, beside no champion."""
        found = objection(receipt.evidence, None, replace(self.policy, max_fall={}))
        return f"v{receipt.version}: {found.sentence}" if found else None

    def _decide(
        self, connection: Connection, attempt_id: int, report_id: int | None
    ) -> tuple[ledger.Attempt, Verdict, ChampionScore | None]:
        try:
            attempt = ledger.attempt(connection, attempt_id, self.public_keys)
        except ledger.UnverifiedAttempt as error:
            return error.claimed, Verdict("refused", "unverified_attempt", str(error)), None
        if attempt.system != self.system or digest_of(attempt.bundle_files) != attempt.bundle_sha256:
            raise ledger.LedgerError(f"attempt {attempt_id} is not an intact attempt of {self.system}: train again")
        try:
            report = ledger.report(connection, report_id, self.public_keys)
        except ledger.UnverifiedReport as error:
            return attempt, Verdict("refused", "unverified_report", str(error)), None
        champion = self._champion(connection)
        subject = Subject(
            attempt.id,
            attempt.bundle_sha256,
            attempt.manifest_sha256,
            datetime.now(UTC),
            newest_data=champion is None or not _is_older(connection, self.system, attempt.dataset_version, champion.dataset_version),
        )
        return attempt, decide(report, champion, self.policy, subject), champion

    def _champion(self, connection: Connection) -> ChampionScore | None:
        """The champion that is really in place: the newest promotion that verifies."""
        found, _ = promotion.latest_verified(connection, self.system, "champion", self.public_keys)
        return _score(found)

    def _done_before(self, connection: Connection, operation: str, version: int | None = None) -> Promotion | None:
        """What this run, or the one that it retries, appended by `operation` (of `version`) before its worker died."""
        if self.root_run_id is None:
            return None
        wanted = (self.root_run_id, operation)
        for found in promotion.verified(connection, self.system, self.public_keys):
            body = found.body
            if (body.get("root_run_id"), body.get("operation")) == wanted and version in (None, found.version):
                return found
        return None

    def _registered(self, connection: Connection, version: int) -> Receipt:
        receipt = promotion.receipt(connection, self.system, version)
        if receipt is None:
            raise Refused(f"{self.system} v{version} is not registered: `mlops history {self.system}` lists the versions")
        try:
            promotion.verify_receipt(receipt, self.public_keys)
        except BadSignature as error:
            raise Refused(f"{self.system} v{version} has no valid receipt: {error}") from None
        gone = promotion.deleted(connection, self.store, receipt)
        if gone is not None:
            raise Refused(
                f"the bytes of {self.system} v{version} were deleted by retention on {gone:%Y-%m-%d %H:%M} UTC; "
                f"train it again: `mlops train {self.system} --dataset-version {receipt.dataset_version}`"
            )
        return receipt

    def _record(self, connection: Connection, verdict: Verdict, attempt: ledger.Attempt, report_id: int | None) -> None:
        ledger.record_verdict(connection, verdict, attempt, report_id, actor=self.actor, dagster_run_id=self.dagster_run_id)
        # The check and the registrar refuse the same evidence for the same reason: people hear of it once.
        if verdict.outcome == "refused" and outbox.became(connection, "refused", f"{attempt.id}/{report_id}", verdict.sentence):
            outbox.tell(connection, f"refused: {attempt.title}: {verdict.sentence}", verdict.sentence_ko)

    def _receipt(
        self, connection: Connection, attempt: ledger.Attempt, report_id: int | None, verdict: Verdict, champion: ChampionScore | None
    ) -> Receipt:
        from sqlalchemy import text

        before = promotion.genuine_receipts(connection, self.system, self.public_keys, bundle_sha256=attempt.bundle_sha256)
        if (known := next(before, None)) is not None:
            return self._registered(connection, known.version)
        report = ledger.report(connection, report_id, self.public_keys)
        assert report is not None  # a missing report is refused
        version = promotion.next_version(connection, self.system, self.public_keys)
        at = datetime.now(UTC)
        payload = canonical(self._receipt_body(attempt, report, report_id, verdict, champion, version, at))
        connection.execute(
            text(
                "INSERT INTO receipt (system, version, variant, dataset_version, attempt_id, report_id, bundle_sha256, payload, signature, "
                "key_id, at) VALUES (:system, :version, :variant, :dataset_version, :attempt_id, :report_id, :bundle_sha256, :payload, "
                ":signature, :key_id, :at)"
            ),
            {
                "system": self.system,
                "version": version,
                "variant": attempt.variant,
                "dataset_version": attempt.dataset_version,
                "attempt_id": attempt.id,
                "report_id": report_id,
                "bundle_sha256": attempt.bundle_sha256,
                "payload": payload,
                "signature": self._signer.sign(payload),
                "key_id": self._signer.key_id,
                "at": at,
            },
        )
        outbox.put(connection, "mlflow.version", {"system": self.system, "version": version})
        self._tell_clients(connection, version, promoted=False)
        if verdict.outcome == "registered":  # a promotion is told by itself
            outbox.tell(connection, f"registered: {self.system} v{version} ({attempt.origin}): {verdict.sentence}", verdict.sentence_ko)
        found = promotion.receipt(connection, self.system, version)
        assert found is not None
        return found

    def _receipt_body(
        self,
        attempt: ledger.Attempt,
        report: Report,
        report_id: int | None,
        verdict: Verdict,
        champion: ChampionScore | None,
        version: int,
        at: datetime,
    ) -> dict[str, Any]:
        measured = report.body()
        return {
            "format": 1,
            "system": self.system,
            "version": version,
            "variant": attempt.variant,
            "dataset_version": attempt.dataset_version,
            "manifest_sha256": attempt.manifest_sha256,
            "holdout_sha256": report.holdout_sha256,
            "bundle_sha256": attempt.bundle_sha256,
            "files": {name: list(file) for name, file in attempt.bundle_files.items()},
            "weights": {name: list(file) for name, file in attempt.weights_files.items()},
            "table_sha256": attempt.table_sha256,
            "parameters": dict(attempt.config),
            "attempt_id": attempt.id,
            "attempt_sha256": attempt.sha256,
            "report_id": report_id,
            "report_sha256": report.sha256,
            "metrics": {name: value for name, value in report.metrics.items() if math.isfinite(value)},
            "directions": dict(report.directions),
            "support": dict(report.support),
            "compared": measured["champion"],
            **{name: value for name, value in measured.items() if name in ("trivial", "baseline")},
            "rows": report.rows,
            "thresholds": dict(self.policy.thresholds),
            **({"max_fall": dict(self.policy.max_fall)} if self.policy.max_fall else {}),
            "champion": {"version": champion.version, "bundle_sha256": champion.bundle_sha256} if champion else None,
            "sections_sha256": self.sections_sha256,
            "code_version": attempt.code_version,
            "git_commit": attempt.git_commit,
            "seed": attempt.seed,
            "mlflow_run_id": attempt.mlflow_run_id,
            "dagster_run_id": self.dagster_run_id,
            "root_run_id": self.root_run_id,
            "actor": self.actor,
            "reason": verdict.sentence,
            "at": at.isoformat(),
        }

    def _tell_clients(self, connection: Connection, version: int, *, promoted: bool) -> None:
        if self.config.clients.state_dict:
            outbox.put(connection, clients.TOPIC, {"system": self.system, "version": version, "promoted": promoted})

    def _append(self, connection: Connection, receipt: Receipt, operation: str, reason: str, korean: str | None = None) -> Promotion:
        from sqlalchemy import text

        promotion.verify_receipt(receipt, self.public_keys)
        sequence = promotion.next_sequence(connection, self.system, self.public_keys)
        channel, kind = OPERATIONS[operation]
        at = datetime.now(UTC)
        columns: dict[str, Any] = {
            "system": self.system,
            "sequence": sequence,
            "channel": channel,
            "kind": kind,
            "version": receipt.version,
            "bundle_sha256": receipt.bundle_sha256,
            "actor": self.actor,
            "reason": reason,
        }
        payload = canonical({"format": 1, **columns, "operation": operation, "root_run_id": self.root_run_id, "at": at.isoformat()})
        signature, key_id = self._signer.sign(payload), self._signer.key_id
        connection.execute(
            text(
                "INSERT INTO promotion (system, sequence, channel, kind, version, bundle_sha256, payload, signature, key_id, "
                "actor, reason, at) VALUES (:system, :sequence, :channel, :kind, :version, :bundle_sha256, :payload, :signature, :key_id, "
                ":actor, :reason, :at)"
            ),
            {**columns, "payload": payload, "signature": signature, "key_id": key_id, "at": at},
        )
        outbox.put(connection, "mlflow.aliases", {"system": self.system, "version": receipt.version})
        if channel == "champion":
            self._tell_clients(connection, receipt.version, promoted=True)
        words, default = TOLD[kind]
        origin = ", ".join(part for part in (receipt.variant, receipt.dataset_version) if part)
        outbox.tell(connection, f"{words}: {self.system} v{receipt.version} ({origin}) by {self.actor}: {reason}", korean or default)
        return Promotion(**columns, payload=payload, signature=signature, key_id=key_id, at=at, receipt=receipt)


def _score(champion: Promotion | None) -> ChampionScore | None:
    """The champion's own figures, as its receipt has them."""
    if champion is None:
        return None
    return ChampionScore(champion.version, champion.bundle_sha256, champion.dataset_version, champion.receipt.metrics)


def _is_older(connection: Connection, system: str, version: str, than: str) -> bool:
    """Whether dataset `version` arrived before `than`."""
    from sqlalchemy import text

    if version == than:
        return False
    rows = connection.execute(
        text("SELECT version, first_seen_at FROM dataset_version WHERE system = :s AND version IN (:a, :b)"),
        {"s": system, "a": version, "b": than},
    )
    arrived = {row.version: row.first_seen_at for row in rows}
    return version in arrived and than in arrived and arrived[version] < arrived[than]
