"""Sentiment as Dagster definitions: `dataset` (frozen manifest) and `cleaned` (Parquet and the table `review`), then the common model half.

Belongs here: the data assets' shells, and what people see in their metadata. Does not belong here: any rule (`data.py`,
`lifecycle/dataset.py`), anything of the model half (`lifecycle/assets.py`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.ingest.assets import (
    DataAssets,
    cleaned_asset,
    cleaned_checks,
    cleaned_result,
    dataset_asset,
    failures,
    quarantined_rows,
    system_definitions,
)
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import sections_of
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import Settings
from mlops_assets.systems.sentiment import data
from mlops_assets.systems.sentiment.config import SentimentConfig

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform


def build(settings: Settings, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    from mlops_assets.systems.sentiment.training import SYSTEM

    return system_definitions(SYSTEM, settings, open_platform, data_assets)


def data_assets(config: SentimentConfig, settings: Settings) -> DataAssets:
    """`dataset`, `cleaned` and the checks of `cleaned`."""
    dataset = dataset_asset(data.SYSTEM, settings, config.project.owners)

    @cleaned_asset(
        dataset,
        config.project.owners,
        description="One row per accepted review with its split; every other row is in quarantine with a reason code.",
        kinds={"pyspark", "parquet", "postgres"},
        rules=data.__name__,
    )
    def cleaned(
        context: dg.AssetExecutionContext, store: ObjectStoreResource, postgres: PostgresResource, spark: SparkResource
    ) -> dg.MaterializeResult[None]:
        objects = store.open()
        with postgres.engine() as engine, scratch_folder(settings) as scratch, failures(context):
            section = sections_of(context, engine, config).dataset
            manifest = versions.read_manifest(engine, objects, data.SYSTEM, context.partition_key)
            done = data.clean(engine, objects, manifest, section, spark.engine(), scratch, max_line_bytes=settings.max_line_bytes)
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
