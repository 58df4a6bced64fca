"""`mlops doctor`: looks at this machine and the platform, line by line, and says for each fault the command that mends it.

Belongs here: checks that change nothing lasting. Does not belong here: mending.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from mlops_assets.settings import REPOSITORY, SERVICES_FILE, Settings, SettingsError, read_yaml, shown

State = Literal["ok", "warn", "fail"]

_GIB = 1024**3
_STORE_SECONDS = 10.0
_SPARK_SECONDS = 5.0


@dataclass(frozen=True)
class Line:
    name: str
    state: State
    found: str
    fix: str = ""


def run(settings: Settings, *, as_json: bool = False) -> int:
    """Print every line; the exit code is 1 when one of them is `fail`."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True, highlight=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    lines = []
    for line in examine(settings):
        lines.append(line)
        if not as_json:
            fix = f"\n       fix: {line.fix}" if line.fix else ""
            console.print(f"[{colours[line.state]}]{line.state:>4}[/]  {line.name:<18} {escape(line.found + fix)}")
    failed = any(line.state == "fail" for line in lines)
    if as_json:
        sys.stdout.write(json.dumps({"ok": not failed, "lines": [asdict(line) for line in lines]}, ensure_ascii=False) + "\n")
    return int(failed)


def examine(settings: Settings) -> Iterator[Line]:
    """All checks, each in its own net: one that breaks is a failed line, never the end of the others."""
    for name, check in _CHECKS:
        try:
            for line in check(settings):
                yield replace(line, found=shown(line.found), fix=shown(line.fix))
        except Exception as error:
            yield Line(name, "fail", shown(f"{type(error).__name__}: {error}"), "mend what this says, then run `mlops doctor` again")


def _python(_: Settings) -> Iterator[Line]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Line("python", "ok" if good else "fail", found, "" if good else "install Python 3.11 or 3.12, remove .venv and run `make run`")


def _packages(_: Settings) -> Iterator[Line]:
    from importlib.metadata import PackageNotFoundError, version

    lock = REPOSITORY / "requirements.lock"
    wrong, count = [], 0
    for line in lock.read_text().splitlines():
        found = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", line)
        if found is None:
            continue
        count += 1
        name, wanted = found.groups()
        try:
            if version(name).split("+")[0] != wanted.split("+")[0]:
                wrong.append(f"{name} {version(name)} instead of {wanted}")
        except PackageNotFoundError:
            if ";" not in line:  # with a marker it may belong to another platform
                wrong.append(f"{name} {wanted} is missing")
    if wrong:
        shown = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        yield Line("packages", "warn", shown, "rm -f .venv/.installed && make install")
    else:
        yield Line("packages", "ok", f"{count} packages as pinned in requirements.lock")


def _home(settings: Settings) -> Iterator[Line]:
    from mlops_assets.resources.embedded import EmbeddedProblem, refuse_exposing

    settings.home.mkdir(parents=True, exist_ok=True)
    probe = settings.home / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        yield Line("home", "fail", f"{settings.home} cannot be written: {error.strerror}", "set MLOPS_HOME to a folder of yours")
        return
    if not all((settings.database_url, settings.dagster_database_url, settings.mlflow_database_url)) and _is_root():
        try:
            refuse_exposing(settings.home / "postgres", "the home", "set MLOPS_HOME to a folder that others may pass, such as /srv/mlops")
        except EmbeddedProblem as problem:
            yield Line("home", "fail", str(problem), "MLOPS_HOME=/srv/mlops mlops up")
            return
    yield Line("home", "ok", str(settings.home))


def _is_root() -> bool:
    import os

    return os.geteuid() == 0


def _disk(settings: Settings) -> Iterator[Line]:
    free = shutil.disk_usage(settings.home).free / _GIB
    state: State = "ok" if free > 10 else "warn" if free > 2 else "fail"
    fix = "" if state == "ok" else "`mlops retention` deletes old models; or set MLOPS_HOME to a bigger disk"
    yield Line("disk", state, f"{free:.1f} GiB free at {settings.home}", fix)


def _running(settings: Settings) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        import psutil

        services = dict(json.loads((settings.home / SERVICES_FILE).read_text()))
        if psutil.pid_exists(int(services["pid"])):
            return services
    return {}


def _ports(settings: Settings) -> Iterator[Line]:
    from mlops_assets.supervise import is_free
    from mlops_assets.up import PORTS

    if _running(settings):
        yield Line("ports", "ok", "in use by the running platform")
        return
    taken = [
        f"{name.removesuffix('_port')} {getattr(settings, name)}" for name in PORTS if not is_free(settings.host, getattr(settings, name))
    ]
    if taken:
        yield Line("ports", "warn", f"taken by other programs: {', '.join(taken)}", "nothing to do: `mlops up` takes the next free ones")
    else:
        yield Line("ports", "ok", "the usual ones are free")


def _key(settings: Settings) -> Iterator[Line]:
    from mlops_assets.lifecycle.signing import KeyProblem, load_signer, who_reads

    if not settings.signing_key_path.exists():
        yield Line("signing key", "warn", f"none yet at {settings.signing_key_path}", "`mlops up` makes one at its first start")
        return
    try:
        signer = load_signer(settings)
    except KeyProblem as problem:
        yield Line("signing key", "fail", str(problem), problem.fix)
        return
    public = settings.public_keys_path / f"{signer.key_id}.pub"
    if not public.exists():
        found = f"its public half {public} is missing: no server accepts what it signed"
        yield Line("signing key", "fail", found, "`mlops up` makes it again from the private half, which must not be rotated before")
        return
    yield Line("signing key", "ok", f"{signer.key_id}, {who_reads(settings.signing_key_path)}")


def _embedded(settings: Settings) -> Iterator[Line]:
    from mlops_assets.resources.embedded import postmaster

    data = settings.home / "postgres"
    if not data.exists():
        yield Line("postgresql", "ok", "no embedded database yet" if not settings.database_url else "not embedded")
    elif (pid := postmaster(data)) is not None:
        yield Line("postgresql", "ok", f"embedded, running as process {pid}")
    elif _running(settings) and "://postgres@/mlops?host=" in (settings.database_url or ""):
        log = settings.home / "logs" / "postgres.log"
        fix = (
            f"see the end of {log}; is the disk full? `mlops up` starts it again by itself, at least every 30 s, and the rest waits for it"
        )
        yield Line("postgresql", "fail", "embedded, not running although the platform runs", fix)
    else:
        yield Line("postgresql", "ok", "embedded, not running")


def _database(settings: Settings) -> Iterator[Line]:
    if settings.database_url is None:
        yield Line("database", "warn", "the platform is not running", "mlops up")
        return
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy.exc import OperationalError

    from mlops_assets import database

    head = ScriptDirectory(str(database.MIGRATIONS)).get_current_head()
    engine = database.connect(settings.database_url, pool_size=1)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    except OperationalError as error:
        yield Line(
            "database",
            "fail",
            f"does not answer: {str(error.orig).strip().splitlines()[0]}",
            "start it (`mlops up`), or mend MLOPS_DATABASE_URL",
        )
        return
    finally:
        engine.dispose()
    if current == head:
        yield Line("database", "ok", f"answers, schema {current}")
    elif current is None or int(current) < int(str(head)):
        yield Line("database", "warn", f"schema {current}, this version wants {head}", "mlops up")
    else:
        yield Line("database", "fail", f"schema {current} is newer than this version's {head}", "install the mlops_assets that migrated it")


def _poolers(settings: Settings) -> Iterator[Line]:
    from mlops_assets import database

    given = [name for name in database.URLS if getattr(settings, name)]
    for name in given:
        try:
            database.refuse_transaction_pooling(getattr(settings, name), name)
        except SettingsError as error:
            found, _, fix = str(error).partition(": set ")
            yield Line("pooler", "fail", found, f"set {fix}")
            return
    if given:
        yield Line("pooler", "ok", "every database connection keeps its session")


def _comments(settings: Settings) -> Iterator[Line]:
    """The application's tables of comments, judged as at each tick; none is read."""
    from mlops_assets.ingest.comment_source import CommentsError, connect, section_of

    if not settings.comments_url:
        return
    systems = [path.stem for path in sorted(settings.configs.glob("*.yaml")) if read_yaml(path).get("comments")]
    for system in systems:
        section = section_of(settings, system)
        try:
            with connect(settings, section, key="0") as table:
                problems = " ".join(table.problems)
        except CommentsError as error:
            fix = f"mend what this says; the section `comments` is in {settings.configs / (system + '.yaml')}"
            yield Line("comments", "fail", str(error), fix)
        else:
            yield Line(
                "comments",
                "warn" if problems else "ok",
                problems or f"every column of {section.table} can be read",
                problems and "see above",
            )


def _store(settings: Settings) -> Iterator[Line]:
    from mlops_assets.store import ObjectStore

    fix = "mend MLOPS_OBJECT_STORE_URL, MLOPS_S3_ENDPOINT_URL or the credentials"
    outcome: list[str] = []

    def probe() -> None:
        key = f"doctor/{uuid.uuid4().hex}"
        try:
            store = ObjectStore.of(settings)
            store.put(key, b"probe")
            wrong = "" if store.get(key) == b"probe" else "gave back other bytes than were written"
            listed = any(info.key == key for info in store.list("doctor"))
            outcome.append(wrong or ("" if listed else "does not list what was written"))
            store.delete(key)
        except Exception as error:  # what a store raises differs by store; all of it is this line
            outcome.append((str(error).strip() or type(error).__name__).splitlines()[0][:300])

    begun = time.monotonic()
    thread = threading.Thread(target=probe, daemon=True)  # a store that is away is asked again for minutes
    thread.start()
    thread.join(_STORE_SECONDS)
    problem = outcome[0] if outcome else f"does not answer within {_STORE_SECONDS:.0f} s"
    if problem:
        yield Line("object store", "fail", f"{settings.store_url}: {problem}", fix)
    else:
        yield Line("object store", "ok", f"{settings.store_url} writes and reads ({(time.monotonic() - begun) * 1000:.0f} ms)")


def _mlflow(settings: Settings) -> Iterator[Line]:
    from mlops_assets.up import answers

    if settings.mlflow_tracking_uri is None:
        yield Line("mlflow", "warn", "the platform is not running", "mlops up")
    elif answers(settings.mlflow_tracking_uri + "/health"):
        yield Line("mlflow", "ok", settings.mlflow_tracking_uri)
    else:
        yield Line("mlflow", "fail", f"{settings.mlflow_tracking_uri} does not answer", f"see {settings.home / 'logs' / 'mlflow.log'}")


def _services(settings: Settings) -> Iterator[Line]:
    from mlops_assets.up import answers

    addresses = {
        "dagster": (settings.dagster_url, "/server_info"),
        "serve": (settings.serve_url, "/livez"),
        "staging": (settings.staging_url, "/livez"),
    }
    for name, (url, path) in addresses.items():
        if url is None:
            continue
        if answers(url + path):
            yield Line(name, "ok", url)
        else:
            yield Line(name, "fail", f"{url} does not answer", f"see {settings.home / 'logs' / (name + '.log')}; `mlops up` starts it")


def _spark(settings: Settings) -> Iterator[Line]:
    from mlops_assets.resources.spark import SparkEngine

    begun = time.monotonic()
    where, fix = settings.spark_remote or "embedded (Sail)", "start it, or set MLOPS_SPARK_REMOTE to another engine"
    if (address := urlsplit(settings.spark_remote or "")).port is not None:
        try:  # Spark itself asks a server that is away again for ten minutes
            socket.create_connection((address.hostname or "", address.port), timeout=_SPARK_SECONDS).close()
        except OSError as error:
            yield Line("spark", "fail", f"{where} does not answer ({error.strerror or error})", fix)
            return
    with SparkEngine(remote=settings.spark_remote).session() as spark:
        rows = spark.range(3).count()
    if rows == 3:
        yield Line("spark", "ok", f"{where} answers ({time.monotonic() - begun:.1f} s)")
    else:
        yield Line("spark", "fail", f"{where} counts {rows} instead of 3 rows", fix)


def _font(_: Settings) -> Iterator[Line]:
    """The one that pictures are drawn with, by the code that draws them."""
    from mlops_assets.training.plots import NoHangul, hangul_font

    try:
        yield Line("font", "ok", f"Korean text in pictures: {hangul_font()}")
    except NoHangul as error:
        yield Line("font", "warn", str(error), "make install, or install any Korean font (apt-get install fonts-nanum)")


def _programs(_: Settings) -> Iterator[Line]:
    """What only some tests use; nothing at run time needs them."""
    optional = {
        "chromium": (("chromium", "chromium-browser", "google-chrome"), "apt-get install chromium"),
        "java": (("java",), "apt-get install openjdk-17-jre-headless"),
        "mariadb": (("mariadbd", "mysqld"), "apt-get install mariadb-server"),
    }
    for name, (programs, fix) in optional.items():
        found = next((path for program in programs if (path := shutil.which(program) or shutil.which(program, path="/usr/sbin"))), None)
        yield Line(name, "ok" if found else "warn", found or "not installed (only tests use it)", "" if found else fix)


_CHECKS: list[tuple[str, Callable[[Settings], Iterator[Line]]]] = [
    ("python", _python),
    ("packages", _packages),
    ("home", _home),
    ("disk", _disk),
    ("ports", _ports),
    ("signing key", _key),
    ("postgresql", _embedded),
    ("database", _database),
    ("pooler", _poolers),
    ("comments", _comments),
    ("object store", _store),
    ("mlflow", _mlflow),
    ("services", _services),
    ("spark", _spark),
    ("font", _font),
    ("programs", _programs),
]
