"""Named crash points: where a process can be told to kill itself, so that tests can show what survives. Otherwise each is one comparison.

Belongs here: the complete list of points, so that none is forgotten by the tests.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from mlops_assets.settings import crash_point

#: Between the gate, the receipt, the MLflow version and the alias.
REGISTRAR_POINTS: Final = (
    "check.before_verdict",
    "registrar.before_receipt",
    "registrar.after_receipt",
    "registrar.before_commit",
    "registrar.after_commit",
    "mirror.before_version",
    "mirror.after_version",
    "mirror.after_alias",
    "mirror.before_delivered",
)

#: Between a listing, the object ledger, the closing of a version with its run request, and the end of a landing.
ARRIVAL_POINTS: Final = (
    "land.before_ready",
    "tick.after_listing",
    "tick.after_record",
    "tick.before_commit",
    "tick.after_commit",
)

#: Between reading a page of comments, storing its rows, and the one transaction that has them, the ledger, the holes and the mark.
COMMENT_POINTS: Final = (
    "comments.after_read",
    "comments.after_staging",
    "comments.after_ledger",
    "comments.after_rows",
    "comments.after_holes",
    "comments.before_commit",
    "comments.after_commit",
)

#: Between copying bytes, writing the manifest and the transaction that freezes; and the same for a cleaned table.
DATASET_POINTS: Final = (
    "freeze.after_copy",
    "freeze.after_manifest",
    "freeze.before_commit",
    "freeze.after_commit",
    "cleaned.after_splits",
    "cleaned.after_parts",
    "cleaned.before_commit",
    "cleaned.after_commit",
)

#: Around the one transaction that applies a version of the disposal policies.
POLICY_POINTS: Final = ("policy.before_commit", "policy.after_commit")
#: Between settling what a cut holds and the end of its landing.
CUT_POINTS: Final = (
    "cut.before_commit",
    "cut.after_commit",
    "cut.after_parent",
    "cut.after_object",
    "cut.after_ready",
)

#: The same for drawings; and of a deletion, between the row that says so and the bytes.
DRAWN_POINTS: Final = (
    "drawn_cut.before_commit",
    "drawn_cut.after_commit",
    "drawn_cut.after_parent",
    "drawn_cut.after_objects",
    "drawn_cut.after_ready",
)
FORGET_POINTS: Final = (
    "forget.before_commit",
    "forget.after_commit",
    "forget.after_bytes",
)

#: While training, `<n>` being a step: before it is logged, a checkpoint written aside, a checkpoint under its own name.
TRAINER_POINTS: Final = ("trainer.step_<n>", "trainer.aside_<n>", "trainer.saved_<n>")

#: Of a sweep, `<n>` being a trial: begun, trained but not yet told to the study, told.
SWEEP_POINTS: Final = ("sweep.begun_<n>", "sweep.trained_<n>", "sweep.told_<n>")


def reach(point: str) -> None:
    """Kill this process (SIGKILL: no handler, no cleanup) when it was told to crash at `point`."""
    if crash_point() == point:
        os.kill(os.getpid(), signal.SIGKILL)
