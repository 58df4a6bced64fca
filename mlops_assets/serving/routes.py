"""What clients can ask for: routes, headers, limits of a request.

Belongs here: HTTP. Does not belong here: which model answers (`models.py`), batching, recording, the wording of errors (`errors.py`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mlops_assets.kinds.text.predict import BadInput
from mlops_assets.serving import bodies, errors, policies
from mlops_assets.serving.answers import Answer
from mlops_assets.serving.batching import Overloaded
from mlops_assets.serving.errors import ApiError
from mlops_assets.serving.feedback import Given, find, give, unknown_request
from mlops_assets.serving.images import segments
from mlops_assets.serving.loading import Predictor
from mlops_assets.serving.models import Model, VersionUnavailable
from mlops_assets.serving.otp import CONFIRM_FIX, MAX_BODY_BYTES, MAX_CALL_BYTES, SYSTEM, VERIFIED_FIX
from mlops_assets.serving.otp_page import FILES, otp_page
from mlops_assets.serving.review import REVIEW_DOC, REVIEW_FIX, Review
from mlops_assets.settings import shown
from mlops_assets.strokes import MOST_DIGITS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mlops_assets.serving.app import Server

log = logging.getLogger("mlops.serving")

PAGES = Path(__file__).parent / "pages"
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src data:"}
MAX_FEEDBACK_BYTES = 256 * 1024
#: How a request is counted whose client hung up before it was complete (nginx's number). Nothing failed here.
CLIENT_LEFT = 499
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9]{1,9}")

_PREDICT_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {"inputs": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
                },
                "example": {"inputs": ["다시 보고 싶은 영화", "별로에요"]},
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
                }
            },
        },
    },
    "parameters": [
        {"name": "version", "in": "query", "required": False, "schema": {"type": "integer"}, "description": "a registered version by name"},
        {
            "name": "length",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": MOST_DIGITS},
            "description": "of models that read strokes: the one picture is a whole code of so many digits; one prediction for each",
        },
    ],
}


_FEEDBACK_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["labels"],
                    "properties": {"labels": {"type": "array", "items": {"type": ["string", "array", "null"]}, "minItems": 1}},
                },
                "example": {"labels": ["긍정", None]},
            }
        },
    }
}


_POLICIES_DOC = {
    "parameters": [
        {"name": name, "in": "query", "required": name == "region", "schema": {"type": kind}, "description": text}
        for name, kind, text in (
            ("region", "string", "시도, 시군구 or both, with or without spaces: 대구 달성군"),
            ("at", "string", "a day (its end in Seoul) or a time with zone; left out: now"),
            ("limit", "integer", f"policies of a page, {policies.MAX_LIMIT} at most"),
            ("after", "integer", "given by `next` of the answer before"),
        )
    ]
}


class Routes:
    """The handlers, over what the server consists of."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def require_known(self, system: str) -> None:
        if system not in self.server.follower.known:
            raise errors.unknown_system(system, sorted(self.server.follower.known))

    async def model(self, system: str, version: str | None) -> Model:
        """The model that answers this request, from its first byte to its last.

        Raises:
            ApiError
        """
        self.require_known(system)
        host = self.server.follower.host(system)
        if version is not None:
            if not _VERSION.fullmatch(version):
                korean = "version은 숫자여야 합니다."
                raise ApiError(400, "bad_version", "version must be a whole number", korean, "Use ?version=3.", field="version")
            try:
                resident = host.loaded(int(version)) if host is not None else None
                return resident if resident is not None else await asyncio.wrap_future(self.server.follower.named(system, int(version)))
            except VersionUnavailable as error:
                raise errors.of_version(error, system) from None
        if host is None or host.current is None:
            refusal = host.refusals[-1].reason if host is not None and host.refusals else None
            raise await self._nothing_served(system, refusal)
        return host.current

    async def _nothing_served(self, system: str, refusal: str | None = None) -> ApiError:
        follower = self.server.follower
        known, missing = follower.absence_known(system)
        if not known:
            missing = await asyncio.to_thread(follower.absence, system)
        return errors.nothing_served(system, self.server.channel, follower.has_looked(), refusal, missing)

    async def predict(self, system: str, request: Request) -> Response:
        model = await self.model(system, request.query_params.get("version"))
        state = request.scope["state"]
        state["model_version"] = str(model.version)
        try:
            inputs = await _request_inputs(request, model.predictor)
            model.predictor.check(inputs)
            if (length := request.query_params.get("length")) is not None:
                inputs = await asyncio.to_thread(segments, model.predictor, inputs, int(length) if _VERSION.fullmatch(length) else 0)
            predictions = await self.server.batcher.predict(model.predictor, inputs)
        except BadInput as error:
            raise errors.of_input(error) from None
        except Overloaded as error:
            raise errors.of_overload(error) from None
        now = datetime.now(UTC).isoformat()
        # Of a model that reads secrets only the bundle is recorded: what it said, in order and with its time, would be the secret.
        secret = getattr(model.predictor, "secret_answers", False)
        said = None if secret else json.dumps([one["label"] for one in predictions], ensure_ascii=False)
        self.server.answers.record(Answer(state["request_id"], system, model.version, model.bundle_sha256, len(inputs), now, said))
        self.server.metrics.answered(system, model.version, len(inputs))
        return _json(
            {
                "request_id": state["request_id"],
                "system": system,
                "version": model.version,
                "bundle_sha256": model.bundle_sha256,
                "dataset_version": model.dataset_version,
                "at": now,
                "predictions": predictions,
            }
        )

    async def models(self) -> Response:
        systems = {name: host.describe() for name, host in self.server.follower.hosts().items()}
        return _json(self.server.follower.describe() | {"systems": systems, "known": sorted(self.server.follower.known)})

    async def one_model(self, system: str, request: Request) -> Response:
        self.require_known(system)
        host = self.server.follower.host(system)
        if host is None:
            raise await self._nothing_served(system)
        if host.current is not None:
            request.scope["state"]["model_version"] = str(host.current.version)
        return _json(host.describe())

    async def reload(self, system: str, request: Request) -> Response:
        """Look at the ledger now, also at what was refused before. Answers what is served then."""
        self._authorize(request)
        self.require_known(system)
        try:
            await asyncio.to_thread(self.server.follower.check_now, system)
        except Exception as error:  # the driver's own types
            log.warning("reload of %s: %s", system, error)
            fix = "What is served stays. Try again when the database is back."
            raise ApiError(503, "ledger_away", "the ledger cannot be read now", "데이터베이스에 연결할 수 없습니다.", fix) from None
        return await self.one_model(system, request)

    async def feedback(self, request_id: str, request: Request) -> Response:
        """Store what the inputs of an answered request truly were."""
        self._authorize(request)
        if not _REQUEST_ID.fullmatch(request_id):
            raise unknown_request(request_id)
        labels = bodies.list_of(await bodies.read(request, MAX_FEEDBACK_BYTES), "labels", 'Send UTF-8 JSON like {"labels": ["..."]}.')
        actor = (request.headers.get("x-actor") or "api")[:100]
        try:
            given = await asyncio.to_thread(self._give, request_id, labels, actor)
        except ApiError:
            raise
        except Exception as error:  # the driver's own types
            log.warning("feedback on %s: %s", request_id, error)
            korean, fix = "데이터베이스에 연결할 수 없습니다.", "Nothing was stored. Try again when the database is back."
            raise ApiError(503, "ledger_away", "the truth cannot be stored now", korean, fix) from None
        self.server.metrics.truth(given)
        return _json({"request_id": request_id} | given._asdict(), 201)

    async def policies(self, request: Request) -> Response:
        """The disposal policies of a region, from the table alone: no model answers here."""
        try:
            # The engine too on the thread: making it reads the driver, and whoever else makes it holds its lock.
            return _json(await asyncio.to_thread(lambda: policies.find(self.server.engine(), dict(request.query_params))))
        except ApiError:
            raise
        except Exception as error:  # the driver's own types
            log.warning("policies: %s", error)
            korean, fix = "데이터베이스에 연결할 수 없습니다.", "Try again when the database is back."
            raise ApiError(503, "ledger_away", "the policies cannot be read now", korean, fix, headers={"Retry-After": "5"}) from None

    def _give(self, request_id: str, labels: list[Any], actor: str) -> Given:
        """Blocks: call it on a thread."""
        engine = self.server.engine()
        self.server.answers.flush()  # the truth may be quicker than the record of its answer
        with engine.connect() as connection:
            answer = find(connection, request_id)
        host = self.server.follower.host(answer["system"])
        model = None if host is None else host.loaded(answer["version"]) or host.current
        known = sorted(set(answer["labels"])) if model is None else model.predictor.labels
        return give(engine, request_id, labels, known, actor, model.predictor.canonical_label if model else None)

    async def review_next(self, system: str, request: Request) -> Response:
        """Taking a question leases it: that is a write."""
        self._authorize(request)
        review = await self._review(system)
        reviewer = request.query_params.get("reviewer")
        return _json(await self._ask(review.take, reviewer), headers={"Cache-Control": "no-store"})

    async def review_answer(self, system: str, task: str, request: Request) -> Response:
        self._authorize(request)
        review = await self._review(system)
        content = bodies.object_of(await bodies.read(request, MAX_FEEDBACK_BYTES), REVIEW_FIX)
        return _json(await self._ask(review.answer, task, content), 201)

    async def review_stats(self, system: str) -> Response:
        return _json(await self._ask((await self._review(system)).stats))

    async def otp_confirmation(self, request: Request) -> Response:
        content = bodies.object_of(await bodies.read(request, MAX_BODY_BYTES), CONFIRM_FIX, "session")
        return _json(await self._ask(self.server.otp.confirm, content, self._is_loaded), 202)

    def _is_loaded(self, version: str) -> bool:
        """Figures are counted by the versions that are loaded: clients must not be able to invent time series."""
        host = self.server.follower.host(SYSTEM)
        return host is not None and bool(_VERSION.fullmatch(version)) and host.loaded(int(version)) is not None

    async def otp_verified(self, request: Request) -> Response:
        content = bodies.object_of(await bodies.read(request, MAX_CALL_BYTES), VERIFIED_FIX, "session")
        return _json(await self._ask(self.server.otp.verified, content))

    async def otp_forget(self, user: str, request: Request) -> Response:
        signed = (request.headers.get(name) or "" for name in ("x-otp-time", "x-otp-mac"))
        return _json(await self._ask(self.server.otp.forget, user, *signed))

    async def _review(self, system: str) -> Review:
        self.require_known(system)
        host = self.server.follower.host(system)
        if host is None or host.current is None:
            raise await self._nothing_served(system)
        return Review(self.server.engine, system, host.current.predictor.labels, self.server.settings.configs)

    async def _ask(self, work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(work, *given)
        except ApiError:
            raise
        except Exception as error:  # the driver's own types
            log.warning("%s: %s", work.__qualname__, _first_line(error))
            korean, fix = "데이터베이스에 연결할 수 없습니다.", "Nothing was stored. Try again when the database is back."
            raise ApiError(503, "ledger_away", "the database cannot be reached now", korean, fix) from None

    def _authorize(self, request: Request) -> None:
        token = self.server.settings.api_token
        if not token:
            fix = "Set MLOPS_API_TOKEN on the server and send it as `Authorization: Bearer <token>`."
            korean = "쓰기 요청이 허용되지 않은 서버입니다."
            raise ApiError(403, "writes_disabled", "this server accepts no writes: it has no token", korean, fix)
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            fix = "Send `Authorization: Bearer <MLOPS_API_TOKEN>`."
            headers = {"WWW-Authenticate": "Bearer"}
            korean = "인증 토큰이 없거나 올바르지 않습니다."
            raise ApiError(401, "unauthorized", "the token is missing or wrong", korean, fix, headers=headers)

    async def ready(self) -> Response:
        """Ready when the ledger (or, without it, the disk) was looked at and what it names is loaded; a system may have no champion."""
        serving = {name: host.current.version for name, host in self.server.follower.hosts().items() if host.current is not None}
        looked = self.server.follower.has_looked()
        return _json(self.server.follower.describe() | {"ready": looked, "serving": serving}, 200 if looked else 503)

    async def review_page(self, system: str) -> str:
        review = await self._review(system)
        data = {"system": system, "labels": review.choices, "exclusive": list(review.section.exclusive)}
        return _page("review.html", data)

    def page(self) -> str:
        links = {
            "Dagster": self.server.settings.dagster_url,
            "MLflow": self.server.settings.mlflow_tracking_uri,
            "Champion": self.server.settings.serve_url,
            "Staging": self.server.settings.staging_url,
        }
        known = {name: shown(url) for name, url in links.items() if url and url.startswith("http")}
        return _page("index.html", {"channel": self.server.channel, "links": known})


def _first_line(error: Exception) -> str:
    """Without what was to be stored, which SQLAlchemy quotes below it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _page(name: str, data: dict[str, Any]) -> str:
    """A page with its data as JSON that cannot end the element it stands in."""
    return (PAGES / name).read_text(encoding="utf-8").replace("__DATA__", json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def build(server: Server) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await asyncio.to_thread(server.stop)

    # The interactive docs of FastAPI load scripts from elsewhere; /openapi.json has the same content.
    app = FastAPI(title="mlops_assets", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.server = server
    routes = Routes(server)

    @app.post("/predict/{system}", response_class=Response, openapi_extra=_PREDICT_DOC)
    async def predict(system: str, request: Request) -> Response:
        return await routes.predict(system, request)

    @app.get("/models", response_class=Response)
    async def models() -> Response:
        return await routes.models()

    @app.get("/models/{system}", response_class=Response)
    async def one_model(system: str, request: Request) -> Response:
        return await routes.one_model(system, request)

    @app.post("/models/{system}/reload", response_class=Response)
    async def reload(system: str, request: Request) -> Response:
        return await routes.reload(system, request)

    @app.post("/feedback/{request_id}", response_class=Response, openapi_extra=_FEEDBACK_DOC)
    async def feedback(request_id: str, request: Request) -> Response:
        return await routes.feedback(request_id, request)

    @app.get("/policies", response_class=Response, openapi_extra=_POLICIES_DOC)
    async def disposal_policies(request: Request) -> Response:
        return await routes.policies(request)

    @app.get("/review/{system}/next", response_class=Response)
    async def review_next(system: str, request: Request) -> Response:
        return await routes.review_next(system, request)

    @app.get("/review/{system}/stats", response_class=Response)
    async def review_stats(system: str) -> Response:
        return await routes.review_stats(system)

    @app.post("/review/{system}/{task}", response_class=Response, openapi_extra=REVIEW_DOC)
    async def review_answer(system: str, task: str, request: Request) -> Response:
        return await routes.review_answer(system, task, request)

    @app.get("/review/{system}", response_class=HTMLResponse)
    async def review_page(system: str) -> HTMLResponse:
        return HTMLResponse(await routes.review_page(system), headers=PAGE_HEADERS)

    @app.get("/otp", response_class=HTMLResponse)
    async def one_time_code(request: Request) -> HTMLResponse:
        asked, accepted = dict(request.query_params), request.headers.get("accept-language", "")
        page = otp_page(server.settings.otp_secret, asked, accepted)
        return HTMLResponse(page.html, page.status, page.headers)

    app.mount("/otp/files", StaticFiles(directory=FILES))

    @app.post("/otp/confirmation", response_class=Response)
    async def otp_confirmation(request: Request) -> Response:
        return await routes.otp_confirmation(request)

    @app.post("/otp/verified", response_class=Response)
    async def otp_verified(request: Request) -> Response:
        return await routes.otp_verified(request)

    @app.delete("/otp/users/{user:path}", response_class=Response)
    async def otp_forget(user: str, request: Request) -> Response:
        return await routes.otp_forget(user, request)

    @app.get("/livez", response_class=Response)
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/readyz", response_class=Response)
    async def ready() -> Response:
        return await routes.ready()

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        server.metrics.gauges(
            server.batcher.waiting, server.answers.spooled_bytes, server.follower.away_since is None, server.otp.holding.drawings
        )
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    page = routes.page()

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _error(error, request.scope["state"])

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {
            404: ("not_found", "there is no such address", "없는 주소입니다."),
            405: ("bad_method", "wrong method", "허용되지 않은 요청입니다."),
        }
        code, message, korean = known.get(error.status_code, ("bad_request", str(error.detail), "잘못된 요청입니다."))
        fix = "GET /openapi.json lists the addresses."
        wrapped = ApiError(error.status_code, code, message, korean, fix, headers=dict(error.headers or {}))
        return _error(wrapped, request.scope["state"])

    app.add_middleware(_Envelope, server=server)
    server.metrics.routes(["other", *(path for route in app.routes if (path := getattr(route, "path", None)))])
    return app


class _Envelope:
    """Around every answer: the request id, the model's version, metrics, and JSON instead of a stack trace."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        state = scope["state"] = dict(scope.get("state", {}))
        state["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state["model_version"] = "none"
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", state["request_id"].encode()),
                    (b"x-model-version", state["model_version"].encode()),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or CLIENT_LEFT
        except Exception:
            log.exception("request %s failed", state["request_id"])
            if status == 0:
                await _error(errors.internal(), state)(scope, receive, send_with_headers)
        self.server.metrics.request(_route(scope), status, time.perf_counter() - started)


def _route(scope: Scope) -> str:
    """The route's pattern, never the path: clients must not be able to invent time series."""
    return str(getattr(scope.get("route"), "path", "other"))


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # What a client sent may stand in what it is told: half of a surrogate pair, which JSON may hold, cannot be sent.
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, media_type="application/json", headers=headers)


def _error(error: ApiError, state: dict[str, Any]) -> Response:
    return _json(error.body(state["request_id"]), error.status, error.headers)


async def _request_inputs(request: Request, predictor: Predictor) -> list[Any]:
    """What the request asks about, never more of it in memory than the predictor's limit. Raises ApiError, BadInput."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limit = predictor.max_body_bytes
    if predictor.kind != "image-classification":
        return bodies.list_of(await bodies.read(request, limit), "inputs", 'Send UTF-8 JSON like {"inputs": ["..."]}.')
    if media_type == "multipart/form-data":
        return await bodies.files(request, limit)
    return bodies.list_of(await bodies.read(request, limit), "inputs", bodies.IMAGES_FIX)
