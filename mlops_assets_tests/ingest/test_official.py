"""Official downloads against a local HTTP server: resumed, checked, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from mlops_assets.ingest.official import RECORD, PullError, pull
from mlops_assets.settings import Settings

CONTENT = bytes(range(256)) * 20_000


class Source(ThreadingHTTPServer):
    """Serves CONTENT with ranges; `cut` drops the connection after so many bytes, once; `status` answers with an error."""

    cut: int | None = None
    status: int | None = None
    content: bytes = CONTENT
    seen: list[str | None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Source

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.seen.append(asked)
        if self.server.status is not None:
            self.send_error(self.server.status)
            return
        etag = f'"{hashlib.md5(self.server.content).hexdigest()}"'
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.headers.get("If-Range") == etag else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut is not None:
            self.wfile.write(body[: self.server.cut])
            self.server.cut = None
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def source() -> Iterator[Source]:
    server = Source(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def configured(settings: Settings, source: Source, tmp_path: Path):
    """A function (sha256) -> settings whose configs know the data set `tiny`."""

    def configure(sha256: str | None = None) -> Settings:
        folder = tmp_path / "configs"
        folder.mkdir(exist_ok=True)
        file = {"name": "tiny.bin", "url": f"http://127.0.0.1:{source.server_address[1]}/tiny.bin", "sha256": sha256}
        data = {"datasets": {"tiny": {"licence": "CC0-1.0", "attribution": "the authors", "official": [file], "train_files": ["*"]}}}
        (folder / "toy.yaml").write_text(yaml.safe_dump(data))
        return settings.model_copy(update={"configs": folder})

    return configure


def test_a_data_set_is_fetched_once_with_licence_and_record(configured, source: Source) -> None:
    said: list[str] = []
    settings = configured()
    done = pull(settings, "tiny", say=said.append)
    assert (done.folder / "tiny.bin").read_bytes() == CONTENT and done.fetched == ["tiny.bin"]
    assert "CC0-1.0" in said[0] and "the authors" in said[0]
    record = json.loads((done.folder / RECORD).read_text())
    assert record["tiny.bin"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    again = pull(settings, "tiny")
    assert again.fetched == [] and again.files == ["tiny.bin"] and len(source.seen) == 1


def test_a_broken_connection_is_resumed(configured, source: Source) -> None:
    source.cut = 1_000_000
    done = pull(configured(hashlib.sha256(CONTENT).hexdigest()), "tiny")
    assert (done.folder / "tiny.bin").read_bytes() == CONTENT
    assert source.seen == [None, "bytes=1000000-"]
    assert sorted(path.name for path in done.folder.iterdir()) == [RECORD, "tiny.bin"]


def test_a_source_that_changed_meanwhile_is_read_from_its_beginning(configured, source: Source, tmp_path: Path) -> None:
    source.cut, source.status = 1_000_000, None
    settings = configured()
    folder = settings.home / "data" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.bin.part").write_bytes(b"of another version")
    (folder / "tiny.bin.part.etag").write_text('"other"')
    assert (pull(settings, "tiny").folder / "tiny.bin").read_bytes() == CONTENT


def test_a_wrong_digest_is_not_kept(configured, source: Source) -> None:
    settings = configured("0" * 64)
    with pytest.raises(PullError, match="expected 0000.*not kept.*correct `sha256`"):
        pull(settings, "tiny")
    assert list((settings.home / "data" / "tiny").iterdir()) == []


def test_a_source_without_published_digest_is_held_to_the_first_one(configured, source: Source) -> None:
    settings = configured()
    folder = pull(settings, "tiny").folder
    source.content = b"silently replaced"
    (folder / "tiny.bin").unlink()
    with pytest.raises(PullError, match="digest"):
        pull(settings, "tiny")


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 3)])
def test_an_error_says_what_to_do(configured, source: Source, status: int, tries: int) -> None:
    source.status = status
    with pytest.raises(PullError, match=f"answers {status}.*resumed by the same command"):
        pull(configured(), "tiny")
    assert len(source.seen) == tries


def test_an_unknown_name_lists_the_choices(configured) -> None:
    with pytest.raises(PullError, match="'tinny'.*choose from tiny"):
        pull(configured(), "tinny")
