"""Drawings of digits by users, and what was deleted on request."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0007_drawn.sql").read_text(encoding="utf-8"))
