"""A real S3 API (moto's server) beside the file store, and a real MariaDB, so that arrival is tested on them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests import mariadb as mariadb_server
from mlops_assets_tests.ingest.commented import Application
from mlops_assets_tests.mariadb import MariaDB


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    import boto3

    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("REGION", "us-east-1"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"b{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    client.close()
    return ObjectStore(f"s3://{bucket}/platform", s3_endpoint)


@pytest.fixture(params=["file", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return ObjectStore((tmp_path / "store").as_uri())
    return request.getfixturevalue("s3_store")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    if mariadb_server.MISSING:
        pytest.skip(mariadb_server.MISSING)
    with mariadb_server.running() as server:
        yield server


@pytest.fixture
def app(mariadb: MariaDB) -> Iterator[Application]:
    """An application with a table of comments in a database of its own."""
    application = Application(mariadb, f"app_{uuid.uuid4().hex[:12]}")
    yield application
    application.drop()


@pytest.fixture
def comment_settings(settings: Settings, app: Application) -> Settings:
    """Settings that read the application's database as a user who may only SELECT."""
    return settings.model_copy(update={"comments_url": app.url})
