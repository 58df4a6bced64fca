"""Digits as Dagster definitions: `dataset` (the pictures seen), `cleaned` (preprocessed), then the common model half: `trained_model`
(retrained), `evaluation_report` (compared with the champion), `registered_model` and `champion` (stored).

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
)
from mlops_assets.ingest.jobs import drawn_definitions
from mlops_assets.lifecycle import dataset as versions
from mlops_assets.lifecycle.assets import EVENT_PICTURE_BYTES, sections_of
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import Settings, load_config
from mlops_assets.systems.digits import data
from mlops_assets.systems.digits.config import DigitsConfig

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform


def build(settings: Settings, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    from mlops_assets.systems.digits.training import SYSTEM

    config = load_config(DigitsConfig, data.SYSTEM, settings.configs)
    parts = [system_definitions(SYSTEM, settings, open_platform, data_assets)]
    if config.drawings:
        parts.append(drawn_definitions(SYSTEM, config.drawings, open_platform))
    return dg.Definitions.merge(*parts)


def data_assets(config: DigitsConfig, settings: Settings) -> DataAssets:
    """`dataset`, `cleaned` and the checks of `cleaned`."""
    dataset = dataset_asset(data.SYSTEM, settings, config.project.owners)

    @cleaned_asset(
        dataset,
        config.project.owners,
        description=(
            "Every digit as the model sees it: white on black, 28 x 28, upright, of one thickness, centred; with its label, writer and "
            "split. Every other picture and file is in quarantine with a reason code."
        ),
        kinds={"python", "parquet", "postgres"},
        rules=data.__name__,
    )
    def cleaned(context: dg.AssetExecutionContext, store: ObjectStoreResource, postgres: PostgresResource) -> dg.MaterializeResult[None]:
        objects = store.open()
        with postgres.engine() as engine, scratch_folder(settings) as scratch, failures(context):
            section = sections_of(context, engine, config).dataset
            manifest = versions.read_manifest(engine, objects, data.SYSTEM, context.partition_key)
            done = data.clean(engine, objects, manifest, section, scratch / "cleaned", threads=settings.threads)
            examples = quarantined_rows(engine, data.SYSTEM, context.partition_key)
            sheet = data.contact_sheet(objects, done.table, scratch / "sheet", EVENT_PICTURE_BYTES)
        return cleaned_result(done, objects, _SCHEMA, examples, data.ROW_REASONS, data.FILE_REASONS, **_shown(done, sheet))

    rules = "Unique ids, labels 0 to 9, known splits and origins, no blank picture, no writer in two splits."
    checks = cleaned_checks(data.SYSTEM, settings, rules=rules, contract_of=data.contract, account_of=data.account)
    return [dataset, cleaned, *checks]


def _shown(done: data.Cleaned, sheet: bytes) -> dict[str, Any]:
    """What people see of digits beyond what every cleaned version shows: the pictures first, as they came and, below, as they are read."""
    return {
        "contact_sheet": dg.MetadataValue.md(f"![contact sheet](data:image/png;base64,{base64.b64encode(sheet).decode()})"),
        **{f"label/{name}": rows for name, rows in done.labels.items()},
        **{f"origin/{name}": rows for name, rows in done.origins.items()},
    }


_SCHEMA = dg.TableSchema(
    columns=[
        dg.TableColumn(
            "id",
            "string",
            description="SHA-256 of the pixels, or of the drawing's file",
            constraints=dg.TableColumnConstraints(nullable=False, unique=True),
        ),
        dg.TableColumn("image", "binary", description="the picture as it came"),
        dg.TableColumn("prepared", "binary", description="784 bytes: what the model sees"),
        dg.TableColumn("label", "int8", description="the digit"),
        dg.TableColumn("group", "string", description="the writer where one is known; never in two splits"),
        dg.TableColumn("split", "string", description="train, validation or holdout, by the split ledger"),
        dg.TableColumn("origin", "string", description="mnist, emnist, drawn or users"),
        dg.TableColumn("path", "string", description="where it stands in the version"),
    ]
)
