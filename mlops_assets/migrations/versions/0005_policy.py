"""Disposal policies: the rules with their history, which versions were applied, and what was repaired in which row."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0005_policy.sql").read_text(encoding="utf-8"))
