"""Which label of a comment holds, the review queue, cuts of dataset versions."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0006_review.sql").read_text(encoding="utf-8"))
