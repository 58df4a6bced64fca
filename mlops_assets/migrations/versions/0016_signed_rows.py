"""Attempts and the values that assets hand on are signed; cleaned tables have a record."""

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0016_signed_rows.sql").read_text(encoding="utf-8"))
