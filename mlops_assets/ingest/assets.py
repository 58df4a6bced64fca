"""A system as Dagster definitions: the asset `dataset` of every system, what shells of data assets need, and both halves put together.

Belongs here: what is the same whatever a row is. Does not belong here: any rule (`lifecycle/dataset.py`, the systems' `data.py`), the model
half (`lifecycle/assets.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle import forget
from mlops_assets.lifecycle.assets import dataset_versions, key_of, model_lifecycle, refusal
from mlops_assets.lifecycle.checks import partitioned_check
from mlops_assets.lifecycle.jobs import lifecycle_jobs
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.lifecycle.system import ModelSystem
from mlops_assets.monitoring.sensors import live_sensors
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import Settings, git_commit, load_config
from mlops_assets.sources import code_version

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets.ingest.rows import Account, Cleaned, Violation
    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.store import ObjectStore

    Contract = Callable[[ObjectStore, Engine, str, Path], tuple[int, Sequence[Violation]]]

SHOWN = 20


DataAssets = list[dg.AssetsDefinition | dg.AssetChecksDefinition]


def system_definitions(
    system: ModelSystem,
    settings: Settings,
    open_platform: "Callable[[], Platform]",
    data_assets: Callable[[Any, Settings], DataAssets],
) -> dg.Definitions:
    """Everything of a system: its data assets, the common model half, its jobs and its sensors.

    Args:
        data_assets: (config, settings) -> `dataset`, `cleaned` and its checks.

    Raises:
        SettingsError: the system's configuration is wrong; the message says where.
    """
    config = load_config(system.config_type, system.name, settings.configs)
    model = model_lifecycle(system, config, open_platform, owners=config.project.owners)
    return dg.Definitions(
        assets=[*data_assets(config, settings), *model.assets, *model.checks],
        jobs=lifecycle_jobs(system, config, open_platform),
        sensors=[
            landing_sensor(
                system.name,
                f"{system.name}_pipeline",
                settings,
                lambda: load_config(system.config_type, system.name, settings.configs),
            ),
            *live_sensors(system.name, config.monitoring, open_platform),
        ],
    )


class DatasetConfig(dg.Config):
    """How a version that is frozen already is verified."""

    deep: bool = Field(default=True, description="Read every byte again; false: only that each object is there with its size.")


def dataset_asset(system: str, settings: Settings, owners: Sequence[str]) -> dg.AssetsDefinition:
    """`dataset` of `system`: the version's bytes, frozen."""

    @dg.asset(
        key=key_of(system, "", "dataset"),
        description="The bytes of one dataset version, frozen: a manifest over copies that nothing changes. Again, it is only verified.",
        kinds={"parquet", "postgres"},
        code_version=code_version(versions.__name__),
        group_name=system,
        partitions_def=dataset_versions(system),
        owners=list(owners) or None,
    )
    def dataset(
        context: dg.AssetExecutionContext, config: DatasetConfig, store: ObjectStoreResource, postgres: PostgresResource
    ) -> dg.MaterializeResult[None]:
        with postgres.engine() as engine, scratch_folder(settings) as scratch, failures(context):
            manifest = versions.freeze(
                engine,
                store.open(),
                system,
                context.partition_key,
                max_object_bytes=settings.max_object_bytes,
                scratch=scratch,
                deep=config.deep,
            )
            forget.delete_bytes(engine, store.open(), system, context.partition_key)
            quarantined = _quarantined_objects(engine, system, context.partition_key)
        return dg.MaterializeResult(
            metadata={
                "dataset_version": manifest.version,
                "manifest_sha256": manifest.sha256,
                "parent": manifest.parent or "none",
                "git_commit": git_commit(),
                "dagster/uri": store.open().uri(manifest.key),
                "dagster/row_count": len(manifest.entries),
                "bytes": manifest.size,
                **({"deleted_on_request": len(manifest.forgotten)} if manifest.forgotten else {}),
                "objects": table([{"key": e.key, "bytes": e.size, "sha256": e.sha256[:12]} for e in manifest.entries[:SHOWN]]),
                "quarantined_objects": len(quarantined),
                **({"quarantine": table(quarantined[:SHOWN])} if quarantined else {}),
            },
            data_version=dg.DataVersion(manifest.sha256),
        )

    return dataset


def cleaned_asset(
    dataset: dg.AssetsDefinition, owners: Sequence[str], *, description: str, kinds: set[str], rules: str
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Decorates what makes `cleaned` of `dataset`. `rules`: the module that cleans; it is the code version."""
    system = dataset.key.path[0]
    return dg.asset(
        key=key_of(system, "", "cleaned"),
        deps=[dataset],
        description=description,
        kinds=kinds,
        code_version=code_version(rules),
        group_name=system,
        partitions_def=dataset_versions(system),
        owners=list(owners) or None,
    )


def cleaned_checks(
    system: str, settings: Settings, *, rules: str, contract_of: "Contract", account_of: "Callable[[Engine, ObjectStore, str], Account]"
) -> list[dg.AssetChecksDefinition]:
    """The two blocking checks of `cleaned`: its contract, and that no row is unaccounted for.

    Args:
        rules: the contract in words.
        contract_of: (store, engine, version, folder) -> rows of the table, and what breaks the contract.
    """
    cleaned, partitions = key_of(system, "", "cleaned"), dataset_versions(system)

    @partitioned_check(asset=cleaned, name="contract", partitions_def=partitions, description=rules)
    def contract(context: dg.AssetCheckExecutionContext, store: ObjectStoreResource, postgres: PostgresResource) -> dg.AssetCheckResult:
        with postgres.engine() as engine, scratch_folder(settings) as scratch:
            rows, violations = contract_of(store.open(), engine, context.partition_key, scratch / "table")
        shown = [{"rule": v.rule, "cases": v.cases, "examples": " | ".join(v.examples)} for v in violations]
        return dg.AssetCheckResult(
            passed=not violations,
            severity=dg.AssetCheckSeverity.ERROR,
            description="; ".join(f"{v.rule}: {v.cases}" for v in violations) or f"{rows} rows keep the contract",
            metadata={"rows": rows, **({"violations": table(shown)} if shown else {})},
        )

    @partitioned_check(
        asset=cleaned,
        name="row_accounting",
        partitions_def=partitions,
        description="Rows in = accepted + quarantined, each counted where it is kept, and every frozen file is used or refused.",
    )
    def row_accounting(
        context: dg.AssetCheckExecutionContext, store: ObjectStoreResource, postgres: PostgresResource
    ) -> dg.AssetCheckResult:
        with postgres.engine() as engine:
            account = account_of(engine, store.open(), context.partition_key)
        return dg.AssetCheckResult(
            passed=account.adds_up,
            severity=dg.AssetCheckSeverity.ERROR,
            description=account.sentence,
            metadata={"rows_in": account.rows_in, "accepted": account.accepted, "quarantined": account.quarantined},
        )

    return [contract, row_accounting]


def cleaned_result(
    done: "Cleaned",
    store: "ObjectStore",
    schema: dg.TableSchema,
    examples: list[dict[str, Any]],
    means: Mapping[str, str],
    files_mean: Mapping[str, str],
    **more: Any,
) -> dg.MaterializeResult[None]:
    """What people see of a cleaned version. `means` and `files_mean`: reason code -> what it means."""
    reasons = [{"reason": code, "rows": rows, "means": means[code]} for code, rows in done.quarantined.items()]
    files = [{"file": name, "reason": code, "means": files_mean[code]} for name, code in done.refused_files.items()]
    return dg.MaterializeResult(
        metadata={
            **more,
            "dataset_version": done.table.version,
            "manifest_sha256": done.table.manifest_sha256,
            "table_sha256": done.table.sha256,
            "git_commit": git_commit(),
            "dagster/uri": store.uri(done.table.prefix),
            "dagster/row_count": done.accepted,
            "dagster/column_schema": schema,
            "rows_in": done.rows_in,
            "rows_accepted": done.accepted,
            "rows_quarantined": sum(done.quarantined.values()),
            "unchanged": done.unchanged,
            **{f"split/{name}": rows for name, rows in done.splits.items()},
            **({"quarantine": table(reasons), "quarantine_examples": table(examples)} if reasons else {}),
            **({"refused_files": table(files)} if files else {}),
        },
        data_version=dg.DataVersion(done.table.sha256),
    )


@contextmanager
def failures(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Trying again cannot help: a sentence instead of a stack trace, and a refusal is told from a breakdown."""
    try:
        yield
    except versions.NothingLeft as error:
        raise refusal(context, str(error)) from None
    except versions.DatasetError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def quarantined_rows(engine: "Engine", system: str, version: str) -> list[dict[str, Any]]:
    """The first few rows of each reason."""
    from sqlalchemy import text

    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT reason_code, source, line, excerpt FROM "
                "(SELECT *, row_number() OVER (PARTITION BY reason_code ORDER BY source, line) AS nth FROM quarantined_row "
                "WHERE system = :s AND version = :v) q WHERE nth <= 3 ORDER BY reason_code, source, line"
            ),
            {"s": system, "v": version},
        )
        return [dict(row) for row in rows.mappings()]


def _quarantined_objects(engine: "Engine", system: str, version: str) -> list[dict[str, Any]]:
    from sqlalchemy import text

    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT key, reason_code, reason FROM landing_object "
                "WHERE system = :s AND version = :v AND state = 'quarantined' ORDER BY key"
            ),
            {"s": system, "v": version},
        )
        return [dict(row) for row in rows.mappings()]


def table(rows: Sequence[dict[str, Any]]) -> dg.TableMetadataValue:
    """Rows as Dagster's own table."""
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
