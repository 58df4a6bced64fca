"""Reports are signed."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0009_signed_report.sql").read_text(encoding="utf-8"))
