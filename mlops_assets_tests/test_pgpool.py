"""PostgreSQL behind pgpool, as production may have it: a real pgpool with the shipped `deploy/pgpool/` in front of a real PostgreSQL.

Only addresses, ports and folders differ from what is shipped. Both ask for passwords (SCRAM), as compose's do. Each control changes a line
of the shipped pgpool.conf and shows what that line is for.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import yaml
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from mlops_assets import database
from mlops_assets.lifecycle import promotion
from mlops_assets.settings import REPOSITORY, load_settings, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets_tests import poolers
from mlops_assets_tests.conftest import free_port, wait_for
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.poolers import PASSWORD, Postgres, Program

PROGRAM = shutil.which("pgpool", path=f"{os.environ['PATH']}:/usr/sbin")  # not everybody has sbin in PATH
SHIPPED = REPOSITORY / "deploy" / "pgpool"
COMMAND = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())["services"]["pgpool"]["command"][2].replace("$$", "$")

pytestmark = pytest.mark.skipif(not PROGRAM, reason="no pgpool: apt-get install pgpool2")


# --- pgpools in front of a PostgreSQL -------------------------------------------------------------------------------------------------


class Pool(Program):
    """The shipped pgpool in front of `backends`, with `changes` of its pgpool.conf."""

    def __init__(self, folder: Path, *backends: Postgres, **changes: Any) -> None:
        self.port = free_port()
        lines = {"listen_addresses": "127.0.0.1", "port": self.port, "pcp_port": free_port()}
        for number, backend in enumerate(backends):
            lines |= {f"backend_hostname{number}": "127.0.0.1", f"backend_port{number}": backend.port, f"backend_weight{number}": 1}
        folder.mkdir()
        conf = (SHIPPED / "pgpool.conf").read_text().replace("/tmp/pgpool", str(folder / "run"))
        (folder / "pgpool.conf").write_text(conf + "".join(f"{key} = '{value}'\n" for key, value in (lines | changes).items()))
        shutil.copy(SHIPPED / "pool_hba.conf", folder)
        environment = process_environment() | {"POSTGRES_PASSWORD": PASSWORD, "PATH": f"{Path(str(PROGRAM)).parent}:/usr/bin:/bin"}
        command = COMMAND.replace("/etc/pgpool2", str(folder)).replace("/tmp/pgpool", str(folder / "run"))
        super().__init__(["sh", "-c", command], folder / "log", env=environment)

    def url(self, name: str = "mlops", password: str = PASSWORD) -> str:
        return f"postgresql://postgres:{quote(password)}@127.0.0.1:{self.port}/{name}"

    def answers(self) -> bool:
        psycopg.connect(self.url(), connect_timeout=5).close()
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with poolers.postgres() as server:
        yield server


@contextmanager
def pool_of(folder: Path, *backends: Postgres, **changes: Any) -> Iterator[Pool]:
    pool = Pool(folder, *backends, **changes)
    try:
        pool.start()
        yield pool
    finally:
        pool.stop()


@pytest.fixture(scope="module")
def pool(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """What is shipped; our schema is migrated through it."""
    with pool_of(tmp_path_factory.mktemp("shipped") / "pool", server) as pool:
        database.migrate(pool.url())
        yield pool


@pytest.fixture
def engine(pool: Pool) -> Iterator[Engine]:
    engine = database.connect(pool.url())
    yield engine
    engine.dispose()


@pytest.fixture
def world(pool: Pool, engine: Engine, tmp_path: Path) -> World:
    """A system of the test's own: all tests share one database."""
    system = f"s{uuid.uuid4().hex[:8]}"
    settings = load_settings(home=tmp_path / "home", database_url=pool.url(), object_store_url=(tmp_path / "store").as_uri())
    return World(engine, settings, ObjectStore.of(settings), system, config_of(system))


def champion(world: World) -> tuple[int, int] | None:
    """Version and sequence that a server would follow."""
    with world.engine.connect() as connection:
        found, _ = promotion.latest_verified(connection, world.system, "champion", world.settings.public_keys_path)
        return (found.version, found.sequence) if found else None


def backend(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row
    return int(row[0])


# --- what the platform does -----------------------------------------------------------------------------------------------------------


def test_registration_promotion_and_rollback(world, pool):
    assert world.registered(content="a").verdict.outcome == "promoted"
    assert world.registered("v2", {**GOOD, "f1": 0.9}, content="b").verdict.outcome == "promoted"
    assert champion(world) == (2, 2)
    world.registrar().rollback(reason="complaints")
    assert champion(world) == (1, 3)
    with world.engine.connect() as connection:
        assert connection.execute(text("SHOW timezone")).scalar_one() == "UTC"


def test_racing_registrars_make_one_sequence(world, pool):
    """Each with its own connections: only the advisory lock in PostgreSQL is between them."""
    attempts = [world.attempt(content=f"c{i}") for i in range(6)]
    reports = [world.report(a) for a in attempts]
    outcomes: list[str] = []

    def race(attempt, report):
        engine = database.connect(pool.url(), pool_size=0)
        racer = World(engine, world.settings, world.store, world.system, world.config)
        outcomes.append(racer.registrar().register(attempt.id, report).verdict.outcome)

    threads = [threading.Thread(target=race, args=pair) for pair in zip(attempts, reports, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["promoted"] + ["registered"] * 5
    with world.engine.connect() as connection:
        query = text("SELECT version FROM receipt WHERE system = :s ORDER BY version")
        assert list(connection.execute(query, {"s": world.system}).scalars()) == [1, 2, 3, 4, 5, 6]


def test_copy_of_many_rows_is_all_or_nothing(engine, server):
    rows = [(number, f"좋은 영화 {number}") for number in range(50_000)]
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE copied (id int PRIMARY KEY, content text)"))
    with pytest.raises(RuntimeError, match="away"), engine.begin() as connection:
        database.copy_rows(connection, "copied", ["id", "content"], rows)
        raise RuntimeError("away")
    assert server.ask("SELECT count(*) FROM copied") == [(0,)]
    with engine.begin() as connection:
        assert database.copy_rows(connection, "copied", ["id", "content"], rows) == len(rows)
    assert server.ask("SELECT count(*), max(content) FROM copied WHERE id = 49999") == [(1, "좋은 영화 49999")]


def test_prepared_statements_serve_many_transactions(engine):
    """psycopg prepares a statement at its sixth use, and pipelines the rows of an executemany."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE prepared (n int PRIMARY KEY)"))
    for base in range(0, 300, 10):
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO prepared VALUES (:n)"), [{"n": base + i} for i in range(10)])
            assert connection.execute(text("SELECT count(*) FROM prepared WHERE n <= :n"), {"n": base + 9}).scalar_one() == base + 10
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() >= 2


def test_an_idle_listener_is_told(world):
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("LISTEN promotion"))
        world.registered()
        told = next(connection.connection.driver_connection.notifies(timeout=10, stop_after=1), None)
    assert told is not None and told.payload == world.system


def test_dagsters_storage_works_and_its_event_watcher_is_told(pool, tmp_path, monkeypatch):
    from dagster import DagsterInstance, DagsterRunStatus, job

    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    monkeypatch.setenv("MLOPS_DAGSTER_DATABASE_URL", pool.url("dagster"))

    @job
    def empty(): ...

    told = threading.Event()
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_run_by_id(empty.execute_in_process(instance=instance).run_id).status is DagsterRunStatus.SUCCESS
        run = instance.create_run_for_job(empty)
        instance.watch_event_logs(run.run_id, None, lambda *event: told.set())
        instance.report_run_canceled(run)
        assert told.wait(10)


# --- what goes wrong ------------------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_refused(pool):
    with pytest.raises(psycopg.OperationalError, match="password|authentication"):
        psycopg.connect(pool.url(password="wrong"))


def test_a_killed_backend_loses_its_transaction_and_the_next_operation_succeeds(world, server):
    world.registered(content="a")
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mlops' AND pid <> pg_backend_pid()"
    server.ask(kill)
    assert champion(world) == (1, 1)  # the engine's idle connections were among the killed
    with pytest.raises(DBAPIError), world.engine.begin() as connection:
        connection.execute(text("INSERT INTO outbox (topic, payload) VALUES ('slack', '\"half\"')"))
        server.ask(kill)
        connection.execute(text("SELECT 1"))
    assert server.ask("SELECT count(*) FROM outbox WHERE payload::text LIKE '%half%'") == [(0,)]
    assert world.registered("v2", {**GOOD, "f1": 0.9}, content="b").verdict.outcome == "promoted"
    assert champion(world) == (2, 2)


def test_a_restarted_pgpool_and_a_restarted_postgresql_are_found_again(world, pool, server):
    world.registered(content="a")
    pool.stop()
    with pytest.raises(OperationalError):
        champion(world)
    pool.start()
    assert champion(world) == (1, 1)
    server.stop()
    with pytest.raises(OperationalError):
        champion(world)
    server.start()
    assert champion(world) == (1, 1)
    # After a power failure pgpool may be there first, and what was its pid is somebody's again (in a container: its own).
    pool.kill()
    (pool.log.parent / "run" / "pid").write_text(f"{os.getpid()}\n")
    server.stop()
    pool.launch()
    server.start()
    wait_for(pool.is_ready, "pgpool has found PostgreSQL")
    assert world.registered("v2", {**GOOD, "f1": 0.9}, content="b").verdict.outcome == "promoted"
    assert champion(world) == (2, 2)


def test_control_with_failover_a_restarted_postgresql_stays_lost(server, tmp_path):
    with pool_of(tmp_path / "pool", server, backend_flag0="ALLOW_TO_FAILOVER") as pool:
        server.stop()
        assert not pool.is_ready()
        server.start()
        wait_for(lambda: not pool.is_ready() and "all backend nodes are down" in pool.log.read_text(), "pgpool refuses everybody")


def test_a_client_that_vanished_leaves_its_lock_and_its_work_behind(pool, server):
    gone = psycopg.connect(pool.url())
    gone.execute("SELECT pg_advisory_xact_lock(7)")
    gone.execute("INSERT INTO outbox (topic, payload) VALUES ('slack', '\"vanished\"')")
    with socket.socket(fileno=os.dup(gone.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)  # as when its machine or process dies: no good-bye
    with psycopg.connect(pool.url()) as waiting:
        waiting.execute("SET statement_timeout = '10s'")
        waiting.execute("SELECT pg_advisory_xact_lock(7)")
    assert server.ask("SELECT count(*) FROM outbox WHERE payload::text LIKE '%vanished%'") == [(0,)]
    gone.close()


# --- what single lines of pgpool.conf are for -----------------------------------------------------------------------------------------


def leave_a_session_behind(pool: Pool) -> int:
    """A session that took a lock, listened, prepared a statement, chose a time zone, and closed; its backend."""
    with psycopg.connect(pool.url(), autocommit=True, options="-c timezone=Asia/Seoul") as first:
        first.execute("SELECT pg_advisory_lock(8)")
        first.execute("LISTEN promotion")
        first.execute("SELECT 1 + %s", (1,), prepare=True)
        return backend(first)


def test_the_next_client_of_a_connection_finds_nothing_of_the_last_one(server, tmp_path):
    with pool_of(tmp_path / "pool", server, num_init_children=1) as single:
        before = leave_a_session_behind(single)
        with psycopg.connect(single.url(), autocommit=True, options="-c timezone=Asia/Seoul") as second:
            assert backend(second) == before, "the connection was not kept"
            assert second.execute("SELECT 1 + %s", (1,), prepare=True).fetchone() == (2,)
            assert second.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
            assert server.ask("SELECT pg_try_advisory_lock(8)") == [(True,)]
        engine = database.connect(single.url(), pool_size=0)
        with engine.connect() as third:  # who asks for another time zone is not given a connection that has the last one's
            assert third.execute(text("SHOW timezone")).scalar_one() == "UTC"


def test_control_without_the_reset_it_finds_a_lock_and_a_prepared_statement_in_its_way(server, tmp_path):
    with pool_of(tmp_path / "pool", server, num_init_children=1, reset_query_list="ABORT") as single:
        before = leave_a_session_behind(single)
        with psycopg.connect(single.url(), autocommit=True, options="-c timezone=Asia/Seoul") as second:
            assert backend(second) == before
            assert server.ask("SELECT pg_try_advisory_lock(8)") == [(False,)]
            with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
                second.execute("SELECT 1 + %s", (1,), prepare=True)


def test_a_connection_that_died_in_the_pool_is_not_handed_out(server, tmp_path):
    """Commands, runs and sensors connect anew for each question, without a ping: their first statement must not fail."""
    with pool_of(tmp_path / "pool", server, num_init_children=1) as single:
        with psycopg.connect(single.url(), autocommit=True) as first:
            before = backend(first)
        server.ask(f"SELECT pg_terminate_backend({before}, 5000)")
        with psycopg.connect(single.url(), autocommit=True) as second:
            assert backend(second) != before


@pytest.fixture(scope="module")
def replica(server: Postgres) -> Iterator[Postgres]:
    """A standby that answers reads and is far behind: it has what there was when it was made, and follows nobody."""
    data = server.made.data.with_name("replica")
    made = replace(server.made, data=data, sockets=data)
    server.ask("CREATE TABLE read_back (n int)")
    data.mkdir(mode=0o700)
    shutil.chown(data, made.uid, made.gid)
    command = [str(made.bin / "pg_basebackup"), "-D", str(data), "-h", str(server.made.sockets), "-p", str(server.port)]
    command += ["-U", "postgres", "--checkpoint=fast", "--wal-method=fetch", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, user=made.uid, group=made.gid, cwd=data)
    (data / "standby.signal").touch()
    replica = Postgres(made, data.parent)
    try:
        replica.start()
        yield replica
    finally:
        replica.stop()


def reads_back(pool: Pool, value: int) -> list[bool]:
    """One session commits a row; whether each of the next sessions sees it."""
    with psycopg.connect(pool.url()) as writer:
        writer.execute("INSERT INTO read_back VALUES (%s)", (value,))
    seen = []
    for _ in range(20):
        with psycopg.connect(pool.url()) as reader:
            row = reader.execute("SELECT count(*) FROM read_back WHERE n = %s", (value,)).fetchone()
            seen.append(row == (1,))
    return seen


def test_what_was_committed_is_read_back_though_a_replica_is_listed(server, replica, tmp_path):
    with pool_of(tmp_path / "pool", server, replica) as pool:
        assert all(reads_back(pool, 1))


def test_control_with_load_balancing_some_reads_miss_what_was_committed(server, replica, tmp_path):
    with pool_of(tmp_path / "pool", server, replica, load_balance_mode="on", statement_level_load_balance="on") as pool:
        assert not all(reads_back(pool, 2))
