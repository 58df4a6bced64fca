"""Sentiment as Dagster definitions: `dataset` (frozen manifest) and `cleaned` (Parquet and the table `review`), then the common model half.

Belongs here: the data assets' shells, and what people see in their metadata. Does not belong here: any rule (`data.py`,
`lifecycle/dataset.py`), anything of the model half (`lifecycle/assets.py`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.ingest.assets import code_version, dataset_asset, failures, quarantined_rows, scratch_folder, table
from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import dataset_versions, key_of, model_lifecycle
from mlops_assets.lifecycle.checks import partitioned_check
from mlops_assets.lifecycle.jobs import lifecycle_jobs
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import Settings, git_commit, load_config
from mlops_assets.systems.sentiment import data
from mlops_assets.systems.sentiment.config import SentimentConfig

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform


def build(settings: Settings, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    """Everything of this system: its data assets, the common model half, its jobs and its landing sensor.

    Raises:
        SettingsError: configs/sentiment.yaml is wrong; the message says where.
    """
    from mlops_assets.systems.sentiment.training import SYSTEM

    config = load_config(SentimentConfig, data.SYSTEM, settings.configs)
    model = model_lifecycle(SYSTEM, config, open_platform, owners=config.project.owners)
    return dg.Definitions(
        assets=[*data_assets(config, settings), *model.assets, *model.checks],
        jobs=lifecycle_jobs(SYSTEM, config, open_platform),
        sensors=[landing_sensor(data.SYSTEM, f"{data.SYSTEM}_pipeline", settings)],
    )


def data_assets(config: SentimentConfig, settings: Settings) -> list[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    """`dataset`, `cleaned` and the checks of `cleaned`."""
    dataset = dataset_asset(data.SYSTEM, settings, config.project.owners)
    partitions = dataset_versions(data.SYSTEM)

    @dg.asset(
        key=key_of(data.SYSTEM, "", "cleaned"),
        deps=[dataset],
        description="One row per accepted review with its split; every other row is in quarantine with a reason code.",
        kinds={"pyspark", "parquet", "postgres"},
        code_version=code_version(Path(data.__file__)),
        group_name=data.SYSTEM,
        partitions_def=partitions,
        owners=list(config.project.owners) or None,
    )
    def cleaned(
        context: dg.AssetExecutionContext, store: ObjectStoreResource, postgres: PostgresResource, spark: SparkResource
    ) -> dg.MaterializeResult[None]:
        objects = store.open()
        with postgres.engine() as engine, scratch_folder(settings) as scratch, failures(context):
            manifest = versions.read_manifest(engine, objects, data.SYSTEM, context.partition_key)
            done = data.clean(engine, objects, manifest, config.dataset, spark.engine(), scratch, max_line_bytes=settings.max_line_bytes)
            examples = quarantined_rows(engine, data.SYSTEM, context.partition_key)
        reasons = [{"reason": code, "rows": rows, "means": data.ROW_REASONS[code]} for code, rows in done.quarantined.items()]
        files = [{"file": name, "reason": code, "means": data.FILE_REASONS[code]} for name, code in done.refused_files.items()]
        return dg.MaterializeResult(
            metadata={
                "dataset_version": manifest.version,
                "manifest_sha256": manifest.sha256,
                "table_sha256": done.table.sha256,
                "git_commit": git_commit(),
                "dagster/uri": objects.uri(done.table.prefix),
                "dagster/table_name": "review",
                "dagster/row_count": done.accepted,
                "dagster/column_schema": _SCHEMA,
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

    @partitioned_check(
        asset=key_of(data.SYSTEM, "", "cleaned"),
        name="contract",
        partitions_def=partitions,
        description="Unique ids, labels 0 and 1, known splits, no empty text, no text in two splits.",
    )
    def contract(context: dg.AssetCheckExecutionContext, store: ObjectStoreResource, postgres: PostgresResource) -> dg.AssetCheckResult:
        with postgres.engine() as engine, scratch_folder(settings) as scratch:
            found = data.load_cleaned(store.open(), engine, context.partition_key, scratch / "table")
            violations = data.check_contract(data.read_table(found))
        shown = [{"rule": v.rule, "cases": v.cases, "examples": " | ".join(v.examples)} for v in violations]
        return dg.AssetCheckResult(
            passed=not violations,
            severity=dg.AssetCheckSeverity.ERROR,
            description="; ".join(f"{v.rule}: {v.cases}" for v in violations) or f"{found.rows} rows keep the contract",
            metadata={"rows": found.rows, **({"violations": table(shown)} if shown else {})},
        )

    @partitioned_check(
        asset=key_of(data.SYSTEM, "", "cleaned"),
        name="row_accounting",
        partitions_def=partitions,
        description="Rows in = accepted + quarantined, in the files and in the database.",
    )
    def row_accounting(
        context: dg.AssetCheckExecutionContext, store: ObjectStoreResource, postgres: PostgresResource
    ) -> dg.AssetCheckResult:
        with postgres.engine() as engine:
            account = data.account(engine, store.open(), context.partition_key)
        return dg.AssetCheckResult(
            passed=account.adds_up,
            severity=dg.AssetCheckSeverity.ERROR,
            description=account.sentence,
            metadata={"rows_in": account.rows_in, "accepted": account.accepted, "quarantined": account.quarantined},
        )

    return [dataset, cleaned, contract, row_accounting]


_SCHEMA = dg.TableSchema(
    columns=[
        dg.TableColumn(
            "id", "string", description="the review's number", constraints=dg.TableColumnConstraints(nullable=False, unique=True)
        ),
        dg.TableColumn("document", "string", description="the review's text"),
        dg.TableColumn("label", "int8", description=", ".join(f"{number} {name}" for number, name in data.LABELS.items())),
        dg.TableColumn("split", "string", description="train, validation or holdout, by the split ledger"),
        dg.TableColumn("source", "string", description="the file it came from"),
    ]
)
