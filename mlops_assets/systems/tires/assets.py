"""Tires as Dagster definitions: `dataset` (frozen manifest) and `cleaned` (Parquet shards of photos), then the common model half.

Belongs here: the shell of `cleaned` and of its checks, and what people see in their metadata. Does not belong here: any rule (`data.py`,
`lifecycle/dataset.py`), what all systems' data assets share (`ingest/assets.py`), anything of the model half (`lifecycle/assets.py`).
"""

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
    table,
)
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import EVENT_PICTURE_BYTES, sections_of
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import Settings
from mlops_assets.systems.tires import data
from mlops_assets.systems.tires.config import TiresConfig

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.store import ObjectStore


def build(settings: Settings, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    from mlops_assets.systems.tires.training import SYSTEM

    return system_definitions(SYSTEM, settings, open_platform, data_assets)


def data_assets(config: TiresConfig, settings: Settings) -> DataAssets:
    """`dataset`, `cleaned` and the checks of `cleaned`."""
    dataset = dataset_asset(data.SYSTEM, settings, config.project.owners)

    @cleaned_asset(
        dataset,
        config.project.owners,
        description="One row per accepted photo with its label, group and split; every other file is in quarantine with a reason code.",
        kinds={"python", "parquet", "postgres"},
        rules=data.__name__,
    )
    def cleaned(context: dg.AssetExecutionContext, store: ObjectStoreResource, postgres: PostgresResource) -> dg.MaterializeResult[None]:
        objects = store.open()
        with postgres.engine() as engine, scratch_folder(settings) as scratch, failures(context):
            manifest = versions.read_manifest(engine, objects, data.SYSTEM, context.partition_key)
            done = data.clean(engine, objects, manifest, sections_of(context, engine, config).dataset, scratch, threads=settings.threads)
            examples = quarantined_rows(engine, data.SYSTEM, context.partition_key)
        return cleaned_result(done, objects, _SCHEMA, examples, data.ROW_REASONS, data.FILE_REASONS, **_shown(objects, done))

    rules = "Unique ids that are their pictures' digests, labels 0 and 1, known splits, no group in two splits."
    checks = cleaned_checks(data.SYSTEM, settings, rules=rules, contract_of=data.contract, account_of=data.account)
    return [dataset, cleaned, *checks]


def _shown(store: "ObjectStore", done: data.Cleaned) -> dict[str, Any]:
    """What people see of photos beyond what every cleaned version shows: the photos first."""
    sheet = base64.b64encode(data.contact_sheet(store, done.table, EVENT_PICTURE_BYTES)).decode()
    alike = [{"photo": one, "is like": other} for one, other in done.alike]
    return {
        "contact_sheet": dg.MetadataValue.md(f"![contact sheet](data:image/png;base64,{sheet})"),
        **{f"label/{name}": rows for name, rows in done.labels.items()},
        **{f"near_duplicates/{name}": count for name, count in done.near_duplicates.items()},
        **({"near_duplicates_across_labels": table(alike)} if alike else {}),
    }


_SCHEMA = dg.TableSchema(
    columns=[
        dg.TableColumn(
            "id", "string", description="SHA-256 of the image", constraints=dg.TableColumnConstraints(nullable=False, unique=True)
        ),
        dg.TableColumn("image", "binary", description="the file's own bytes"),
        dg.TableColumn("label", "int8", description=", ".join(f"{number} {name}" for number, name in data.LABELS_KO.items())),
        dg.TableColumn("group", "string", description="photos of one piece, or near duplicates: never in two splits"),
        dg.TableColumn("split", "string", description="train, validation or holdout, by the split ledger"),
        dg.TableColumn("path", "string", description="the file it came from"),
        dg.TableColumn("width", "int32", description="pixels, as decoded"),
        dg.TableColumn("height", "int32", description="pixels, as decoded"),
    ]
)
