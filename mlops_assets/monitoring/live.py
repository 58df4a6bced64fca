"""How often champions are right on what users really ask, by the truths that came back (table `feedback`), and when people hear of it.

Belongs here: the figure over a window, the decision, saying it once. Does not belong here: storing truths (`serving/feedback.py`), the
server's own series `mlops_live_accuracy`, which is over the latest truths of a version (`serving/metrics.py`), Dagster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from mlops_assets.settings import MonitoringPolicy

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mlops_assets.lifecycle.promotion import Promotion

KIND = "live_accuracy"


class Live(NamedTuple):
    """The share of right answers, among those whose truth came within the window."""

    accuracy: float
    answers: int


def measured(connection: Connection, system: str, window_hours: float) -> dict[int, Live]:
    """Version -> its live accuracy over the last `window_hours`; versions of which no truth came are absent."""
    from sqlalchemy import text

    sql = text(
        "SELECT version, avg((said = truth)::int)::float8, count(*) FROM feedback "
        "WHERE system = :s AND at > now() - make_interval(secs => :seconds) GROUP BY version"
    )
    rows = connection.execute(sql, {"s": system, "seconds": window_hours * 3600})
    return {version: Live(accuracy, answers) for version, accuracy, answers in rows.tuples()}


def judge(live: Live | None, policy: MonitoringPolicy) -> Literal["below", "fine"] | None:
    """None: nothing can be said, for there is no limit or there are too few truths."""
    if policy.min_live_accuracy is None or live is None or live.answers < policy.min_answers:
        return None
    return "below" if live.accuracy < policy.min_live_accuracy else "fine"


def watch(connection: Connection, champion: Promotion, policy: MonitoringPolicy) -> str:
    """Measure the champion; people are told when it falls below its limit and when it has recovered, in the caller's transaction.

    What was told is remembered by promotion: a version that is promoted again begins anew. Returns a sentence on how it does.
    """
    from mlops_assets.lifecycle import outbox

    live = measured(connection, champion.system, policy.window_hours).get(champion.version)
    verdict = judge(live, policy)
    name = f"{champion.system} v{champion.version}"
    if verdict is None or live is None:
        return f"{name}: {live.answers if live else 0} truths in {policy.window_hours:g} h, {policy.min_answers} are needed"
    sign = "<" if verdict == "below" else ">="
    figures = f"{live.accuracy:.3f} {sign} {policy.min_live_accuracy:.3f} ({live.answers} answers in {policy.window_hours:g} h)"
    subject = f"{champion.system} {champion.sequence}"
    if verdict == "below":
        if outbox.became(connection, KIND, subject, "below"):
            korean = (
                f"운영 모델의 실제 정확도가 최소값보다 낮습니다. `mlops rollback {champion.system} --reason 사유`로 되돌릴 수 있습니다."
            )
            outbox.tell(connection, f"live accuracy below its limit: {name}: {figures}", korean)
    elif outbox.state_of(connection, KIND, subject) == "below" and outbox.became(connection, KIND, subject, "recovered"):
        outbox.tell(connection, f"live accuracy recovered: {name}: {figures}", "운영 모델의 실제 정확도가 최소값을 다시 넘었습니다.")
    return f"{name}: live accuracy {figures}"
