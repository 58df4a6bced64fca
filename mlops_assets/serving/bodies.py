"""Bodies of requests, as clients of every kind write them: JSON, with a byte order mark or not, and multipart parts that are files.

Belongs here: from bytes to values within limits, and what is wrong with those that are none. Does not belong here: routes, what the values
mean.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from mlops_assets.formats import kind_of
from mlops_assets.serving.errors import ApiError
from mlops_assets.serving.images import MAX_IMAGES, Picture, check_count
from mlops_assets.unambiguous import loads

IMAGES_FIX = 'Send multipart `files` (curl -F files=@photo.jpg), or UTF-8 JSON {"inputs": ["<base64 of a file>"]}.'
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_FILES = re.compile(r"files(\[\d*\])?", re.IGNORECASE)
_EXTENDED = re.compile(rb"""(name|filename)\*\s*=\s*"?([\w-]+)'[^']*'([^;"\s]*)""", re.IGNORECASE)


class _TooLarge(MultiPartException):
    """One of the parser's own errors, because it removes its temporary files for those only."""


async def _chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises _TooLarge."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _TooLarge("the body is too large")
        yield part


async def read(request: Request, limit: int) -> bytes:
    """The whole body, never more of it in memory than `limit` bytes. Raises ApiError."""
    try:
        return b"".join([part async for part in _chunks(request, limit)])
    except _TooLarge:
        raise _too_large(limit) from None


def _too_large(limit: int) -> ApiError:
    message, korean = f"the body is larger than {limit} bytes", f"요청은 {limit // 1024**2}MB까지 보낼 수 있습니다."
    fix, headers = "Send fewer inputs per request.", {"Connection": "close"}
    return ApiError(413, "too_large", message, korean, fix, limit=limit, headers=headers)


# --- multipart ------------------------------------------------------------------------------------------------------------------


class _Parts(MultiPartParser):
    """Takes a part named `files` for a file also when it has no name of its own, or only one in the extended form (`filename*`)."""

    def on_headers_finished(self) -> None:
        part = self._current_part
        said = part.content_disposition or b""
        _, options = parse_options_header(said)
        for name, charset, value in _EXTENDED.findall(said):
            if name.lower() not in options:
                options[name.lower()] = value = _plain_name(charset, value)
                said += b'; %s="%s"' % (name.lower(), value)
        if _FILES.fullmatch(options.get(b"name", b"").decode("latin-1")) and b"filename" not in options:
            said += b'; filename=""'
        part.content_disposition = said or None
        super().on_headers_finished()


def _plain_name(charset: bytes, value: bytes) -> bytes:
    """An extended value as UTF-8 that can stand between quotes."""
    try:
        text = unquote_to_bytes(value).decode(charset.decode("latin-1"))
    except (LookupError, ValueError):
        text = value.decode("latin-1")
    return re.sub(r'[\x00-\x1f"\\\\]', "_", text).encode()


async def files(request: Request, limit: int) -> list[Picture]:
    """The `files` of a multipart body, all of them. Raises ApiError, BadInput."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    # Names of parts are UTF-8, whatever `charset` is written beside the boundary.
    headers = Headers(raw=[(b"content-type", kind + (b'; boundary="%s"' % boundary if boundary else b""))])
    try:
        form = await _Parts(headers, _chunks(request, limit), max_files=MAX_IMAGES, max_fields=8).parse()
    except _TooLarge:
        raise _too_large(limit) from None
    except (MultiPartException, KeyError, ValueError) as error:
        if str(getattr(error, "message", "")).startswith("Too many files"):
            check_count(MAX_IMAGES + 1, "files")
        message = f"the body is not multipart: {str(getattr(error, 'message', error))[:100]}"
        raise ApiError(400, "bad_multipart", message, "multipart 형식이 아닙니다.", IMAGES_FIX, field="files") from None
    try:
        found = [(name, one) for name, one in form.multi_items() if isinstance(one, UploadFile)]
        _check_names(form, [name for name, _ in found])
        return [Picture(await _content(one), f"files[{number}]", one.filename or "") for number, (_, one) in enumerate(found)]
    finally:
        await form.close()


def _check_names(form: FormData, files_of: list[str]) -> None:
    """Every file is under the name `files`, and there is one. Raises ApiError."""
    if files_of and all(map(_FILES.fullmatch, files_of)):
        return
    other = next((name for name in files_of if not _FILES.fullmatch(name)), next(iter(form), None))
    if other is None:
        raise ApiError(400, "no_files", "the body has no `files`", "`files`가 없습니다.", IMAGES_FIX, field="files")
    what = f"the body has a part `{other[:50]}`; pictures are read from parts named `files`"
    korean = f"`{other[:50]}` 항목이 있습니다. 이미지는 `files`라는 이름으로 보내 주세요."
    raise ApiError(400, "no_files", what, korean, f"Name the part `files` instead of `{other[:50]}`. {IMAGES_FIX}", field="files")


async def _content(part: UploadFile) -> bytes | str:
    data = await part.read()
    if part.headers.get("content-transfer-encoding", "").strip().lower() == "base64":
        return "".join(data.decode("latin-1").split())
    return data


# --- JSON -----------------------------------------------------------------------------------------------------------------------


def list_of(body: bytes, name: str, fix: str) -> list[Any]:
    """The list `name` of a JSON body, not empty. Raises ApiError."""
    content = object_of(body, fix, name)
    if name not in content:
        raise _without(name, fix)
    values = content[name]
    if not isinstance(values, list):
        raise ApiError(400, "not_a_list", f"`{name}` is not a list", f"`{name}`는 목록이어야 합니다.", fix, field=name)
    if not values:
        raise ApiError(400, f"empty_{name}", f"`{name}` is empty", "입력이 비어 있습니다.", fix, field=name)
    return values


def _without(name: str, fix: str) -> ApiError:
    return ApiError(400, f"no_{name}", f"the body has no `{name}`", f"`{name}`가 없습니다.", fix, field=name)


def object_of(body: bytes, fix: str, wanted: str = "labels") -> dict[str, Any]:
    """A JSON body that is an object, with or without a byte order mark. Raises ApiError."""
    if found := _no_json(body):
        code, message, korean = found
        raise ApiError(400, code, message, korean, fix)
    try:
        content = loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ApiError(400, "not_utf8", f"the body is not UTF-8 (byte {error.start})", "UTF-8이 아닌 요청입니다.", fix) from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "bad_json", f"the body is not JSON: {str(error)[:100]}", "JSON 형식이 아닙니다.", fix) from None
    if not isinstance(content, dict):
        raise _without(wanted, fix)
    return content


def _no_json(body: bytes) -> tuple[str, str, str] | None:
    """(code, message, Korean message) of what people send instead of UTF-8 JSON, or None."""
    if body.startswith(_UTF_16) or (len(body) > 3 and b"\0" in (body[:1], body[1:2])):
        return "not_utf8", "the body is UTF-16, JSON is UTF-8", "UTF-16이 아닌 UTF-8로 보내 주세요."
    if body.startswith(b"--") and b"content-disposition" in body[:500].lower():
        message = "the body is multipart, but its Content-Type does not say multipart/form-data, or this address takes JSON"
        return "bad_json", message, "multipart 요청이지만 Content-Type이 맞지 않거나, JSON만 받는 주소입니다."
    if (kind := kind_of(body)) is not None and kind.is_picture:
        return "not_utf8", f"the body is a {kind.name} picture itself, not JSON", "JSON이 아닌 이미지 파일입니다."
    return None
