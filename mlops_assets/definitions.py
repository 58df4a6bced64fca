"""The one assembler: tests, CLI and production all build their Definitions here.

Belongs here: putting systems, resources and the executor together. Does not belong here: any asset. Loading this connects to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.ingest.sensors import reconciliation
from mlops_assets.lifecycle.sensors import mirror_sensor
from mlops_assets.monitoring.sensors import failure_sensor, stray_sensor
from mlops_assets.resources.console import LOGGERS
from mlops_assets.resources.executor import run_executor
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import Settings, load_settings
from mlops_assets.systems import DATA_SYSTEMS, SYSTEMS

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform


def platform_opener(settings: Settings) -> Callable[[], Platform]:
    """A function that connects to the platform's services once, when first called."""

    @cache
    def open_platform() -> Platform:
        from mlops_assets.lifecycle.pipeline import connect

        return connect(settings)

    return open_platform


def build_defs(settings: Settings | None = None, overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Definitions for `settings` (default: the environment's).

    Args:
        overrides: resource name -> resource, in place of the platform's own.
    """
    settings = settings or load_settings()
    open_platform = platform_opener(settings)
    resources: dict[str, Any] = {
        "store": ObjectStoreResource.of(settings),
        "postgres": PostgresResource.of(settings),
        "spark": SparkResource.of(settings),
        **(overrides or {}),
    }
    systems = [import_module(f"mlops_assets.systems.{name}.assets").build(settings, open_platform) for name in (*SYSTEMS, *DATA_SYSTEMS)]
    shared = dg.Definitions(
        sensors=[mirror_sensor(SYSTEMS, open_platform), failure_sensor(open_platform), stray_sensor()],
        resources=resources,
        executor=run_executor,
        loggers=LOGGERS,
    )
    return dg.Definitions.merge(*systems, *[reconciliation(name, (*SYSTEMS, *DATA_SYSTEMS)) for name in (*SYSTEMS, *DATA_SYSTEMS)], shared)


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs()
