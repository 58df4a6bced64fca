"""Rows and bundles that tests begin with, written through the platform's own doors (ledger, bundle, registrar)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle import bundle, ledger
from mlops_assets.lifecycle.registrar import Registrar, Registration
from mlops_assets.lifecycle.report import CLASSIFIER, ChampionScore, Earlier, Report
from mlops_assets.lifecycle.signing import ensure_key, load_signer
from mlops_assets.settings import Settings, SystemConfig
from mlops_assets.store import ObjectStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: What Git LFS leaves in place of a file that was not pulled.
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"

GOOD = {"loss": 0.35, "accuracy": 0.86, "precision": 0.86, "recall": 0.86, "f1": 0.86, "ece": 0.02}
BAD = {"loss": 0.69, "accuracy": 0.51, "precision": 0.5, "recall": 0.5, "f1": 0.5}


def config_of(
    system: str = "toy", *, mode: str = "auto", threshold: float = 0.8, limits: Mapping[str, float] | None = None, **promotion: Any
) -> SystemConfig:
    """`threshold`: of F1 and accuracy; `limits`: of other metrics."""
    return SystemConfig.model_validate(
        {
            "project": {"name": system, "dataset": "d", "model": "m"},
            "register_threshold": {"f1": threshold, "accuracy": threshold, **(limits or {})},
            "promotion": {"mode": mode, "metric": "f1", **promotion},
        }
    )


@dataclass
class World:
    """One system's rows in a real database. `attempt` and `report` write what a run would have left."""

    engine: Engine
    settings: Settings
    store: ObjectStore
    system: str = "toy"
    config: SystemConfig = field(default_factory=config_of)

    def __post_init__(self) -> None:
        ensure_key(self.settings)

    def registrar(self, config: SystemConfig | None = None, actor: str = "test") -> Registrar:
        return Registrar(self.engine, self.settings, config or self.config, actor=actor)

    def dataset(self, version: str, *, age_hours: float = 0) -> str:
        """A frozen dataset version that arrived `age_hours` ago, or the one there is. Returns its manifest's digest."""
        from sqlalchemy import text

        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO dataset_version (system, version, state, manifest_sha256, manifest_key, first_seen_at) "
                    "VALUES (:s, :v, 'frozen', :m, 'manifests/none', :at) ON CONFLICT DO NOTHING"
                ),
                {"s": self.system, "v": version, "m": manifest_of(version), "at": datetime.now(UTC) - timedelta(hours=age_hours)},
            )
            row = connection.execute(
                text("SELECT manifest_sha256 FROM dataset_version WHERE system = :s AND version = :v"), {"s": self.system, "v": version}
            )
            return str(row.scalar_one())

    def attempt(
        self,
        version: str = "v1",
        *,
        folder: Path | None = None,
        content: str = "weights",
        variant: str = "",
        weights: bundle.Files | None = None,
        table: str = "",
    ) -> ledger.Attempt:
        """An attempt whose bundle is `folder`, or a small one made of `content`."""
        manifest = self.dataset(version)
        if folder is None:
            folder = self.settings.home / "made" / content
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "bundle.json").write_text(json.dumps({"system": self.system, "weights": content}))
        digest, files = bundle.publish(self.store, folder)
        with self.engine.begin() as connection:
            attempt_id, _ = ledger.record_attempt(
                connection,
                ledger.Attempt(
                    system=self.system,
                    variant=variant,
                    dataset_version=version,
                    manifest_sha256=manifest,
                    config={"epochs": 1},
                    config_sha256="c",
                    code_version="1",
                    git_commit="unknown",
                    seed=1,
                    fingerprint="f",
                    parent_bundle_sha256=None,
                    bundle_sha256=digest,
                    bundle_files=files,
                    metrics={},
                    mlflow_run_id=None,
                    dagster_run_id=None,
                    weights_files=weights or {},
                    table_sha256=table,
                ),
                load_signer(self.settings),
                self.settings.public_keys_path,
            )
            return ledger.attempt(connection, attempt_id, self.settings.public_keys_path)

    def report(self, attempt: ledger.Attempt, metrics: Mapping[str, float] | None = None, **changes: Any) -> int:
        """A report of `attempt`, compared with the champion in place (whose figures are those of its receipt)."""
        from mlops_assets.lifecycle import promotion

        with self.engine.begin() as connection:
            champion, _ = promotion.latest_verified(connection, self.system, "champion", self.settings.public_keys_path)
            compared = None
            if champion is not None and champion.bundle_sha256 != attempt.bundle_sha256:
                theirs, ours = champion.receipt.metrics, dict(metrics or GOOD)
                earlier = Earlier(champion.dataset_version, "h", 1000, ours, theirs)
                compared = ChampionScore(champion.version, champion.bundle_sha256, champion.dataset_version, theirs, 0.01, earlier)
            values: dict[str, Any] = {
                "system": self.system,
                "variant": attempt.variant,
                "dataset_version": attempt.dataset_version,
                "attempt_id": attempt.id,
                "bundle_sha256": attempt.bundle_sha256,
                "manifest_sha256": attempt.manifest_sha256,
                "holdout_sha256": "h",
                "rows": 1000,
                "metrics": dict(metrics or GOOD),
                "created_at": datetime.now(UTC),
                "champion": compared,
                "directions": CLASSIFIER,
            }
            return ledger.record_report(connection, Report(**{**values, **changes}), None, load_signer(self.settings))

    def registered(
        self, version: str = "v1", metrics: Mapping[str, float] | None = None, *, config: SystemConfig | None = None, **attempt: Any
    ) -> Registration:
        """Attempt, report and registrar in one: what a good run leaves."""
        made = self.attempt(version, **attempt)
        return self.registrar(config).register(made.id, self.report(made, metrics))


def manifest_of(version: str) -> str:
    return f"manifest-{version}"
