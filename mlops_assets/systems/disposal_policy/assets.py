"""Disposal policies as Dagster definitions: the nightly reading, `dataset`, `cleaned` and `policy` (the table with its history).

Belongs here: the shells, and what people see in their metadata. Does not belong here: any rule (`rows.py`, `data.py`, `history.py`,
`collect.py`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlops_assets.ingest import sheet
from mlops_assets.ingest.assets import cleaned_checks, cleaned_result, dataset_asset, failures, quarantined_rows, table
from mlops_assets.ingest.objects import LandingError
from mlops_assets.ingest.rows import find_cleaned
from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import dataset_versions, key_of, sections_of
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import Settings, git_commit, read_yaml, validate
from mlops_assets.sources import code_version
from mlops_assets.systems.disposal_policy import collect, data, history, rows
from mlops_assets.systems.disposal_policy.config import STANDARD_COLUMNS, PolicyConfig

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform


class ApplyConfig(dg.Config):
    accept_loss: bool = Field(
        default=False, description="The sheet really has that many fewer rows: apply it although a broken one looks so."
    )


def read_config(settings: Settings) -> PolicyConfig:
    path = settings.configs / f"{data.SYSTEM}.yaml"
    return validate(PolicyConfig, read_yaml(path), str(path))


def build(settings: Settings, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    """Everything of this system: its assets, the nightly reading and the landing sensor.

    Raises:
        SettingsError: configs/disposal_policy.yaml is wrong; the message says where.
    """
    config = read_config(settings)
    layers = [key_of(data.SYSTEM, "", layer) for layer in ("dataset", "cleaned", "policy")]
    pipeline = dg.define_asset_job(
        f"{data.SYSTEM}_pipeline",
        selection=dg.AssetSelection.assets(*layers),
        description="Sheet to policies: what a new dataset version starts.",
        tags={"mlops/system": data.SYSTEM},
    )
    reading = collect_job(config, settings)
    return dg.Definitions(
        assets=data_assets(config, settings),
        jobs=[pipeline, reading],
        sensors=[landing_sensor(data.SYSTEM, f"{data.SYSTEM}_pipeline", settings, lambda: read_config(settings))],
        schedules=[
            dg.ScheduleDefinition(
                name=f"{data.SYSTEM}_collect_nightly",
                job=reading,
                cron_schedule="0 0 * * *",
                execution_timezone="Asia/Seoul",
                default_status=dg.DefaultScheduleStatus.RUNNING,
            )
        ],
    )


def collect_job(config: PolicyConfig, settings: Settings) -> dg.JobDefinition:
    """Reads the sheet and lands it; the landing sensor starts what follows."""

    @dg.op(name=f"{data.SYSTEM}_read_sheet")
    def read_sheet(context: dg.OpExecutionContext, store: ObjectStoreResource, postgres: PostgresResource) -> None:
        try:
            with postgres.engine() as engine, scratch_folder(settings) as scratch:
                done = collect.collect(engine, store.open(), settings, config, scratch)
        except (sheet.SheetError, LandingError) as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None
        context.log.info(f"landed {done.version} ({done.rows} rows): {done.why}" if done.version else f"nothing landed: {done.why}")
        context.add_output_metadata({"dataset_version": done.version or "none", "rows": done.rows, "why": done.why})

    @dg.job(
        name=f"{data.SYSTEM}_collect",
        description="Read the sheet; when it differs from the newest version, land it. A failed reading changes nothing.",
        tags={"mlops/system": data.SYSTEM},
    )
    def collect_sheet() -> None:
        read_sheet()

    return collect_sheet


def data_assets(config: PolicyConfig, settings: Settings) -> list[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    """`dataset`, `cleaned`, `policy` and the checks of `cleaned`."""
    dataset = dataset_asset(data.SYSTEM, settings, config.project.owners)
    partitions = dataset_versions(data.SYSTEM)

    @dg.asset(
        key=key_of(data.SYSTEM, "", "cleaned"),
        deps=[dataset],
        description="One row per policy, unified; every repair is named, every other row is in quarantine with a reason code.",
        kinds={"pyspark", "parquet", "postgres"},
        code_version=code_version(data.__name__),
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
            done = data.clean(engine, objects, manifest, sections_of(context, engine, config).cleaning, spark.engine(), scratch)
            examples = quarantined_rows(engine, data.SYSTEM, context.partition_key)
        found = [{"rule": rule, "cells": cells, "means": rows.FINDINGS[rule]} for rule, cells in done.findings.items()]
        more: dict[str, Any] = {"dirty_rows": objects.uri(data.report_key(manifest)), **({"findings": table(found)} if found else {})}
        return cleaned_result(done, objects, _SCHEMA, examples, data.ROW_REASONS, data.FILE_REASONS, **more)

    @dg.asset(
        key=key_of(data.SYSTEM, "", "policy"),
        deps=[cleaned],
        description="The table `policy`: what holds now and what held when. Only new, changed and vanished policies are written.",
        kinds={"postgres"},
        code_version=code_version(history.__name__),
        group_name=data.SYSTEM,
        partitions_def=partitions,
        owners=list(config.project.owners) or None,
    )
    def policy(
        context: dg.AssetExecutionContext, config: ApplyConfig, store: ObjectStoreResource, postgres: PostgresResource
    ) -> dg.MaterializeResult[None]:
        objects = store.open()
        with postgres.engine() as engine, failures(context):
            manifest, found = find_cleaned(engine, objects, data.SYSTEM, context.partition_key)
            done = history.apply(
                engine, manifest, found, data.read_policies(objects, found), max_loss_share=max_loss_share, accept_loss=config.accept_loss
            )
        context.log.info(done.sentence)
        return dg.MaterializeResult(
            metadata={
                "dataset_version": done.version,
                "manifest_sha256": manifest.sha256,
                "table_sha256": found.sha256,
                "git_commit": git_commit(),
                "dagster/table_name": "policy",
                "dagster/row_count": found.rows,
                "applied": done.superseded_by is None,
                "new": done.new,
                "changed": done.changed,
                "gone": done.gone,
                "unchanged": done.unchanged,
                "kept": done.kept,
                "why": done.sentence,
            },
            data_version=dg.DataVersion(found.sha256),
        )

    max_loss_share = config.history.max_loss_share
    text = "Days joined by + in the week's order, times to 24:00, known 시도, unique keys, a day for some kind of waste."
    checks = cleaned_checks(data.SYSTEM, settings, rules=text, contract_of=data.contract, account_of=data.account)
    return [dataset, cleaned, policy, *checks]


_SCHEMA = dg.TableSchema(
    columns=[dg.TableColumn(name, "int64" if name == "line" else "string", description=text) for name, text in data.EXTRA.items()]
    + [dg.TableColumn(name, "string", description=column) for name, column in STANDARD_COLUMNS.items()]
)
