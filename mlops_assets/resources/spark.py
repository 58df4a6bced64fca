"""PySpark as a Dagster resource over `SparkEngine`: embedded Sail, a Spark Connect server, or a JVM master; the same code runs on each.

Belongs here: where a session comes from and where its files may lie. Does not belong here: what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.resources.plain import PlainResource

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class SparkEngine:
    """Where Spark runs.

    Attributes:
        remote: `sc://host:port` (Spark Connect), `spark://host:port` or `local[n]` (JVM), or None for the embedded engine (Sail).
    """

    remote: str | None = None

    @property
    def sees_local_files(self) -> bool:
        """Whether the engine reads this machine's files; if not, what it is to read must lie in the object store."""
        return self.remote is None or self.remote.startswith("local")

    @contextmanager
    def session(self) -> Iterator[SparkSession]:
        """A session of its own, stopped afterwards; the embedded engine starts in this process in a second and stops with it."""
        if self.remote is None:
            from pysail.spark import SparkConnectServer

            server = SparkConnectServer(ip="127.0.0.1", port=0)
            server.start(background=True)
            try:
                host, port = server.listening_address
                with _session({"spark.remote": f"sc://{host}:{port}"}) as session:
                    yield session
            finally:
                server.stop()
        else:
            name = "spark.remote" if self.remote.startswith("sc://") else "spark.master"
            # On one machine, Spark's 200 shuffle partitions would be 200 tiny tasks.
            local = {"spark.sql.shuffle.partitions": str(os.cpu_count() or 1), "spark.ui.enabled": "false"} if self.sees_local_files else {}
            with _session({name: self.remote, **local}) as session:
                yield session


@contextmanager
def _session(config: dict[str, str]) -> Iterator[SparkSession]:
    from dagster_pyspark import PySparkResource

    with PySparkResource.from_resource_context_cm(dg.build_init_resource_context(config={"spark_config": _options(config)})) as resource:
        session: SparkSession = resource.spark_session
        try:
            yield session
        finally:
            session.stop()


def _options(config: dict[str, str]) -> dict[str, str]:
    # UTC whatever the machine's zone.
    return {**config, "spark.sql.session.timeZone": "UTC"}


class SparkResource(PlainResource):
    """Spark for cleaning. Loading the definitions imports neither pyspark nor Sail."""

    def engine(self) -> SparkEngine:
        return SparkEngine(self.settings.spark_remote or None)
