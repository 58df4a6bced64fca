"""Thousands of inputs that nobody wrote, through the public door of every reader: what comes in is accepted or quarantined with a
reason that is known, or answered with a 4xx and a code; no exception leaves a reader but ours; and memory stays below the reader's limit.

`pytest -m slow -s` on this file runs all of them and prints what became of each kind. Last result (2026-11-30, 2 cores, 47 s of CPU):
6,199 inputs of 33 kinds in = 1,530 accepted + 4,669 turned away, each with a reason; no exception but ours, no 5xx but `no_policies`;
most memory above the process's own: photos 288 MiB of 600, reviews 217 of 600, digits 80 of 400, comments in files 59 of 600, requests 59
of 400, policies 22 of 600, the others below 10 of their 100 to 200. What the runs found and is mended: YAML's dates, numbers, aliases and
brackets; answers that are not the Sheets API's; `true` as a comment's id; labels of half a character; gigabytes of IDX labels.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from sqlalchemy import Engine, text

from mlops_assets import images
from mlops_assets.ingest import comments, objects, sheet
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.clients import read_parameters
from mlops_assets.resources.spark import SparkEngine
from mlops_assets.settings import REPOSITORY, Settings, SettingsError, load_config, read_yaml, validate
from mlops_assets.store import ODD, ObjectStore
from mlops_assets.systems.digits import data as digits
from mlops_assets.systems.digits.config import DigitsConfig
from mlops_assets.systems.disposal_policy import data as disposal_policy
from mlops_assets.systems.disposal_policy.config import PolicyConfig
from mlops_assets.systems.hate_speech import data as hate_speech
from mlops_assets.systems.sentiment import data as sentiment
from mlops_assets.systems.sentiment.config import SentimentConfig
from mlops_assets.systems.tires import data as tires
from mlops_assets.systems.tires.config import TiresConfig
from mlops_assets_tests import drawings
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.faults import generated as made
from mlops_assets_tests.ingest.commented import Application, section
from mlops_assets_tests.ingest.comments import add_comment
from mlops_assets_tests.ingest.conftest import (  # noqa: F401
    app,
    comment_settings,
    mariadb,
    s3_endpoint,
    s3_store,
)
from mlops_assets_tests.ingest.odd import put_raw
from mlops_assets_tests.ingest.sheets_api import running_sheets
from mlops_assets_tests.serving.bundles import make_bundle, make_digits_bundle, make_image_bundle
from mlops_assets_tests.serving.running import Running, promote, register_folder, running
from mlops_assets_tests.systems import test_digits_data, test_hate_speech_data, test_tires_data

CONFIGS = REPOSITORY / "configs"
MIB = 1024**2
#: Of one version: more would be another version.
MOST_FILES = 120

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of what it reads nevertheless


@pytest.fixture(params=[pytest.param(10, id="some"), pytest.param(165, id="all", marks=pytest.mark.slow)])
def count(request: pytest.FixtureRequest) -> int:
    """Inputs of each kind."""
    return int(request.param)


@dataclass
class Tally:
    """What became of the inputs, by kind: `accepted`, or a reason."""

    kinds: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, kind: str, outcome: str, number: int = 1) -> None:
        self.kinds.setdefault(kind, Counter())[outcome] += number

    def show(self, limit: int, peak: int) -> None:
        for kind, found in self.kinds.items():
            said = ", ".join(f"{outcome} {number}" for outcome, number in found.most_common())
            print(f"{kind}: {found.total()} in = {found['accepted']} accepted + {found.total() - found['accepted']} turned away ({said})")
        print(f"memory: {peak} MiB of {limit}")


def memory(name: str) -> int:
    """MiB of this process: VmRSS now, VmHWM at most since `watched` began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


@contextmanager
def watched(limit: int) -> Iterator[Tally]:
    """Memory that a reader takes for all that is done inside: at most `limit` MiB above what the process had."""
    Path("/proc/self/clear_refs").write_text("5")
    before, tally = memory("VmRSS"), Tally()
    yield tally
    peak = memory("VmHWM") - before
    tally.show(limit, peak)
    assert peak < limit, f"{peak} MiB, the limit is {limit}"


def test_control_the_watch_sees_what_a_reader_takes() -> None:
    with pytest.raises(AssertionError, match="the limit is 50"), watched(50):
        assert len(bytearray(b"1") * (100 * MIB))


def inputs(kind: str, generator: Callable[[Random], Any], count: int) -> Iterator[Any]:
    """Each of its own seed: the number of an input that fails is enough to have it again."""
    return (generator(Random(f"{kind} {number}")) for number in range(count))


# --- what lands -----------------------------------------------------------------------------------------------------------------


@dataclass
class Landings:
    """Lands, closes, freezes and cleans versions, and says what became of each file."""

    settings: Settings
    store: ObjectStore
    engine: Engine
    folder: Path
    versions: int = 0

    def through(self, system: Any, files: Mapping[str, bytes], clean: Callable[[dataset.Manifest, Path], Any]) -> dict[str, str]:
        """Path -> `accepted` or its reason code, of every file; rows add up, and every reason is one that the system knows."""
        self.versions += 1
        version, folder = f"v{self.versions}", self.folder / str(self.versions)
        for name, content in files.items():
            path = folder / "landing" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        objects.land(self.settings, self.store, system.SYSTEM, folder / "landing", version, engine=self.engine)
        objects.tick(self.engine, self.store, system.SYSTEM, settle_seconds=3600)
        manifest = dataset.freeze(
            self.engine, self.store, system.SYSTEM, version, max_object_bytes=64 * MIB, scratch=folder / "freeze", deep=True
        )
        (folder / "clean").mkdir()
        done = clean(manifest, folder / "clean")
        assert done.rows_in == done.accepted + sum(done.quarantined.values())
        account = system.account(self.engine, self.store, version)
        assert account.adds_up, account.sentence
        assert set(done.quarantined) <= set(system.ROW_REASONS) and set(done.refused_files.values()) <= set(system.FILE_REASONS)
        return self._outcomes(system, version, files)

    def _outcomes(self, system: Any, version: str, files: Mapping[str, bytes]) -> dict[str, str]:
        query = "SELECT key, state, reason_code, reason FROM landing_object WHERE system = :s AND version = :v"
        with self.engine.connect() as connection:
            rows = connection.execute(text(query), {"s": system.SYSTEM, "v": version}).all()
        found = {row.key.split("/", 3)[3]: row.reason_code or row.state for row in rows}
        known = {*system.ROW_REASONS, *system.FILE_REASONS, *ODD, "accepted", "no_row_left", "too_large"}
        assert set(found.values()) <= known, set(found.values()) - known
        assert set(found) == set(files) and len(rows) == len(files), "every file is in the ledger, once"
        return found


@pytest.fixture
def landings(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Landings:
    return Landings(settings, store, engine, tmp_path / "landings")


def land_all(
    landings: Landings,
    tally: Tally,
    system: Any,
    base: Mapping[str, bytes],
    kinds: Mapping[str, tuple[str, Callable[[Random], bytes]]],
    count: int,
    clean: Callable[[dataset.Manifest, Path], Any],
) -> None:
    """`kinds`: kind -> (path with the number of an input in it, or of a folder of pictures; its generator)."""
    files: dict[str, tuple[str, bytes]] = {}
    for kind, (path, generator) in kinds.items():
        for number, content in enumerate(inputs(kind, generator, count)):
            files[path.format(number, picture=made.picture_path(Random(f"{kind} {number}")))] = (kind, content)
    # In any order, but what lies in one folder together: files of IDX are pairs.
    names = sorted(files, key=lambda name: (Random(name.rpartition("/")[0]).random(), Random(name).random()))
    for start in range(0, len(names), MOST_FILES):
        some = {name: files[name][1] for name in names[start : start + MOST_FILES]}
        found = landings.through(system, {**base, **some}, clean)
        for name in some:
            tally.add(files[name][0], found[name])


def test_photos_and_their_indexes(landings: Landings, count: int) -> None:
    part = load_config(TiresConfig, "tires", CONFIGS).dataset
    photos = {f"{'MT_Crack' if n % 2 else 'good'}/base{n}.jpg": test_tires_data.photo(n) for n in range(40)}
    kinds = {
        "photos of any mode and format": ("{picture}", made.picture),
        "damaged photos": ("good/damaged{}.jpg", made.damaged_picture),
        "bombs": ("MT_Crack/bomb{}.png", made.bomb),
        "no photos": ("good/none{}.jpg", made.no_picture),
        "JSON indexes": ("good/labels{}.json", made.label_index),
    }
    part = part.model_copy(update={"index_files": ("labels*.json",)})
    with watched(600) as tally:
        land_all(
            landings, tally, tires, photos, kinds, count,
            lambda manifest, scratch: tires.clean(landings.engine, landings.store, manifest, part, scratch, threads=1),
        )  # fmt: skip


def test_digits_in_idx_and_drawn(landings: Landings, count: int) -> None:
    part = load_config(DigitsConfig, "digits", CONFIGS).dataset
    base = {**test_digits_data.mnist(60, 40), **test_digits_data.users(range(2))}
    named = [json.dumps({"file": f"{n}.png", "label": n % 10, "writer": f"d{n}"}) for n in range(count)]
    base |= {"drawings/labels.jsonl": "\n".join(named).encode()}

    def pair(dimensions: int) -> Callable[[Random], bytes]:
        def idx(random: Random) -> bytes:
            return made.idx(random, dimensions)

        return idx

    kinds = {
        "IDX pictures": ("idx{}/train-images-idx3-ubyte.gz", pair(3)),
        "IDX labels": ("idx{}/train-labels-idx1-ubyte.gz", pair(1)),
        "drawings": ("drawings/{}.png", made.any_picture),
        "CSV indexes": ("csv{}/dataset.csv", made.csv_index),
        "JSON lines indexes": ("lines{}/labels.jsonl", made.jsonl_index),
    }
    with watched(400) as tally:
        land_all(
            landings, tally, digits, base, kinds, count,
            lambda manifest, scratch: digits.clean(landings.engine, landings.store, manifest, part, scratch, threads=1),
        )  # fmt: skip


def test_reviews(landings: Landings, count: int) -> None:
    part = load_config(SentimentConfig, "sentiment", CONFIGS).dataset
    lines = [f"base{n}\t{'좋은' if n % 2 else '나쁜'} 영화 {n}편\t{n % 2}" for n in range(20)]
    base = {
        f"ratings_{of}_base.txt": "\n".join(["id\tdocument\tlabel", *part]).encode()
        for of, part in (("train", lines[:14]), ("test", lines[14:]))
    }
    kinds = {"NSMC": ("ratings_train{}.txt", made.reviews), "NSMC held out": ("ratings_test{}.txt", made.reviews)}
    with watched(600) as tally:
        land_all(
            landings, tally, sentiment, base, kinds, count,
            lambda manifest, scratch: sentiment.clean(
                landings.engine, landings.store, manifest, part, SparkEngine(), scratch, max_line_bytes=MIB // 8
            ),
        )  # fmt: skip


def test_comments_in_files(landings: Landings, count: int) -> None:
    part = test_hate_speech_data.SECTION
    labels, header = list(part.labels), test_hate_speech_data.HEADER
    train = [test_hate_speech_data.row(f"기본 문장 {n}번", labels[n % len(labels)]) for n in range(10)]
    base = {"unsmile_valid_v1.0.tsv": test_hate_speech_data.VALID.encode()}
    lines = "\n".join(test_hate_speech_data.line(n, f"처음 댓글 {n}번이다", labels[0]).strip() for n in range(1000, 1005)).encode()

    def comment_lines(random: Random) -> bytes:
        return made.comment_lines(random, labels)

    def unsmile(random: Random) -> bytes:
        return made.tsv(random, header, lambda: random.choice(("0", "0", "0", "1", "2")))

    def clean(manifest: dataset.Manifest, scratch: Path) -> Any:
        return hate_speech.clean(landings.engine, landings.store, manifest, part, SparkEngine(), scratch, max_line_bytes=MIB // 8)

    with watched(600) as tally:
        whole = {**base, "unsmile_train_v1.0.tsv": test_hate_speech_data.table(*train).encode()}
        land_all(landings, tally, hate_speech, whole, {"comment lines": ("comments_{}.jsonl", comment_lines)}, count, clean)
        # A table has one file in a version: what is odd is its rows, and now and then the file.
        odd = list(inputs("UnSmile", unsmile, count))
        for start in range(0, count, 10):
            rows = b"\n".join(content.partition(b"\n")[2] for content in odd[start : start + 10])
            train_file = test_hate_speech_data.table(*train).encode() + rows
            files = {**base, "comments_base.jsonl": lines, "unsmile_train_v1.0.tsv": train_file}
            tally.add("UnSmile rows", landings.through(hate_speech, files, clean)["unsmile_train_v1.0.tsv"], len(odd[start : start + 10]))
        for content in odd[: max(2, count // 10)]:
            files = {**base, "comments_base.jsonl": lines, "unsmile_train_v1.0.tsv": content}
            tally.add("UnSmile files", landings.through(hate_speech, files, clean)["unsmile_train_v1.0.tsv"])


def policy_config() -> PolicyConfig:
    return validate(PolicyConfig, read_yaml(CONFIGS / "disposal_policy.yaml"), "configs")


def test_policies(landings: Landings, count: int) -> None:
    part = policy_config().cleaning.model_copy(update={"files": ("*.csv", "*.jsonl")})
    base = {"base.csv": sheet.csv_bytes(made.HEADER, made.POLICIES)}
    kinds = {"policies in CSV": ("a{}.csv", made.policy_csv), "policies as they land": ("b{}.jsonl", made.policy_lines)}
    with watched(600) as tally:
        land_all(
            landings, tally, disposal_policy, base, kinds, count,
            lambda manifest, scratch: disposal_policy.clean(landings.engine, landings.store, manifest, part, SparkEngine(), scratch),
        )  # fmt: skip


@pytest.mark.parametrize("where", ["file", "s3"])
def test_keys(where: str, count: int, engine: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Everything that lies there is in the ledger, once; nothing waits in a version that is closed."""
    store = request.getfixturevalue("s3_store") if where == "s3" else ObjectStore((tmp_path / "store").as_uri())
    placed = set()
    for name in inputs(f"keys ({where})", lambda random: made.key(random, of_files=where == "file"), 3 * count):
        try:
            put_raw(store, f"landing/{tires.SYSTEM}/{name}", b"x")
        except OSError:  # a file system has no file below a file, and no longer names
            continue
        placed.add(name)
    with watched(200) as tally:
        for _ in range(2):
            objects.tick(engine, store, tires.SYSTEM, settle_seconds=0)
        with engine.connect() as connection:
            closed = connection.execute(text("SELECT version FROM dataset_version WHERE state = 'closed'")).scalars().all()
        for version in closed:
            dataset.freeze(engine, store, tires.SYSTEM, version, max_object_bytes=MIB, scratch=tmp_path / "freeze", deep=True)
        objects.reconcile(engine, store, tires.SYSTEM, systems=(tires.SYSTEM,))
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT key, version, state, reason_code FROM landing_object")).all()
        listed = {info.key: info for info in store.list("landing")}
        kept = {key for key, info in listed.items() if not objects.is_marker(info)}
        assert {row.key for row in rows} == kept and len(rows) == len(kept)
        for row in rows:
            assert row.state in ("accepted", "quarantined") or row.version not in closed
            assert (row.reason_code is None) == (row.state != "quarantined")
            tally.add(f"keys ({where})", row.reason_code or "accepted")
        tally.add(f"keys ({where})", "marker", len(listed) - len(kept))
    assert placed


# --- tables and sheets ----------------------------------------------------------------------------------------------------------


def test_rows_of_the_comments_table(app: Application, comment_settings: Settings, engine: Engine, count: int) -> None:  # noqa: F811
    """Whatever a row holds, the next tick has it: as it is, or without its text and with a reason."""
    settings = comment_settings.model_copy(update={"max_line_bytes": 2000})
    times = (*["2026-03-01 09:00:00"] * 5, "1000-01-01", "9999-12-31 23:59:59.999999", "0000-00-00", None, "2026-02-28 24:00:00")
    connection = app.server.connect(app.name, sql_mode="ALLOW_INVALID_DATES")
    rows = 0
    with watched(200) as tally:
        for number, random in enumerate(inputs("rows", lambda random: random, 2 * count)):
            said = made.odd_text(random) if random.random() < 0.9 else None
            values = [random.choice((number + 1, -number - 1, 10**12 + number)), said, random.choice(times)]
            values += [made.odd_text(random)[:80], made.odd_text(random)[:200]]
            values[3] = random.choice((values[3], "ok", "removed", None, "7"))
            with connection.cursor() as cursor:
                rows += cursor.execute(
                    "INSERT IGNORE INTO comments (id, text, created_at, status, flags) VALUES (%s, %s, %s, %s, %s)", values
                )
        connection.close()
        done = comments.tick(engine, settings, section())
        while done.behind:
            done = comments.tick(engine, settings, section())
        comments.reconcile(engine, settings, section())
        with engine.connect() as here:
            found = here.execute(text("SELECT coalesce(quarantined, 'accepted') FROM comment")).scalars().all()
        for outcome in found:
            tally.add("rows of comments", outcome)
        assert len(found) == rows and set(found) <= {"accepted", "too_large", "no_text", "no_time"}, Counter(found)


def test_answers_of_the_sheets_service(tmp_path: Path, count: int) -> None:
    """A sheet is read whole, or there is one sentence why not."""
    config = policy_config()
    required = list(config.cleaning.columns.values())
    answer: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answer["values" if "/values/" in self.path else "book"]
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with running_sheets() as service, watched(200) as tally:
        google = sheet.GoogleSheet("b", None, service.credentials(tmp_path / "account.json"), url=service.url, seconds=0)
        google = replace(google, url=f"http://127.0.0.1:{server.server_address[1]}")
        for book, values in inputs("sheets", made.sheet_answers, count):
            answer.update(book=book, values=values)
            try:
                table = sheet.read_google(google, required)
            except sheet.SheetError as error:
                tally.add("answers of the sheets service", "refused")
                assert str(error).strip()
            else:
                tally.add("answers of the sheets service", "accepted")
                assert sheet.load(sheet.dump(table), "it", required) == table, "what is read can be kept"
    server.shutdown()
    server.server_close()


# --- configurations -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["configs", "params.yaml", "service account"])
def test_configurations(kind: str, tmp_path: Path, count: int) -> None:
    path = tmp_path / "file"
    shipped = {
        "configs": (CONFIGS / "tires.yaml").read_text(encoding="utf-8"),
        "params.yaml": "variant: tinyvgg\nseed: 3\nparameters:\n  epochs: 3\n  lr: 0.1\n",
        "service account": json.dumps({"client_email": "a@b.c", "private_key": "x"}),
    }[kind]

    def configuration(random: Random) -> bytes:
        return made.json_body(random, json.loads(shipped)) if kind == "service account" else made.configuration(random, shipped)

    def read() -> Any:
        if kind == "configs":
            return load_config(TiresConfig, "tires", CONFIGS, path).model_dump_json()
        if kind == "params.yaml":
            return repr(read_parameters(path, "tires"))
        return sheet.read_google(sheet.GoogleSheet("b", None, path, url="http://127.0.0.1:1", seconds=0))

    with watched(150) as tally:
        for content in inputs(kind, configuration, count):
            path.write_bytes(content)
            try:
                read()
                tally.add(kind, "accepted")
            except (SettingsError, sheet.SheetError):
                tally.add(kind, "refused")


# --- HTTP -----------------------------------------------------------------------------------------------------------------------

TOKEN = {"Authorization": "Bearer a-token"}


@pytest.fixture
def server(engine: Engine, settings: Settings, store: ObjectStore, tmp_path: Path) -> Iterator[Running]:
    """Photos, strokes and texts are answered, a comment waits for review, a policy is known."""
    for system, folder in (
        ("sentiment", make_bundle(tmp_path / "a")),
        ("tires", make_image_bundle(tmp_path / "b")),
        ("digits", make_digits_bundle(tmp_path / "c", {digit: [drawings.drawing(digit, 1)] for digit in "0123456789"})),
    ):
        world, manual = World(engine, settings, store, system, config_of(system)), config_of(system, mode="manual")
        promote(world, register_folder(world, folder, manual), manual)
    with engine.begin() as connection:
        for number in range(1, 5):
            add_comment(connection, number)
            connection.execute(
                text(
                    "INSERT INTO comment_score (system, source, id, content_hash, bundle_sha256, labels, probabilities, uncertainty) "
                    "VALUES ('sentiment', 'app', :i, 1, 'b', '{긍정}', '{}', 0.5)"
                ),
                {"i": number},
            )
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "sentiment.yaml").write_text("review: {random_share: 0}\n")
    more = {"api_token": "a-token", "otp_secret": drawings.SECRET, "configs": configs}
    with running(settings.model_copy(update=more)) as found:
        for system in ("sentiment", "tires", "digits"):
            assert found.version(system) == 1
        yield found


def judged(answer: httpx.Response, tally: Tally, kind: str) -> None:
    """Answered as asked, or a 4xx with a code and a fix. What is away (503) is none of the client's: nothing is away here."""
    if answer.status_code < 400:
        tally.add(kind, "accepted")
        return
    assert 400 <= answer.status_code < 500, (
        f"{kind} {sum(tally.kinds.get(kind, Counter()).values())}: {answer.status_code} {answer.text[:300]}"
    )
    body = answer.json()
    assert body["code"] and body["message"] and body["fix"]
    tally.add(kind, body["code"])


def test_bodies_of_requests(server: Running, count: int) -> None:
    given = server.client.post("/predict/sentiment", json={"inputs": ["좋은 영화", "별로"]}).headers["x-request-id"]
    task = server.client.get("/review/sentiment/next", params={"reviewer": "가"}, headers=TOKEN).json()["task"]
    photo = drawings.base64.b64encode(made.photo(Random(1), "PNG")).decode()
    session = drawings.session_of(drawings.token())
    posts: dict[str, tuple[str, Any]] = {
        "texts": ("/predict/sentiment", {"inputs": ["좋은 영화", "별로"]}),
        "photos in JSON": ("/predict/tires", {"inputs": [photo, "data:image/png;base64," + photo]}),
        "truths": (f"/feedback/{given}", {"labels": ["긍정", None]}),
        "reviews": (f"/review/sentiment/{task}", {"labels": ["긍정"], "reviewer": "가", "skip": False}),
        "verifications": ("/otp/verified", {"session": session, "mac": "0" * 64}),
    }
    with watched(400) as tally:
        for kind, (path, usual) in posts.items():
            for body in inputs(kind, lambda random, usual=usual: made.json_body(random, usual), count):
                judged(server.client.post(path, content=body, headers=TOKEN), tally, kind)
        for body, said in inputs("multipart", made.multipart_body, count):
            judged(server.client.post("/predict/tires", content=body, headers={"content-type": said}), tally, "photos in multipart")
        for picture in inputs("codes", made.any_picture, count):
            judged(server.client.post("/predict/digits", files={"files": picture}, params={"length": 6}), tally, "codes in a picture")
        for body in inputs("strokes", made.strokes, count):
            content = json.dumps(body).encode("utf-8", "surrogatepass")
            judged(server.client.post("/otp/confirmation", content=content), tally, "strokes of /otp")


def test_addresses(server: Running, count: int) -> None:
    """Names and values in the address and the headers."""

    def asked(random: Random) -> tuple[str, str, dict[str, str]]:
        value = "".join(f"%{byte:02x}" for byte in made.odd_bytes(random)[:300])
        method, path = random.choice(
            (
                ("GET", f"/policies?region={value}&at={random.choice(('', '2026-01-01', '9999-12-31', '0001-01-01', value))}"),
                ("GET", f"/policies?region=서울&limit={value}&after={value}"),
                ("GET", f"/review/sentiment/next?reviewer={value}"),
                ("POST", f"/review/sentiment/{value}"),
                ("POST", f"/predict/{value}"),
                ("POST", f"/predict/sentiment?version={value}"),
                ("POST", f"/predict/digits?length={value}"),
                ("POST", f"/feedback/{value}"),
                ("GET", f"/models/{value}"),
                ("DELETE", f"/otp/users/{value}"),
                ("GET", f"/otp?session={value}&lang={value}"),
                ("GET", f"/otp/files/{value}"),
                ("GET", f"/{value}"),
            )
        )
        headers = {
            name: random.choice(("1", "²", "9" * 400, "gzip", "a;b=c", "-1"))
            for name in ("x-otp-time", "x-otp-mac", "x-actor", "accept-language")
        }
        return method, path, {name: value.encode().decode("latin-1") for name, value in headers.items()}

    with watched(100) as tally:
        for method, path, headers in inputs("addresses", asked, 3 * count):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in {**headers, **TOKEN}.items()]
            answer = server.client.request(
                method, path, headers=raw, content=b'{"inputs": ["x"], "labels": ["x"], "reviewer": "x"}' * (method == "POST")
            )
            if (
                answer.status_code == 503
                and answer.json()["code"] == "no_policies"
                or path.startswith("/otp?")
                and answer.status_code < 500
            ):
                tally.add("addresses", "accepted")
                continue
            judged(answer, tally, "addresses")


# --- the control ----------------------------------------------------------------------------------------------------------------


def test_control_a_reader_without_its_guard_is_caught(landings: Landings) -> None:
    """Without the one clause that turns Pillow's errors into ours, generated pictures stop the version."""
    part = load_config(TiresConfig, "tires", CONFIGS).dataset
    photos = {f"{'MT_Crack' if n % 2 else 'good'}/base{n}.jpg": test_tires_data.photo(n) for n in range(40)}

    def unguarded(data: bytes, *, limits: images.Limits = images.DEFAULT) -> Any:
        from PIL import Image

        return Image.open(io.BytesIO(data)).convert("RGB")

    with (
        patch.object(images, "decode", unguarded),
        pytest.raises(OSError, match="truncated|identify|broken|decoder"),
        watched(600) as tally,
    ):
        land_all(
            landings, tally, tires, photos, {"damaged photos": ("good/damaged{}.jpg", made.damaged_picture)}, 20,
            lambda manifest, scratch: tires.clean(landings.engine, landings.store, manifest, part, scratch, threads=1),
        )  # fmt: skip
