"""The platform's own PostgreSQL as a Dagster resource over `mlops_assets.database`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from mlops_assets.resources.plain import PlainResource
from mlops_assets.settings import SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Engine


@cache
def _look_at_pooler(url: str) -> None:
    """Once in a process, of those that are right: sensors and schedules say it at every tick of one that is not."""
    from mlops_assets import database

    database.refuse_transaction_pooling(url, "database_url")


class PostgresResource(PlainResource):
    """The database of the ledgers. No address is an error when it is used, not when the definitions load."""

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """An engine that is closed afterwards: sensors tick for months, and a tick leaves no connection behind.

        Raises:
            SettingsError: the URL is empty, or goes through a pooler of transactions.
        """
        from mlops_assets import database

        if not self.settings.database_url:
            raise SettingsError("database_url is not set: start the platform with `mlops up`, or set MLOPS_DATABASE_URL")
        _look_at_pooler(self.settings.database_url)
        engine = database.connect(self.settings.database_url, pool_size=2)
        try:
            yield engine
        finally:
            engine.dispose()
