"""Users who were forgotten lately."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute((Path(__file__).parent.parent / "0008_forgotten_writer.sql").read_text(encoding="utf-8"))
