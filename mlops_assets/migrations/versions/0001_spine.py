"""The spine: landing ledger, dataset versions, split ledger, attempts, reports, receipts, promotions, outbox, answers."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    # The driver's own cursor, without parameters: `%` in the SQL is then only a character.
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0001_spine.sql").read_text(encoding="utf-8"))
