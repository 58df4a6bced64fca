"""Holes are ranges; texts of what is deleted go."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0013_comment_columns.sql").read_text(encoding="utf-8"))
