"""MLflow as a mirror of the ledger: versions, aliases and tags are filled from the outbox and put back when somebody moves them.

The server never reads MLflow, so a mirror that is late or wrong changes nothing that is served. Everything here may run twice.
Belongs here: what MLflow is told. Does not belong here: deciding, Dagster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets import crash
from mlops_assets.lifecycle import clients, outbox, promotion
from mlops_assets.lifecycle.promotion import Receipt

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from sqlalchemy import Engine

    from mlops_assets.lifecycle.pipeline import Platform

logger = logging.getLogger(__name__)

ALIASES = ("candidate", "champion", "archive")


def model_name(system: str) -> str:
    return system


def hand_out(platform: Platform) -> int:
    """Everything in the outbox to whoever is there: people hear of things also where MLflow is not set."""
    from mlops_assets.monitoring.alerts import notifier

    receivers = {**_people(notifier(platform.settings)), clients.TOPIC: clients.receiver(platform)}
    if platform.tracking.uri is not None:
        receivers |= Mirror(platform.engine, platform.tracking.client, platform.settings.public_keys_path).receivers()
    return outbox.deliver(platform.engine, receivers)


def _people(notify: Callable[[str], None]) -> dict[str, outbox.Receiver]:
    return {outbox.SLACK: lambda payload: notify(payload["text"])}


class Mirror:
    """One MLflow registry that follows one database."""

    def __init__(self, engine: Engine, client: MlflowClient, public_keys: Path) -> None:
        self.engine = engine
        self.client = client
        self.public_keys = public_keys

    def deliver(self, notify: Callable[[str], None], *, limit: int = 100) -> int:
        """Hand out what waits in the outbox, to MLflow and to people; returns how many rows were taken. See `outbox.deliver`."""
        return outbox.deliver(self.engine, {**self.receivers(), **_people(notify)}, limit=limit)

    def receivers(self) -> dict[str, outbox.Receiver]:
        return {"mlflow.version": self._hear_of_version, "mlflow.aliases": self._hear_of_aliases}

    def _hear_of_version(self, payload: Mapping[str, Any]) -> None:
        with self.engine.connect() as connection:
            receipt = promotion.receipt(connection, payload["system"], payload["version"])
        if receipt is not None:
            crash.reach("mirror.before_version")
            self.ensure_version(receipt)
            crash.reach("mirror.after_version")

    def _hear_of_aliases(self, payload: Mapping[str, Any]) -> None:
        with self.engine.connect() as connection:
            ours = next(promotion.verified(connection, payload["system"], self.public_keys), None)
        if ours is not None:  # a row may name a model of others in the same registry
            self.align(payload["system"])
        crash.reach("mirror.after_alias")

    def ensure_version(self, receipt: Receipt) -> str:
        """The MLflow version of the receipt, made when missing. Found again by what it points to and our own number and run, never by
        MLflow's: a tag alone is copied by anybody."""
        promotion.verify_receipt(receipt, self.public_keys)
        name = model_name(receipt.system)
        body = receipt.body
        known = self._find(receipt)
        if known is not None:
            return known
        self._ensure_model(name)
        run_id = body.get("mlflow_run_id")
        tags = {
            "bundle_sha256": receipt.bundle_sha256,
            "receipt_version": str(receipt.version),
            "dataset_version": receipt.dataset_version,
            "manifest_sha256": body["manifest_sha256"],
            "variant": receipt.variant,
            "status": "candidate",
        } | {f"metric.{metric}": f"{value:.6f}" for metric, value in body["metrics"].items()}
        made = self.client.create_model_version(
            name,
            # Where the bytes are is the object store's business; MLflow never hands them out.
            source=_source(receipt),
            run_id=run_id,
            await_creation_for=0,
            tags=tags,
            description=f"{receipt.system} v{receipt.version} on {receipt.dataset_version}: {body['reason']}",
        )
        return str(made.version)

    def align(self, system: str) -> list[str]:
        """Make the aliases what the ledger says; returns a sentence per alias that had to be moved."""
        wanted = self._wanted(system)
        name = model_name(system)
        found = self._aliases(name)
        moved = []
        for alias in sorted({*ALIASES, *found}):
            if found.get(alias) == wanted.get(alias):
                continue
            if alias in wanted:
                self.client.set_registered_model_alias(name, alias, wanted[alias])
            else:
                self.client.delete_registered_model_alias(name, alias)
            moved.append(f"{system}: alias {alias} was {found.get(alias, 'nowhere')}, the ledger says {wanted.get(alias, 'nowhere')}")
        return moved

    def _wanted(self, system: str) -> dict[str, str]:
        """Alias -> MLflow version, from verified promotions alone."""
        with self.engine.connect() as connection:
            champion, _ = promotion.latest_verified(connection, system, "champion", self.public_keys)
            candidate, _ = promotion.latest_verified(connection, system, "candidate", self.public_keys)
            rows = promotion.verified_history(connection, system, "champion", self.public_keys)
            former = [p for p in rows if champion and p.version != champion.version]
        wanted: dict[str, str] = {}
        if champion is not None:
            wanted["champion"] = self.ensure_version(champion.receipt)
        if candidate is not None and (champion is None or candidate.version != champion.version):
            wanted["candidate"] = self.ensure_version(candidate.receipt)
        if former:
            wanted["archive"] = self.ensure_version(former[0].receipt)
        return wanted

    def _aliases(self, name: str) -> dict[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            return {alias: str(version) for alias, version in self.client.get_registered_model(name).aliases.items()}
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            try:
                self.client.create_registered_model(name)
            except MlflowException as race:
                if race.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def _find(self, receipt: Receipt) -> str | None:
        """The oldest version that is the receipt's; those that only claim to be are told of once."""
        found, token = None, None
        where = f"name = '{model_name(receipt.system)}'"
        while True:
            page = self.client.search_model_versions(where, max_results=1000, page_token=token)
            for version in page:
                if version.tags.get("bundle_sha256") != receipt.bundle_sha256:
                    continue
                if (version.source, version.tags.get("receipt_version")) != (_source(receipt), str(receipt.version)):
                    self._tell_of_stray(receipt, version)
                elif found is None or int(version.version) < int(found):
                    found = str(version.version)
            token = page.token
            if not token:
                return found

    def _tell_of_stray(self, receipt: Receipt, version: ModelVersion) -> None:
        with self.engine.begin() as connection:
            new = outbox.became(connection, "stray_version", f"{receipt.system}/{version.version}", str(version.source))
        if new:
            logger.warning(
                "MLflow's %s version %s bears the tags of v%s, but its source is %s and its receipt_version %s: it is none of ours, "
                "no alias is moved to it",
                *(receipt.system, version.version, receipt.version, version.source, version.tags.get("receipt_version")),
            )


def _source(receipt: Receipt) -> str:
    return f"bundle:///{receipt.bundle_sha256}"
