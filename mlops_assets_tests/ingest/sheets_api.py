"""A local HTTP server that speaks as much of Google's Sheets API v4 as `gspread` uses to read, and the token endpoint of its accounts."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, unquote, urlsplit

EMAIL = "reader@mlops-tests.iam.gserviceaccount.com"
TOKEN = "a-token-of-the-tests"
_RANGE = re.compile(r"(?:'(?P<title>(?:[^']|'')+)'|(?P<plain>[^!']+))!A(?P<first>\d+):(?P<column>[A-Z]+)(?P<last>\d+)")


@dataclass
class Sheets:
    """What the service has. `faults`: statuses of the next answers to API requests (not to those for a token), before it works again."""

    url: str = ""
    books: dict[str, dict[str, list[list[str]]]] = field(default_factory=dict)
    grid_rows: int = 1000
    forbidden: set[str] = field(default_factory=set)
    faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    token_fault: bool = False
    asked: list[str] = field(default_factory=list)
    before_page: Callable[[int], None] | None = None

    def credentials(self, path: Path) -> Path:
        """The JSON file of a service account with a key of its own."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self._public = key.public_key()
        content = {
            "type": "service_account",
            "project_id": "mlops-tests",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": f"{self.url}/token",
        }
        path.write_text(json.dumps(content))
        return path

    def token(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        """The signature of the assertion is verified, and that it asks for reading only."""
        from cryptography.hazmat.primitives.asymmetric import padding
        from cryptography.hazmat.primitives.hashes import SHA256

        def decoded(text: str) -> bytes:
            return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

        signed, _, signature = form["assertion"][0].rpartition(".")
        self._public.verify(decoded(signature), signed.encode(), padding.PKCS1v15(), SHA256())
        claims = json.loads(decoded(signed.split(".")[1]))
        assert claims["iss"] == EMAIL and claims["scope"] == "https://www.googleapis.com/auth/spreadsheets.readonly"
        if self.token_fault:
            return 400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        return 200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}

    def answer(self, path: str, query: dict[str, list[str]], authorization: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        def error(status: int, message: str) -> tuple[int, dict[str, Any], dict[str, str]]:
            return status, {"error": {"code": status, "message": message, "status": "ERROR"}}, {}

        self.asked.append(path)
        if authorization != f"Bearer {TOKEN}":
            return error(401, "no token")
        if self.faults:
            status, headers = self.faults.pop(0)
            return status, {"error": {"code": status, "message": "as the test wants it", "status": "ERROR"}}, headers
        book, _, rest = path.removeprefix("/v4/spreadsheets/").partition("/")
        if book in self.forbidden:
            return error(403, "The caller does not have permission")
        if book not in self.books:
            return error(404, "Requested entity was not found.")
        if not rest:
            return 200, {"spreadsheetId": book, "properties": {"title": book}, "sheets": self._sheets(book)}, {}
        found = _RANGE.fullmatch(rest.removeprefix("values/"))
        assert found is not None, f"a range without bounds: {rest}"
        assert query["valueRenderOption"] == ["FORMATTED_VALUE"]
        first, last = int(found["first"]), int(found["last"])
        if self.before_page is not None:
            self.before_page(first)
        rows = self.books[book][(found["title"] or found["plain"]).replace("''", "'")][first - 1 : last]
        values = [_without_end(row) for row in rows]
        while values and not values[-1]:
            values.pop()
        return 200, {"range": rest, "majorDimension": "ROWS", **({"values": values} if values else {})}, {}

    def _sheets(self, book: str) -> list[dict[str, Any]]:
        def size(grid: list[list[str]]) -> dict[str, int]:
            return {"rowCount": max(self.grid_rows, len(grid)), "columnCount": max([26, *map(len, grid)])}

        return [
            {"properties": {"sheetId": number, "title": title, "index": number, "sheetType": "GRID", "gridProperties": size(grid)}}
            for number, (title, grid) in enumerate(self.books[book].items())
        ]


def _without_end(row: list[str]) -> list[str]:
    kept = list(row)
    while kept and kept[-1] == "":
        kept.pop()
    return kept


@contextmanager
def running_sheets() -> Iterator[Sheets]:
    service = Sheets()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._send(*service.answer(unquote(parts.path), parse_qs(parts.query), self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._send(*service.token(parse_qs(body)), {})

        def _send(self, status: int, content: dict[str, Any], headers: dict[str, str]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # google-auth asks Google itself, in the background, where the account may be used from: not from tests.
    asks_google = "google.auth.credentials.CredentialsWithRegionalAccessBoundary._is_regional_access_boundary_lookup_required"
    try:
        with patch(asks_google, return_value=False):
            yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
