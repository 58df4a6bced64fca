"""Comments: ledger, holes, the comments as they stand, labels."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0004_comment.sql").read_text(encoding="utf-8"))
