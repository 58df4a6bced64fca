"""What a client is told when there is no answer: a stable code, what is wrong in English and Korean, the field, the limit and the fix.

Belongs here: the one shape of errors and where each arises from. Does not belong here: anything that decides.
"""

from __future__ import annotations

from typing import Any

from mlops_assets.kinds.text.predict import BadInput
from mlops_assets.lifecycle.history import Absence
from mlops_assets.serving.batching import Overloaded
from mlops_assets.serving.models import VersionUnavailable

#: What is not here is 422.
_STATUS = {"too_large_file": 413, "bad_format": 415, "not_an_image": 415, "lfs_pointer": 415}
_VERSION_STATUS = {"unknown_version": 404, "version_deleted": 410, "version_refused": 409, "versions_busy": 503, "ledger_away": 503}
_VERSION_KO = {
    "unknown_version": "등록되지 않은 버전입니다.",
    "version_deleted": "보관 기간이 지나 삭제된 버전입니다.",
    "version_refused": "검증을 통과하지 못해 사용할 수 없는 버전입니다.",
    "versions_busy": "버전을 지정한 요청이 많아 처리하지 못했습니다. 잠시 후 다시 시도하세요.",
    "ledger_away": "지금은 이 버전을 불러올 수 없습니다. 잠시 후 다시 시도하세요.",
}


class ApiError(Exception):
    """An answer that is an error. Rendered as `{"code", "message", "message_ko", "field", "limit", "fix", "request_id"}`."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        message_ko: str,
        fix: str,
        *,
        field: str | None = None,
        limit: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.message_ko = status, code, message, message_ko
        self.fix, self.field, self.limit, self.headers = fix, field, limit, headers or {}

    def body(self, request_id: str) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "message_ko": self.message_ko,
            "field": self.field,
            "limit": self.limit,
            "fix": self.fix,
            "request_id": request_id,
        }


def of_input(error: BadInput) -> ApiError:
    return ApiError(
        _STATUS.get(error.code, 422), error.code, error.message, error.message_ko, error.fix, field=error.field, limit=error.limit
    )


def of_version(error: VersionUnavailable, system: str) -> ApiError:
    status = _VERSION_STATUS[error.code]
    fix = "Try again shortly." if status == 503 else f"GET /models/{system} or `mlops history {system}` lists the versions."
    headers = {"Retry-After": "5"} if status == 503 else None
    return ApiError(status, error.code, str(error), _VERSION_KO[error.code], fix, field="version", headers=headers)


def of_overload(error: Overloaded) -> ApiError:
    return ApiError(
        503,
        "overloaded",
        f"{error}; this request was not queued",
        "요청이 많아 처리하지 못했습니다. 잠시 후 다시 시도하세요.",
        f"Try again in {error.retry_after} s, or send fewer inputs at a time.",
        headers={"Retry-After": str(error.retry_after)},
    )


def unknown_system(system: str, known: list[str]) -> ApiError:
    names = ", ".join(known) or "none yet"
    return ApiError(
        404, "unknown_system", f"there is no system {system!r}", "없는 시스템입니다.", f"Systems here: {names}.", field="system"
    )


def nothing_served(system: str, channel: str, looked: bool, refusal: str | None, missing: Absence | None = None) -> ApiError:
    """`missing`: why there is no champion, as the ledger knows it."""
    retry = {"Retry-After": "5"}
    if not looked:
        fix = "Try again in a few seconds."
        return ApiError(503, "starting", "the server is loading its models", "모델을 불러오는 중입니다.", fix, headers={"Retry-After": "1"})
    if channel == "candidate":
        message, korean = f"no candidate of {system} is staged", "검토 중인 후보 모델이 없습니다."
        fix = f"Stage one: `mlops stage {system} --metric F1`."
    else:
        message, korean = f"{system} has no champion yet", "아직 서비스 중인 모델이 없습니다."
        fix = (
            f"Land data (`mlops land {system} PATH --dataset-version V`), or promote a registered version "
            f"(`mlops produce {system} --metric F1 --reason TEXT`)."
        )
        if missing is not None:
            message, korean, fix = f"{message}: {missing.why}", f"{korean} {missing.why_ko}", missing.fix
    if refusal is not None:
        message += f" that may be served: {refusal}"
        fix = f"GET /models/{system} has the reasons; promote another version."
    return ApiError(503, f"no_{channel}", message, korean, fix, field="system", headers=retry)


def internal() -> ApiError:
    fix = "Report the request_id; the server's log has the reason."
    return ApiError(500, "internal", "something failed inside the server", "서버 내부 오류입니다.", fix)
