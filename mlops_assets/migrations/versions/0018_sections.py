"""A run keeps the sections of the configuration that it was asked for with."""

from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0016"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0018_sections.sql").read_text(encoding="utf-8"))
