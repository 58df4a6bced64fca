"""What people were told last: a failed run, a live performance below its limit."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0003_alert.sql").read_text(encoding="utf-8"))
