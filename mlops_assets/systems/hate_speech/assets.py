"""hate_speech as Dagster definitions: `dataset` (frozen manifest), `cleaned` (Parquet, the tables of comments), then the common model half.

Belongs here: the shell of `cleaned`, and what people see in its metadata. Does not belong here: any rule (`data.py`, `ingest/texts.py`),
anything of the model half (`lifecycle/assets.py`).
"""

from collections.abc import Callable
from functools import partial
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
from mlops_assets.ingest.jobs import cut_definitions, score_definitions
from mlops_assets.ingest.sensors import comments_reconciliation, comments_sensor
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import sections_of
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import Settings, load_config
from mlops_assets.systems.hate_speech import data
from mlops_assets.systems.hate_speech.config import HateSpeechConfig

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform


def build(settings: Settings, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    from mlops_assets.systems.hate_speech.training import SYSTEM

    config = load_config(HateSpeechConfig, data.SYSTEM, settings.configs)
    parts = [system_definitions(SYSTEM, settings, open_platform, data_assets)]
    if config.comments:
        parts.append(dg.Definitions(sensors=[comments_sensor(data.SYSTEM, config.comments, settings)]))
        parts.append(comments_reconciliation(data.SYSTEM, config.comments, settings))
    if config.cuts:
        parts.append(cut_definitions(data.SYSTEM, config.cuts, settings))
    if config.review:
        parts.append(score_definitions(SYSTEM, config.review, open_platform))
    return dg.Definitions.merge(*parts)


def data_assets(config: HateSpeechConfig, settings: Settings) -> DataAssets:
    """`dataset`, `cleaned` and the checks of `cleaned`."""
    dataset = dataset_asset(data.SYSTEM, settings, config.project.owners)

    @cleaned_asset(
        dataset,
        config.project.owners,
        description="One row per accepted comment with its labels and split; every other row is in quarantine with a reason code.",
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
        return cleaned_result(done, objects, _schema(config), examples, data.ROW_REASONS, data.FILE_REASONS)

    rules = "Unique ids, known labels in their order, clean only alone, known splits, no text in two splits."
    contract = partial(data.contract, section=config.dataset)
    checks = cleaned_checks(data.SYSTEM, settings, rules=rules, contract_of=contract, account_of=data.account)
    return [dataset, cleaned, *checks]


def _schema(config: HateSpeechConfig) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn("id", "string", description="source#number", constraints=dg.TableColumnConstraints(nullable=False, unique=True)),
            dg.TableColumn("source", "string", description="where the comment comes from: a data set's table, or the application's"),
            dg.TableColumn("number", "int64", description="its id there; of a data set's file, the line"),
            dg.TableColumn("text", "string", description="the comment, personal numbers and addresses masked"),
            dg.TableColumn("labels", "list<string>", description=", ".join(config.dataset.labels)),
            dg.TableColumn("names", "string", description="the groups that the text names, whether hatefully or not"),
            dg.TableColumn("personal", "bool", description="whether it is about a person whom readers know; nothing learns it"),
            dg.TableColumn("split", "string", description="train, validation or holdout, by the split ledger"),
            dg.TableColumn("file", "string", description="the file it came from"),
        ]
    )
