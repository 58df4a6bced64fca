"""Sentiment as Dagster definitions: `dataset` (frozen manifest) and `cleaned` (Parquet and the table `review`), then the common model half.

Belongs here: the data assets' shells, and what people see in their metadata. Does not belong here: any rule (`data.py`,
`lifecycle/dataset.py`), anything of the model half (`lifecycle/assets.py`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.ingest.assets import (
    cleaned_checks,
    cleaned_result,
    code_version,
    dataset_asset,
    failures,
    quarantined_rows,
)
from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import dataset_versions, key_of, model_lifecycle
from mlops_assets.lifecycle.jobs import lifecycle_jobs
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.monitoring.sensors import live_sensors
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import Settings, load_config
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
        sensors=[
            landing_sensor(data.SYSTEM, f"{data.SYSTEM}_pipeline", settings),
            *live_sensors(data.SYSTEM, config.monitoring, open_platform),
        ],
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
        return cleaned_result(done, objects, _SCHEMA, examples, data.ROW_REASONS, data.FILE_REASONS, **{"dagster/table_name": "review"})

    rules = "Unique ids, labels 0 and 1, known splits, no empty text, no text in two splits."
    checks = cleaned_checks(data.SYSTEM, settings, rules=rules, contract_of=data.contract, account_of=data.account)
    return [dataset, cleaned, *checks]


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
