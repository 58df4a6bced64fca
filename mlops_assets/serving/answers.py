"""Which bundle gave which answer: one row per answered request, written behind the answers, never in their way.

Rows wait in memory for a moment, go to PostgreSQL in batches, and to a file while the database is away, which is read back when it
returns. Belongs here: this recording. Does not belong here: reading it (`lifecycle/trace.py`), the texts themselves (they are not kept).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = logging.getLogger("mlops.serving")

FLUSH_SECONDS = 0.5
BATCH_ROWS = 1_000
#: Rows that wait in memory while the database hangs; what comes beyond it is counted as lost, loudly.
BUFFER_ROWS = 100_000
#: The file stops growing here (about half a million answers); what comes then is lost too.
SPOOL_BYTES = 100 * 1024**2


class Answer(NamedTuple):
    """A row of the table `answer`. `at` is ISO 8601, UTC; `labels` a JSON list of what was said, one per input."""

    request_id: str
    system: str
    version: int
    bundle_sha256: str
    inputs: int
    at: str
    labels: str | None = None


class AnswerLog:
    """Append-only and asynchronous. `record` never blocks and never raises.

    Args:
        connect: gives the engine; called when there is something to write.
        spool: the file for the time that the database is away.
        on_lost: called with how many rows could be kept nowhere.
    """

    def __init__(self, connect: Callable[[], Engine], spool: Path, on_lost: Callable[[int], None] | None = None) -> None:
        self._connect = connect
        self._spool = spool
        self._on_lost = on_lost
        self._rows: list[Answer] = []
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._away = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def record(self, answer: Answer) -> None:
        with self._lock:
            waiting = len(self._rows)
            if waiting < BUFFER_ROWS:
                self._rows.append(answer)
        if waiting >= BUFFER_ROWS:
            self._lost(1)
        elif waiting >= BATCH_ROWS:
            self._wake.set()

    def stop(self) -> None:
        """Write what waits: to the database, or else to the file."""
        self._stopping = True
        self._wake.set()
        self._thread.join(15)

    @property
    def spooled_bytes(self) -> int:
        return self._spool.stat().st_size if self._spool.exists() else 0

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(FLUSH_SECONDS if not self._away else FLUSH_SECONDS * 4)
            self._wake.clear()
            self.flush()
        self.flush()

    def flush(self) -> None:
        """Write what waits now. Blocks."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
        try:
            if self.spooled_bytes:
                self._replay()
            for start in range(0, len(rows), BATCH_ROWS):
                self._insert(rows[start : start + BATCH_ROWS])
            if self._away:
                log.info("answers are recorded in the database again")
            self._away = False
        except Exception as error:  # the driver's and the pool's own types; losing rows is worse than not knowing which
            if not self._away:
                log.warning("answers are recorded in %s until the database is back: %s", self._spool, " ".join(str(error).split())[:200])
            self._away = True
            self._to_disk(rows)

    def _insert(self, rows: Sequence[Answer]) -> None:
        from sqlalchemy import text

        if not rows:
            return
        # Inserting a row twice is harmless: a batch that failed half way is written again as a whole.
        sql = text(
            "INSERT INTO answer (request_id, system, version, bundle_sha256, inputs, at, labels) "
            "SELECT a, b, c, d, e, f, CASE WHEN g IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(CAST(g AS jsonb))) END "
            "FROM unnest(CAST(:a AS text[]), CAST(:b AS text[]), CAST(:c AS integer[]), CAST(:d AS text[]), "
            "CAST(:e AS integer[]), CAST(:f AS timestamptz[]), CAST(:g AS text[])) AS row(a, b, c, d, e, f, g) ON CONFLICT DO NOTHING"
        )
        columns = [list(column) for column in zip(*rows, strict=True)]
        with self._connect().begin() as connection:
            connection.execute(sql, dict(zip("abcdefg", columns, strict=True)))

    def _to_disk(self, rows: Sequence[Answer]) -> None:
        if not rows:
            return
        try:
            if self.spooled_bytes > SPOOL_BYTES:
                raise OSError(f"{self._spool} has reached its limit of {SPOOL_BYTES} bytes")
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            with self._spool.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            log.error("%s answers are recorded nowhere: %s", len(rows), error)
            self._lost(len(rows))

    def _lost(self, rows: int) -> None:
        if self._on_lost is not None:
            self._on_lost(rows)

    def _replay(self) -> None:
        rows = []
        with self._spool.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    rows.append(Answer(*json.loads(line)))
                except (ValueError, TypeError):  # the last line of a server that was killed while it wrote
                    log.warning("a damaged line in %s is left out", self._spool)
                if len(rows) == BATCH_ROWS:
                    self._insert(rows)
                    rows = []
        self._insert(rows)
        self._spool.unlink()
