"""Names match a pattern; a number or a bundle that a forged row took is no longer taken."""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0013"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0015_names.sql").read_text(encoding="utf-8"))
