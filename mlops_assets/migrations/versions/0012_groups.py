"""What a reader cannot tell apart is one group of the split ledger; what is turned away ends no policy."""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0009"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0012_groups.sql").read_text(encoding="utf-8"))
