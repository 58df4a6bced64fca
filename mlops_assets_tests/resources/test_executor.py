"""A run keeps its connections to Dagster's database, and one that died in between fails no run."""

from collections.abc import Iterator

import dagster as dg
import psycopg2
import pytest

from mlops_assets.resources import executor
from mlops_assets.resources.executor import run_executor
from mlops_assets.settings import Settings


@dg.op(config_schema={"cut": str})
def cuts_connections(context: dg.OpExecutionContext) -> int:
    """As a restart of the database does between two steps."""
    with psycopg2.connect(context.op_config["cut"]) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND state = 'idle' AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])


@dg.op
def after(cut: int) -> None:
    assert cut, "no connection was there to be cut: this shows nothing"


@dg.op
def nothing() -> None: ...


@dg.job(executor_def=run_executor)
def interrupted() -> None:
    after(cuts_connections())


def several() -> None:
    for number in range(5):
        nothing.alias(f"nothing_{number}")()


@dg.job(executor_def=run_executor)
def ours() -> None:
    several()


@dg.job(executor_def=dg.in_process_executor)
def dagsters() -> None:
    several()


@pytest.fixture
def instance(dagster_settings: Settings) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as found:
        yield found


def run(instance: dg.DagsterInstance, job: str, **config: object) -> dg.JobExecutionResult:
    found = dg.reconstructable(globals()[job])
    return dg.execute_job(found, instance=instance, run_config=config)


def url(instance: dg.DagsterInstance) -> str:
    return instance.event_log_storage.postgres_url  # type: ignore[attr-defined,no-any-return]


def cut(instance: dg.DagsterInstance) -> dict[str, object]:
    return {"cuts_connections": {"config": {"cut": url(instance)}}}


def connections_of(instance: dg.DagsterInstance, job: str) -> int:
    """How many connections the database was asked for while the job ran."""
    seen: list[int] = []
    for _ in range(2):
        with psycopg2.connect(url(instance)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
            seen.append(int(cursor.fetchone()[0]))
        if len(seen) == 1:
            assert run(instance, job).success
    return seen[1] - seen[0]


def test_a_run_opens_few_connections(instance):
    opened, kept = connections_of(instance, "dagsters"), connections_of(instance, "ours")
    assert kept < 15 < 40 < opened, (kept, opened)


def test_connections_cut_between_two_steps_fail_no_run(instance):
    assert run(instance, "interrupted", ops=cut(instance)).success


def test_the_control_without_the_trial_fails(instance, monkeypatch):
    monkeypatch.setattr(executor, "_try_connection", lambda *_: None)
    with pytest.raises(Exception, match="terminat|closed"):
        run(instance, "interrupted", ops=cut(instance))


def test_a_silent_peer_is_noticed_as_on_connections_of_our_own(instance):
    """The control is Dagster's own connection, which waits as long as the kernel does."""
    given = {}
    for name in ("dagsters", "ours"):
        assert run(instance, name).success
        with instance.event_log_storage.index_connection() as connection:
            given[name] = connection.connection.dbapi_connection.get_dsn_parameters()
    expected = {"connect_timeout": "5", "keepalives_idle": "15", "tcp_user_timeout": "30000"}
    assert {name: given["ours"].get(name) for name in expected} == expected
    assert not expected.items() <= given["dagsters"].items()
