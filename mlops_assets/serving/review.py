"""The review queue for clients: a question, an answer, figures, each as plain values; and what is wrong, as errors with a code and the fix.

Belongs here: checking what clients send, and the wording. Does not belong here: HTTP (`routes.py`), who is asked what (`ingest/queue.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.ingest import queue
from mlops_assets.serving.errors import ApiError
from mlops_assets.settings import ReviewSection, load_config_text, load_section

if TYPE_CHECKING:
    from sqlalchemy import Engine

REVIEW_FIX: Final = 'Send UTF-8 JSON like {"labels": ["..."], "reviewer": "..."} or {"skip": true, "reviewer": "..."}.'
REVIEW_DOC: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["reviewer"],
                    "properties": {
                        "labels": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                        "reviewer": {"type": "string"},
                        "skip": {"type": "boolean"},
                    },
                },
                "example": {"labels": ["clean"], "reviewer": "hong"},
            }
        },
    }
}
#: code -> status, Korean, fix.
_PROBLEMS: Final = {
    "bad_reviewer": (400, "검수자 이름이 올바르지 않습니다.", "Send your own name as `reviewer`: two people must have two names."),
    "wrong_labels": (400, "선택할 수 없는 라벨입니다.", "Choose from the labels in the answer of GET /review/{system}/next."),
    "unknown_task": (404, "없는 검수 항목입니다.", "GET /review/{system}/next has the next question."),
    "text_changed": (
        409,
        "그 사이 댓글이 수정되거나 삭제되었습니다.",
        "Nothing was stored. GET /review/{system}/next has the next question.",
    ),
    "lease_lost": (
        409,
        "시간이 지나 다른 사람에게 넘어간 항목입니다.",
        "Nothing was stored. GET /review/{system}/next has the next question.",
    ),
    "already_given": (409, "이미 답한 항목입니다.", "An answer is given once; what was given stays."),
}


class Review:
    """The queue of one system. Every method blocks: call them on a thread.

    Attributes:
        choices: the labels that may be given: the champion's, and those that stand alone.

    Raises:
        ApiError: `no_review`: the system's configuration has no section of that name.
    """

    def __init__(self, connect: Callable[[], Engine], system: str, labels: Sequence[str], configs: Path) -> None:
        if "review" not in load_config_text(system, configs):
            # Whose comments are asked about is not in the queue: another system's labels would be answers about the wrong question.
            message, korean = f"{system} has no comments to review", f"{system}에는 검수할 댓글이 없습니다."
            raise ApiError(
                404, "no_review", message, korean, f"Comments of a system are reviewed where configs/{system}.yaml has `review`."
            )
        self._connect = connect
        self.system = system
        self.section = load_section(ReviewSection, system, "review", configs)
        self.choices = [*labels, *(name for name in self.section.exclusive if name not in labels)]

    def take(self, reviewer: object) -> dict[str, Any]:
        """The next question of a person; `task` null when there is none. Raises ApiError."""
        try:
            name = queue.person(reviewer)
        except queue.ReviewProblem as problem:
            raise self._error(problem) from None
        with self._connect().begin() as connection:
            found = queue.take(connection, self.system, name, self.section)
        if found is None:
            return {"system": self.system, "task": None, "labels": self.choices}
        return {
            "system": self.system,
            "task": found.task,
            "text": found.text,
            "opinions": found.opinions,
            "labels": self.choices,
            "leased_until": found.leased_until.isoformat(),
        }

    def answer(self, task: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Store an answer, or that the person has none. Raises ApiError; nothing is stored then."""
        try:
            name, number = queue.person(content.get("reviewer")), self._number(task)
            with self._connect().begin() as connection:
                if content.get("skip") is True:
                    queue.skip(connection, self.system, number, name)
                    return {"system": self.system, "task": number, "skipped": True}
                labels = content.get("labels")
                if not isinstance(labels, list):
                    raise ApiError(400, "no_labels", "the body has no list `labels`", "`labels`가 없습니다.", REVIEW_FIX, field="labels")
                done = queue.answer(connection, self.system, number, name, labels, self.choices, self.section)
        except queue.ReviewProblem as problem:
            raise self._error(problem) from None
        return {"system": self.system, "task": number, "settled": done.settled, "labels": done.labels}

    def stats(self) -> dict[str, Any]:
        with self._connect().connect() as connection:
            return queue.stats(connection, self.system)

    def _number(self, task: str) -> int:
        if not (task.isascii() and task.isdigit() and len(task) < 19):
            raise queue.ReviewProblem("unknown_task", f"{self.system} has no question {task[:40]!r}")
        return int(task)

    def _error(self, problem: queue.ReviewProblem) -> ApiError:
        status, korean, fix = _PROBLEMS[problem.code]
        return ApiError(status, problem.code, str(problem), korean, fix.replace("{system}", self.system), field=problem.field)
