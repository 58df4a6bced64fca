"""What the champion says of comments that nobody has labelled, and how sure it is: the order in which people are asked.

Belongs here: which comments want a score, uncertainty, storing it. Does not belong here: who is asked (`queue.py`), how a model predicts
(the systems' predictors), Dagster (`jobs.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.database import copy_rows
from mlops_assets.lifecycle import bundle, promotion

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.system import ModelSystem, Predictor
    from mlops_assets.settings import ReviewSection, Settings
    from mlops_assets.store import ObjectStore

BATCH: Final = 256
#: Without a score for this content, or with one of another bundle.
_UNSCORED: Final = (
    "FROM comment c LEFT JOIN comment_score s ON s.system = :s AND (s.source, s.id) = (c.source, c.id) "
    "WHERE c.deleted_at IS NULL AND c.quarantined IS NULL "
    "AND (s.bundle_sha256, s.content_hash) IS DISTINCT FROM (CAST(:b AS text), c.content_hash) "
    "AND NOT EXISTS (SELECT FROM comment_label l WHERE (l.source, l.id, l.content_hash) = (c.source, c.id, c.content_hash))"
)


@dataclass(frozen=True)
class Scored:
    """`unreadable`: comments that the model does not take (too long, empty); they keep uncertainty 1 and no prediction."""

    bundle_sha256: str
    scored: int
    unreadable: int
    more: bool


def unscored(connection: Connection, system: str, bundle_sha256: str) -> bool:
    """Whether a comment wants a score by this bundle."""
    from sqlalchemy import text

    return bool(connection.execute(text(f"SELECT EXISTS (SELECT {_UNSCORED})"), {"s": system, "b": bundle_sha256}).scalar_one())


def score(
    engine: Engine, store: ObjectStore, settings: Settings, system: ModelSystem, scratch: Path, section: ReviewSection
) -> Scored | None:
    """Score comments with the champion's verified bundle, the newest first, `scores_per_run` at most. None: there is no champion."""
    from sqlalchemy import text

    limit = section.scores_per_run
    with engine.connect() as connection:
        champion, _ = promotion.latest_verified(connection, system.name, "champion", settings.public_keys_path)
        if champion is None:
            return None
        rows = connection.execute(
            text(f"SELECT c.source, c.id, c.content_hash, c.text {_UNSCORED} ORDER BY c.created_at DESC, c.source, c.id LIMIT :n"),
            {"s": system.name, "b": champion.bundle_sha256, "n": limit + 1},
        ).all()
    more, rows = len(rows) > limit, rows[:limit]
    if not rows:
        return Scored(champion.bundle_sha256, 0, 0, False)
    predictor = system.load_predictor(bundle.fetch(store, champion.bundle_sha256, champion.files, scratch / "bundles"), settings.threads)
    by_label = thresholds_of(predictor)
    unreadable = 0
    for start in range(0, len(rows), BATCH):  # what was scored when a run dies stays
        part = rows[start : start + BATCH]
        answers = _predict(predictor.predict, [row.text for row in part])
        unreadable += sum(one is None for one in answers)
        said = [None if one is None else (labels_of(one), one["probs"], uncertainty(one, by_label)) for one in answers]
        _store(engine, system.name, champion.bundle_sha256, part, said)
    return Scored(champion.bundle_sha256, len(rows) - unreadable, unreadable, more)


def _predict(predict: Any, texts: Sequence[str]) -> list[Mapping[str, Any] | None]:
    """One answer per text; None where the model does not take it: one such text must not hold up the others."""
    try:
        return list(predict(texts))
    except ValueError:
        answers: list[Mapping[str, Any] | None] = []
        for text in texts:
            try:
                answers += predict([text])
            except ValueError:
                answers.append(None)
        return answers


def thresholds_of(predictor: Predictor) -> dict[str, float]:
    """Of a model with several labels, each one's threshold; that of the label that is said when there is no other follows from the
    cut, and without a cut it has none. Else nothing."""
    rule = getattr(predictor, "rule", None)
    if rule is None:
        return {}
    named = enumerate(zip(predictor.labels, rule.thresholds, strict=True))
    found = {label: float(threshold) for number, (label, threshold) in named if number != rule.fallback}
    cut = getattr(rule, "cut", None)
    return found if cut is None else found | {predictor.labels[rule.fallback]: 1 - cut}


def labels_of(answer: Mapping[str, Any]) -> list[str]:
    """What an answer says: `labels` of a multi-label model, else its `label`."""
    return sorted(answer["labels"]) if "labels" in answer else [answer["label"]]


def uncertainty(answer: Mapping[str, Any], thresholds: Mapping[str, float]) -> float:
    """In [0, 1]. One label: how near the second best is to the best. Several: how near the least certain one is to its threshold."""
    probabilities: dict[str, float] = {name: float(value) for name, value in answer["probs"].items()}
    if not thresholds:
        best, second = (sorted(probabilities.values(), reverse=True) + [0.0])[:2]
        return min(1.0, max(0.0, 1 - (best - second)))
    return max(_nearness(probabilities[name], threshold) for name, threshold in thresholds.items())


def _nearness(probability: float, threshold: float) -> float:
    """1 on the threshold, 0 at the end of its side."""
    room = threshold if probability < threshold else 1 - threshold
    return min(1.0, max(0.0, 1 - abs(probability - threshold) / room)) if room > 0 else 1.0


def _store(engine: Engine, system: str, digest: str, rows: Sequence[Any], said: Sequence[tuple[Sequence[str], Any, float] | None]) -> None:
    from sqlalchemy import text

    columns = ["system", "source", "id", "content_hash", "bundle_sha256", "labels", "probabilities", "uncertainty"]
    values = []
    for row, one in zip(rows, said, strict=True):
        labels, probabilities, uncertain = one or ((), {}, 1.0)
        values.append(
            (system, row.source, row.id, row.content_hash, digest, list(labels), json.dumps(probabilities, ensure_ascii=False), uncertain)
        )
    with engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE scored (LIKE comment_score INCLUDING DEFAULTS) ON COMMIT DROP"))
        copy_rows(connection, "scored", columns, values)
        updates = ", ".join(f"{name} = EXCLUDED.{name}" for name in [*columns[3:], "at"])
        connection.execute(text(f"INSERT INTO comment_score SELECT * FROM scored ON CONFLICT (system, source, id) DO UPDATE SET {updates}"))
