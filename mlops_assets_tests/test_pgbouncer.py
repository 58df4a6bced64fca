"""PostgreSQL behind a real pgbouncer that knows nothing of us: sessions of one's own work, pooled transactions are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import psycopg
import pytest
from sqlalchemy import text

from mlops_assets import database, doctor
from mlops_assets.lifecycle import promotion
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import REPOSITORY, Settings, SettingsError, load_settings, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets.training import tuning
from mlops_assets_tests import poolers
from mlops_assets_tests.conftest import free_port
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.poolers import PASSWORD, Postgres, Program

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")  # not everybody has sbin in PATH
FIX = "set `pool_mode = session` for this database in pgbouncer.ini"

pytestmark = pytest.mark.skipif(not PROGRAM, reason="no pgbouncer: apt-get install pgbouncer")


class Bouncer(Program):
    """A pgbouncer in front of `backend`, whose databases it passes on under their names."""

    def __init__(self, folder: Path, backend: Postgres, **changes: object) -> None:
        self.port = free_port()
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": folder / "userlist.txt",
            "pool_mode": "session",
        }
        told = "".join(f"{key} = {value}\n" for key, value in (lines | changes).items())
        folder.mkdir(mode=0o755)
        (folder / "userlist.txt").write_text(f'"postgres" "{PASSWORD}"\n')
        (folder / "pgbouncer.ini").write_text(f"[databases]\n* = host=127.0.0.1 port={backend.port}\n[pgbouncer]\n{told}")
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, backend.made.uid, backend.made.gid) if backend.made.uid is not None else None
        log = backend.log.parent / f"{folder.name}-{self.port}.log"
        super().__init__([str(PROGRAM), str(folder / "pgbouncer.ini")], log, user=backend.made.uid, group=backend.made.gid)

    def url(self, name: str = "mlops") -> str:
        return f"postgresql://postgres:{quote(PASSWORD)}@127.0.0.1:{self.port}/{name}"

    def answers(self) -> bool:
        psycopg.connect(self.url(), connect_timeout=5).close()
        return True


@contextmanager
def bouncer_of(backend: Postgres, **changes: object) -> Iterator[Bouncer]:
    bouncer = Bouncer(backend.log.parent / f"b{uuid.uuid4().hex[:8]}", backend, **changes)
    try:
        bouncer.start()
        yield bouncer
    finally:
        bouncer.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with poolers.postgres() as server:
        yield server


@pytest.fixture(scope="module")
def session(server: Postgres) -> Iterator[Bouncer]:
    """Sessions of one's own; our schema is migrated through it."""
    with bouncer_of(server) as bouncer:
        database.migrate(bouncer.url())
        yield bouncer


@pytest.fixture(scope="module")
def transaction(server: Postgres) -> Iterator[Bouncer]:
    with bouncer_of(server, pool_mode="transaction") as bouncer:
        yield bouncer


@pytest.fixture
def world(session: Bouncer, tmp_path: Path) -> Iterator[World]:
    """A system of the test's own: all tests share one database."""
    system = f"s{uuid.uuid4().hex[:8]}"
    settings = load_settings(home=tmp_path / "home", database_url=session.url(), object_store_url=(tmp_path / "store").as_uri())
    engine = database.connect(session.url())
    yield World(engine, settings, ObjectStore.of(settings), system, config_of(system))
    engine.dispose()


# --- sessions of one's own ----------------------------------------------------------------------------------------------------------------


def test_registration_promotion_and_rollback(world: World) -> None:
    assert world.registered(content="a").verdict.outcome == "promoted"
    assert world.registered("v2", {**GOOD, "f1": 0.9}, content="b").verdict.outcome == "promoted"
    world.registrar().rollback(reason="complaints")
    with world.engine.connect() as connection:
        found, _ = promotion.latest_verified(connection, world.system, "champion", world.settings.public_keys_path)
        assert found is not None and (found.version, found.sequence) == (1, 3)


def test_a_session_is_in_utc_whatever_the_database_has(server: Postgres) -> None:
    server.ask("ALTER DATABASE mlops SET timezone = 'Asia/Seoul'", "postgres")
    try:
        with bouncer_of(server) as bouncer:  # whose sessions all begin with that
            with psycopg.connect(bouncer.url()) as plain:
                assert plain.execute("SHOW timezone").fetchone() == ("Asia/Seoul",), "the control: not by itself"
            for size in (0, 1):
                engine = database.connect(bouncer.url(), pool_size=size)
                for _ in range(3):  # also when the connection comes from the pool, and after a rollback
                    with engine.connect() as connection:
                        assert connection.execute(text("SHOW timezone")).scalar_one() == "UTC"
                        connection.rollback()
                engine.dispose()
    finally:
        server.ask("ALTER DATABASE mlops RESET timezone", "postgres")


def test_control_the_parameter_that_was_used_before_is_refused(session: Bouncer) -> None:
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter: options"):
        psycopg.connect(session.url(), options="-c timezone=UTC")


def test_many_transactions_of_many_threads(session: Bouncer) -> None:
    """Prepared statements, at the sixth use of each, in eight threads: a pooler of transactions broke 64 of 480."""
    engine = database.connect(session.url())
    broken: list[Exception] = []

    def work() -> None:
        for number in range(60):
            try:
                with engine.begin() as connection:
                    assert connection.execute(text("SELECT CAST(:n AS int) + 1"), {"n": number}).scalar_one() == number + 1
            except Exception as error:
                broken.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert broken == []


def test_an_idle_listener_is_told(world: World) -> None:
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("LISTEN promotion"))
        world.registered()
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        told = next(driver.notifies(timeout=10, stop_after=1), None)
    assert told is not None and told.payload == world.system


def test_a_sweep_has_its_lock_and_its_schema(session: Bouncer) -> None:
    from optuna.trial import create_trial

    with tuning.open_study(session.url(), "sweep", direction="maximize", prune=False) as study:
        study.add_trial(create_trial(value=0.5))
        with pytest.raises(tuning.StudyBusy), tuning.open_study(session.url(), "sweep", direction="maximize", prune=False):
            pass
    with tuning.open_study(session.url(), "sweep", direction="maximize", prune=False) as study:
        assert study.best_value == 0.5
    engine = database.connect(session.url(), pool_size=0)
    with engine.connect() as connection:
        tables = connection.execute(text("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'trials'")).scalars().all()
        assert list(tables) == [tuning.SCHEMA]


def test_dagsters_and_mlflows_storages(session: Bouncer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    monkeypatch.setenv("MLOPS_DAGSTER_DATABASE_URL", session.url("dagster"))

    @dg.job
    def empty() -> None: ...

    told = threading.Event()
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        from mlops_assets.resources.executor import keep_connections

        keep_connections(instance)
        assert empty.execute_in_process(instance=instance).success
        run = instance.create_run_for_job(empty)
        instance.watch_event_logs(run.run_id, None, lambda *event: told.set())
        instance.report_run_canceled(run)
        assert told.wait(10)
    script = (
        "from mlflow import MlflowClient; import sys; c = MlflowClient(sys.argv[1]); print(c.get_experiment(c.create_experiment('x')).name)"
    )
    done = subprocess.run([sys.executable, "-c", script, session.url("mlflow")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "x", done.stderr[-2000:]


# --- pooled transactions ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pooled"),
    [
        ({"pool_mode": "session"}, False),
        ({"pool_mode": "session", "default_pool_size": 1}, False),  # the second client waits: nothing is known, and nothing hangs
        ({"pool_mode": "transaction"}, True),
        ({"pool_mode": "transaction", "ignore_startup_parameters": "options"}, True),
        ({"pool_mode": "transaction", "default_pool_size": 1}, True),
        ({"pool_mode": "transaction", "min_pool_size": 5, "server_round_robin": 1}, True),
        ({"pool_mode": "statement"}, True),
    ],
)
def test_which_poolers_are_told_apart(server: Postgres, changes: dict[str, object], pooled: bool) -> None:
    with bouncer_of(server, **changes) as bouncer:
        assert database.pools_transactions(bouncer.url(), patience=3) is pooled
        assert database.pools_transactions(bouncer.url().replace("postgresql://", "postgresql+psycopg://"), patience=3) is pooled


def test_no_pooler_and_no_database(server: Postgres) -> None:
    direct = f"postgresql://postgres:{quote(PASSWORD)}@127.0.0.1:{server.port}/mlops"
    assert not database.pools_transactions(direct)
    assert not database.pools_transactions(f"postgresql://postgres@127.0.0.1:{free_port()}/mlops")


def test_doctor_says_it_with_the_fix(session: Bouncer, transaction: Bouncer, settings: Settings) -> None:
    def pooler(**urls: str) -> list[doctor.Line]:
        checks = dict(doctor._CHECKS)
        return list(checks["pooler"](settings.model_copy(update={"database_url": None, **urls})))

    assert [line.state for line in pooler(database_url=session.url())] == ["ok"]
    for name in database.URLS:
        (line,) = pooler(**{"database_url": session.url(), name: transaction.url()})
        assert line.state == "fail" and f"MLOPS_{name.upper()}" in line.found and line.fix.startswith(FIX)


def test_the_server_does_not_start_through_it(transaction: Bouncer, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", database_url=transaction.url(), serve_port=free_port())
    line = [sys.executable, "-m", "mlops_assets.cli", "serve"]
    environment = process_environment() | settings.environment()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and FIX in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_up_does_not_start_through_it(session: Bouncer, transaction: Bouncer, tmp_path: Path) -> None:
    urls = {"database_url": session.url(), "dagster_database_url": transaction.url("dagster"), "mlflow_database_url": session.url("mlflow")}
    environment = process_environment() | load_settings(home=tmp_path / "home", **urls).environment()
    done = subprocess.run([sys.executable, "-m", "mlops_assets.cli", "up"], env=environment, capture_output=True, text=True, timeout=120)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "MLOPS_DAGSTER_DATABASE_URL goes through" in said and "Traceback" not in said, said


def test_dagsters_code_says_it_at_every_tick(session: Bouncer, transaction: Bouncer) -> None:
    with PostgresResource.of(load_settings(database_url=session.url())).engine() as engine, engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    for _ in range(2):
        with (
            pytest.raises(SettingsError, match="pool_mode = session"),
            PostgresResource.of(load_settings(database_url=transaction.url())).engine(),
        ):
            pass


def test_control_what_a_pooler_of_transactions_loses(transaction: Bouncer) -> None:
    with psycopg.connect(transaction.url(), autocommit=True) as one, psycopg.connect(transaction.url()) as other:
        one.execute("SELECT pg_advisory_lock(77)")
        other.execute("SELECT 1")  # holds the session in which the lock is
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert one.execute(held).fetchone() == (0,), "the lock is another session's now"
