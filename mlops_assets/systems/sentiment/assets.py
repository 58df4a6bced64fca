"""Sentiment as Dagster definitions: `dataset` (frozen manifest) and `cleaned` (Parquet and the table `review`), then the common model half.

Belongs here: the data assets' shells, and what people see in their metadata. Does not belong here: any rule (`data.py`,
`lifecycle/dataset.py`), anything of the model half (`lifecycle/assets.py`).
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import dataset_versions, key_of, mark, model_lifecycle
from mlops_assets.lifecycle.checks import partitioned_check
from mlops_assets.lifecycle.jobs import lifecycle_jobs
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import Settings, git_commit, load_config
from mlops_assets.systems.sentiment import data
from mlops_assets.systems.sentiment.config import SentimentConfig

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets.lifecycle.pipeline import Platform

SHOWN = 20


class DatasetConfig(dg.Config):
    """How a version that is frozen already is verified."""

    deep: bool = Field(default=True, description="Read every byte again; false: only that each object is there with its size.")


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
    owners = list(config.project.owners) or None
    partitions = dataset_versions(data.SYSTEM)

    @dg.asset(
        key=key_of(data.SYSTEM, "", "dataset"),
        description="The bytes of one dataset version, frozen: a manifest over copies that nothing changes. Again, it is only verified.",
        kinds={"parquet", "postgres"},
        code_version=_code_version(Path(versions.__file__)),
        group_name=data.SYSTEM,
        partitions_def=partitions,
        owners=owners,
    )
    def dataset(
        context: dg.AssetExecutionContext, config: DatasetConfig, store: ObjectStoreResource, postgres: PostgresResource
    ) -> dg.MaterializeResult[None]:
        with postgres.engine() as engine, _scratch(settings) as scratch, _failures(context):
            manifest = versions.freeze(
                engine,
                store.open(),
                data.SYSTEM,
                context.partition_key,
                max_object_bytes=settings.max_object_bytes,
                scratch=scratch,
                deep=config.deep,
            )
            quarantined = _quarantined_objects(engine, context.partition_key)
        return dg.MaterializeResult(
            metadata={
                "dataset_version": manifest.version,
                "manifest_sha256": manifest.sha256,
                "parent": manifest.parent or "none",
                "git_commit": git_commit(),
                "dagster/uri": store.open().uri(manifest.key),
                "dagster/row_count": len(manifest.entries),
                "bytes": manifest.size,
                "objects": _table([{"key": e.key, "bytes": e.size, "sha256": e.sha256[:12]} for e in manifest.entries[:SHOWN]]),
                "quarantined_objects": len(quarantined),
                **({"quarantine": _table(quarantined[:SHOWN])} if quarantined else {}),
            },
            data_version=dg.DataVersion(manifest.sha256),
        )

    @dg.asset(
        key=key_of(data.SYSTEM, "", "cleaned"),
        deps=[dataset],
        description="One row per accepted review with its split; every other row is in quarantine with a reason code.",
        kinds={"pyspark", "parquet", "postgres"},
        code_version=_code_version(Path(data.__file__)),
        group_name=data.SYSTEM,
        partitions_def=partitions,
        owners=owners,
    )
    def cleaned(
        context: dg.AssetExecutionContext, store: ObjectStoreResource, postgres: PostgresResource, spark: SparkResource
    ) -> dg.MaterializeResult[None]:
        objects = store.open()
        with postgres.engine() as engine, _scratch(settings) as scratch, _failures(context):
            manifest = versions.read_manifest(engine, objects, data.SYSTEM, context.partition_key)
            done = data.clean(engine, objects, manifest, config.dataset, spark.engine(), scratch, max_line_bytes=settings.max_line_bytes)
            examples = _quarantined_rows(engine, context.partition_key)
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
                **({"quarantine": _table(reasons), "quarantine_examples": _table(examples)} if reasons else {}),
                **({"refused_files": _table(files)} if files else {}),
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
        with postgres.engine() as engine, _scratch(settings) as scratch:
            table = data.load_cleaned(store.open(), engine, context.partition_key, scratch / "table")
            violations = data.check_contract(data.read_table(table))
        shown = [{"rule": v.rule, "cases": v.cases, "examples": " | ".join(v.examples)} for v in violations]
        return dg.AssetCheckResult(
            passed=not violations,
            severity=dg.AssetCheckSeverity.ERROR,
            description="; ".join(f"{v.rule}: {v.cases}" for v in violations) or f"{table.rows} rows keep the contract",
            metadata={"rows": table.rows, **({"violations": _table(shown)} if shown else {})},
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


def _code_version(*sources: Path) -> str:
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _failures(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Trying again cannot help: a sentence instead of a stack trace, and a refusal is told from a breakdown."""
    try:
        yield
    except versions.NothingLeft as error:
        mark(context, "refused")
        raise dg.Failure(description=str(error), allow_retries=False) from None
    except versions.DatasetError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


@contextmanager
def _scratch(settings: Settings) -> Iterator[Path]:
    """A folder under the home (not /tmp, which may be small), gone afterwards."""
    parent = settings.home / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _quarantined_objects(engine: "Engine", version: str) -> list[dict[str, Any]]:
    from sqlalchemy import text

    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT key, reason_code, reason FROM landing_object "
                "WHERE system = :s AND version = :v AND state = 'quarantined' ORDER BY key"
            ),
            {"s": data.SYSTEM, "v": version},
        )
        return [dict(row) for row in rows.mappings()]


def _quarantined_rows(engine: "Engine", version: str) -> list[dict[str, Any]]:
    """The first few rows of each reason."""
    from sqlalchemy import text

    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT reason_code, source, line, excerpt FROM "
                "(SELECT *, row_number() OVER (PARTITION BY reason_code ORDER BY source, line) AS nth FROM quarantined_row "
                "WHERE system = :s AND version = :v) q WHERE nth <= 3 ORDER BY reason_code, source, line"
            ),
            {"s": data.SYSTEM, "v": version},
        )
        return [dict(row) for row in rows.mappings()]


def _table(rows: Sequence[dict[str, Any]]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
