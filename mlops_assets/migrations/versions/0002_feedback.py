"""What answers said, and the truth when it arrives."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0002_feedback.sql").read_text(encoding="utf-8"))
