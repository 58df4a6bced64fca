"""`mlops up`: everything on this machine, from one command, until one Ctrl-C.

Belongs here: which services there are, in which order they start and stop, and what people are told. Does not belong here: how processes
are watched (`supervise.py`), what the demo lands and follows (`demo.py`), Dagster.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlops_assets import otp
from mlops_assets.dagster_api import DIRECT, graphql, is_run_worker
from mlops_assets.guard import listed
from mlops_assets.resources.embedded import EmbeddedPostgres, EmbeddedProblem, postmaster, prepare
from mlops_assets.settings import REPOSITORY, SERVICES_FILE, Settings, SettingsError, load_settings, process_environment, shown
from mlops_assets.store import ObjectStore
from mlops_assets.supervise import MARK, Guard, Patience, Service, Supervisor, free_port, marked, sweep

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

MODULE = "mlops_assets.definitions"
CODE_PORT = 4266
PORTS = ("dagster_port", "mlflow_port", "serve_port", "staging_port", "dashboard_port", "tensorboard_port")


class AlreadyRunning(RuntimeError):
    """Another `mlops up` owns this home."""


class Refused(RuntimeError):
    """`mlops up` cannot start; the message says why and what to do."""


def run(settings: Settings, *, demo: bool = False, data: Path | None = None, exit_when_done: bool = False) -> int:
    """Start everything, stay until a signal, stop everything. The exit code: 0 done, 1 a service or the demo failed, 2 it cannot start."""
    from rich.console import Console

    voice = Voice(Console(soft_wrap=True, highlight=False))
    code = 2
    try:
        with _one_per_home(settings.home), _signals(voice) as asked:
            code = _run(_fresh(settings), voice, asked, demo=demo, data=data, exit_when_done=exit_when_done)
    except Exception as error:
        if not isinstance(error, _explained()):
            raise
        voice.say("fail", str(error))
    return code


def _explained() -> tuple[type[Exception], ...]:
    """The errors whose message is written for the user; any other one is a defect and keeps its traceback."""
    from mlops_assets.database import SchemaTooNew
    from mlops_assets.lifecycle.signing import KeyProblem

    return AlreadyRunning, Refused, EmbeddedProblem, SettingsError, SchemaTooNew, KeyProblem, OSError


def _run(settings: Settings, voice: Voice, asked: Asked, *, demo: bool, data: Path | None, exit_when_done: bool) -> int:
    from mlops_assets.demo import Demo

    begun = time.monotonic()
    follower = Demo.of(settings, sample=demo, data=data) if demo or data else None  # bad input is refused before anything starts
    platform = Platform(settings, voice.say, demo=demo)
    try:
        with voice.busy("starting"):
            platform.start(asked.stop)
            while not asked.stop() and not platform.supervisor.settled:
                platform.tick()
                asked.wait(0.1)
        if not asked.stop():
            voice.addresses(platform, f"the platform is up after {time.monotonic() - begun:.0f} s (준비되었습니다)")
        if follower is not None and not asked.stop():
            follower.begin(platform.settings, platform.environment, voice.say)
        while not asked.stop() and not (exit_when_done and (follower is None or follower.finished())):
            platform.tick()
            if follower is not None and follower.tick():
                voice.addresses(platform, f"every landed version has its end after {time.monotonic() - begun:.0f} s", follower.next_step)
            asked.wait(0.2)
    finally:
        with voice.busy("stopping"):
            platform.stop(asked.hurry)
    voice.say("ok", "everything is stopped; data and models stay in " + str(settings.home) + " (모두 종료되었습니다)")
    return 1 if exit_when_done and (platform.failed or (follower is not None and follower.failed)) else 0


class Platform:
    """The services of one home."""

    def __init__(
        self, settings: Settings, say: Callable[[str, str], None], patience: Patience | None = None, *, demo: bool = False
    ) -> None:
        """`demo`: with the back-end on which one-time codes can be tried."""
        self.settings = settings
        self._demo = demo
        self.environment: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.failed: list[str] = []
        self._say = say
        self.mark = f"{uuid.uuid4().hex[:12]}:{settings.home}"
        settings.home.mkdir(parents=True, exist_ok=True)
        self.supervisor = Supervisor(settings.home / "logs", say, patience)
        self._guard: Guard | None = None

    @property
    def services_file(self) -> Path:
        return self.settings.home / SERVICES_FILE

    def start(self, stopped: Callable[[], bool]) -> None:
        """Databases and files first, then hand the services to the supervisor; `tick` brings them up."""
        from mlops_assets import database

        home = self.settings.home
        if left := sweep(f"*:{home}"):
            self._say("warn", f"killed {left} processes that an earlier `mlops up` had left")
        self._guard = Guard(self.mark, self.services_file)
        embedded = self._start_postgres(stopped)
        self._choose_addresses(embedded)
        if stopped():
            return
        for name in database.URLS:
            database.refuse_transaction_pooling(getattr(self.settings, name), name)
        revision, key = migrate(self.settings)
        self._say("ok", f"database is at schema {revision}, signing key is {key}")
        # Another store than our own may be a place where others put files: what we keep there is ours alone, the way to it is theirs.
        own = self.settings.store_url == (home / "store").as_uri()
        if closed := ObjectStore.of(self.settings).tighten(landing=own):
            self._say("ok", f"{closed} files and folders of the object store can be read by their owner alone from now on")
        self._write_dagster_home()
        self.environment = child_environment(self.settings) | {MARK: self.mark}
        if embedded:
            _upgrade_stores(home, self.environment)
        for service in self._services():
            self.supervisor.add(service)
        self._publish()

    def tick(self) -> None:
        assert self._guard is not None
        if not self._guard.alive:
            self._guard = Guard(self.mark, self.services_file)
        self.supervisor.tick()

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Nothing new is launched, runs are cut off (they resume at the next start), services end, PostgreSQL last."""
        self.failed = self.supervisor.failed
        children = self.supervisor.children
        self.supervisor.stop(["daemon", "dagster", "dashboard", "tensorboard", "otp-demo", "serve", "staging"], hurry)
        leaders = {c.process.pid for c in children.values() if c.process is not None}
        code = children["code"].process if "code" in children else None
        if code is not None:
            # Killed, not interrupted: an interrupted step counts as failed and is not retried, a killed run is resumed by the daemon.
            runs = [pid for pid in marked(self.mark, but=[code.pid], spare=leaders - {code.pid}) if is_run_worker(pid)]
            sweep(self.mark, but=[code.pid], spare=leaders - {code.pid})
            if runs:
                self._say("warn", f"cut off {len(runs)} run(s) in progress: at the next `mlops up` they resume from their last checkpoint")
        self.supervisor.stop([name for name in children if name != "postgres"], hurry)
        sweep(self.mark, spare=leaders)
        self.supervisor.stop(["postgres"], hurry)
        with contextlib.suppress(FileNotFoundError):
            self.services_file.unlink()
        if self._guard is not None:
            self._guard.release()

    def _start_postgres(self, stopped: Callable[[], bool]) -> EmbeddedPostgres | None:
        addresses = (self.settings.database_url, self.settings.dagster_database_url, self.settings.mlflow_database_url)
        if all(addresses):
            return None
        server = prepare(self.settings.home / "postgres")
        deadline = time.monotonic() + 60
        while (left := postmaster(server.data)) is not None:  # of an `mlops up` that was killed: it is just now shutting down
            if time.monotonic() > deadline:
                raise Refused(f"a PostgreSQL (pid {left}) still runs on {server.data}: stop it with `kill -INT {left}`, then start again")
            time.sleep(0.1)
        self.supervisor.add(
            Service(
                "postgres",
                server.command,
                server.is_ready,
                title="PostgreSQL",
                environment={k: v for k, v in process_environment().items() if not k.startswith("PG")},
                folder=server.data,
                uid=server.uid,
                gid=server.gid,
                gentle=signal.SIGINT,  # PostgreSQL's fast shutdown
                leader_only=True,
            )
        )
        said = False
        while not self.supervisor.children["postgres"].ready and not stopped():
            self.supervisor.tick()
            if self.supervisor.failed and not said:
                said = True
                self._say("warn", "everything else waits for PostgreSQL. Is the disk full? `mlops doctor` looks at it; Ctrl-C ends this")
            time.sleep(0.05)
        if not stopped():
            server.create_databases()
        return server

    def _choose_addresses(self, embedded: EmbeddedPostgres | None) -> None:
        settings, taken = self.settings, set[int]()
        host = settings.reached_at
        chosen: dict[str, Any] = {}
        self._code_demo = self._demo and host.strip("[]") in otp.LOOPBACK
        if self._demo and not self._code_demo:
            self._say("warn", f"without the code demo: a one-time code goes unencrypted to this machine alone, not to {host}")
        for name in (*PORTS, *(["otp_demo_port"] if self._code_demo else [])):
            wanted = getattr(settings, name)
            chosen[name] = free_port(settings.host, wanted, taken)
            if chosen[name] != wanted:
                self._say("warn", f"port {wanted} is taken by another program: {name.removesuffix('_port')} uses {chosen[name]}")
        self.code_port = free_port("127.0.0.1", CODE_PORT, taken)
        if embedded is not None:
            own = {
                "database_url": embedded.url("mlops").replace("postgresql://", "postgresql+psycopg://", 1),
                "dagster_database_url": embedded.url("dagster"),
                "mlflow_database_url": embedded.url("mlflow"),
            }
            chosen |= {name: url for name, url in own.items() if getattr(settings, name) is None}
        chosen["mlflow_tracking_uri"] = settings.mlflow_tracking_uri or f"http://{host}:{chosen['mlflow_port']}"
        chosen["serve_url"] = f"http://{host}:{chosen['serve_port']}"
        chosen["staging_url"] = f"http://{host}:{chosen['staging_port']}"
        chosen["dagster_url"] = f"http://{host}:{chosen['dagster_port']}"
        if self._code_demo and not settings.otp_secret:
            chosen["otp_secret"] = kept_secret(settings.home / "keys" / "otp_demo")
        self._own_mlflow = settings.mlflow_tracking_uri is None
        self._chosen = chosen
        self.links = {
            "Dagster": chosen["dagster_url"],
            "MLflow": shown(chosen["mlflow_tracking_uri"]),
            "Model API": chosen["serve_url"],
            "Staging": chosen["staging_url"],
            "Dashboard": f"http://{host}:{chosen['dashboard_port']}",
            "TensorBoard": f"http://{host}:{chosen['tensorboard_port']}",
        }
        if self._code_demo:
            self.links["Code demo"] = f"http://{host}:{chosen['otp_demo_port']}"
        self.settings = settings.model_copy(update=chosen)

    def _publish(self) -> None:
        """What every other command on this machine reads; whole or not at all."""
        extra = {"mark": self.mark, "pid": os.getpid(), "links": self.links, "own_mlflow": self._own_mlflow}
        aside = self.services_file.with_suffix(".new")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(self._chosen | extra, file, indent=1)
        aside.replace(self.services_file)

    def _write_dagster_home(self) -> None:
        home = self.settings.dagster_home
        home.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
        config["run_monitoring"]["max_runtime_seconds"] = self.settings.max_run_seconds
        (home / "dagster.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        server = {"host": "127.0.0.1", "port": self.code_port, "location_name": "mlops_assets"}
        (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))

    def _services(self) -> Iterator[Service]:
        settings, links = self.settings, self.links
        python = [sys.executable, "-m"]
        mlops = [sys.executable, str(Path(sys.executable).with_name("mlops"))]
        workspace = ["-w", str(settings.dagster_home / "workspace.yaml")]
        host = settings.host

        needs = ["postgres"] if "postgres" in self.supervisor.children else []
        database = {"needs": needs}  # of those that end without it; the others say themselves what they wait for

        def service(name: str, command: list[str], is_ready: Callable[[], bool], **more: Any) -> Service:
            environment = self.environment | more.pop("environment", {})
            return Service(name, command, is_ready, environment=environment, folder=REPOSITORY, **more)

        yield service(
            "code",
            [
                *python,
                "dagster",
                "api",
                "grpc",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.code_port),
                "--module-name",
                MODULE,
                "--working-directory",
                str(REPOSITORY),
                "--location-name",
                "mlops_assets",
                "--use-python-environment-entry-point",
                "--lazy-load-user-code",
            ],  # a mistake in the code is shown in the UI instead of a server that never starts
            lambda: listens("127.0.0.1", self.code_port),
            title="code location",
        )
        if self._own_mlflow:
            yield service(
                "mlflow",
                [*python, "mlflow", "server", "--host", host, "--port", str(settings.mlflow_port), "--workers", "1"],
                lambda: answers(links["MLflow"] + "/health"),
                title="MLflow",
                address=links["MLflow"],
                environment=mlflow_environment(settings),
                **database,
            )
        yield service(
            "dagster",
            [*mlops, "web", "dagster"],
            lambda: location_loads(links["Dagster"], self._say),
            title="Dagster",
            address=links["Dagster"],
            after=["code"],
            **database,
        )
        yield service(
            "daemon",
            [*python, "dagster._daemon", "run", *workspace],
            lambda: daemon_beats(links["Dagster"]),
            title="Dagster daemon",
            after=["code", "dagster", *(["mlflow"] if self._own_mlflow else [])],  # it may at once start a run again that was cut off
            **database,
        )
        yield service(
            "serve", [*mlops, "serve"], lambda: answers(links["Model API"] + "/livez"), title="model server", address=links["Model API"]
        )
        yield service(
            "staging",
            [*mlops, "serve", "--channel", "candidate"],
            lambda: answers(links["Staging"] + "/livez"),
            title="staging server",
            address=links["Staging"],
        )
        yield service(
            "dashboard",
            [*mlops, "web", "dashboard"],
            lambda: answers(links["Dashboard"] + "/_stcore/health"),
            title="dashboard",
            address=links["Dashboard"],
            after=["serve"],
        )
        yield service(
            "tensorboard",
            [*mlops, "web", "tensorboard"],
            lambda: answers(links["TensorBoard"] + "/"),
            title="TensorBoard",
            address=links["TensorBoard"],
            after=["serve"],
        )
        if self._code_demo:
            yield service(
                "otp-demo",
                [*python, "mlops_assets.otp_demo"],
                lambda: answers(links["Code demo"] + "/livez"),
                title="one-time-code demo",
                address=links["Code demo"],
                after=["serve"],
            )


def kept_secret(path: Path) -> str:
    """A secret of this home, made once: what users drew is found again under it, and deleted on request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path.read_text()


def migrate(settings: Settings | None = None) -> tuple[str, str]:
    """Our own schema and the signing key, made or brought up to date: (schema, key id). In production a job (deploy/compose.yaml)."""
    from mlops_assets import database
    from mlops_assets.lifecycle import signing

    settings = settings or load_settings()
    return database.migrate(settings.require("database_url")), signing.ensure_key(settings)


def upgrade_mlflow(settings: Settings | None = None) -> None:
    """MLflow's tables, made or brought up to date, as `mlflow db upgrade` does, whose address would stand in the list of processes."""
    from mlflow.db import upgrade

    assert upgrade.callback is not None
    upgrade.callback((settings or load_settings()).require("mlflow_database_url"))


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of every service: ours, the settings, and what keeps libraries quiet and local."""
    inherited = process_environment()
    local = {"localhost", "127.0.0.1", *filter(None, inherited.get("NO_PROXY", "").split(","))}
    return (
        inherited
        | settings.environment()
        | {
            "MLFLOW_TRACKING_URI": settings.require("mlflow_tracking_uri"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "NO_PROXY": ",".join(sorted(local)),
            "no_proxy": ",".join(sorted(local)),
            "PYTHONUNBUFFERED": "1",
        }
    )


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """MLflow's own options as variables: a database password must not stand in the list of processes.

    Our guard and limits stand before it too: its own takes the host `10.evil.example` for an address of a private network.
    """
    s3 = settings.store_url.startswith("s3://")
    artifacts = f"{settings.store_url.rstrip('/')}/mlflow" if s3 else str(settings.home / "mlflow")
    environment = {
        "MLFLOW_BACKEND_STORE_URI": settings.require("mlflow_database_url"),
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_UVICORN_OPTS": "--http mlops_assets.limits:Guarded",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # LLM evaluation jobs: five more processes that nothing here uses
    }
    if names := listed(settings.allowed_hosts):
        environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = "*"  # ours decides: two lists would differ
        own = [f"{scheme}://{name}" for name in names for scheme in ("https", "http")]
        environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join((*own, *listed(settings.allowed_origins)))
    if s3 and settings.s3_endpoint_url:
        environment["MLFLOW_S3_ENDPOINT_URL"] = settings.s3_endpoint_url
    return environment


def _upgrade_stores(home: Path, environment: Mapping[str, str]) -> None:
    """Bring Dagster's and MLflow's tables to the installed versions, once per version; refuse tables of newer ones."""
    from packaging.version import Version

    record = home / "versions.json"
    before: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    now = {name: version(name) for name in ("dagster", "mlflow")}
    commands = {
        "dagster": [sys.executable, "-m", "dagster", "instance", "migrate"],
        "mlflow": [sys.executable, "-c", "from mlops_assets.up import upgrade_mlflow; upgrade_mlflow()"],
    }
    for name, installed in now.items():
        last = before.get(name, installed)
        if Version(last) > Version(installed):
            raise Refused(
                f"{home} was last used by {name} {last}, installed is {installed}: its tables may be newer. Install {name} {last} "
                "(`make run` does, from requirements.lock), or set MLOPS_HOME to a new folder."
            )
        if last != installed:
            done = subprocess.run(commands[name], env=dict(environment), capture_output=True, text=True)
            if done.returncode != 0:
                raise Refused(f"{name}'s tables could not be brought from {last} to {installed}: {done.stderr[-2000:]}")
    record.write_text(json.dumps(now))


# --- is it ready? ---------------------------------------------------------------------------------------------------------------


def answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=2) as response:
            return int(response.status) < 500
    except (OSError, urllib.error.URLError, ValueError):
        return False


def listens(host: str, port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
    __typename ... on PythonError { message errorChain { error { message } } } } } } } }"""
_told: set[str] = set()


def location_loads(address: str, say: Callable[[str, str], None]) -> bool:
    """Whether the webserver has the code location; its error is said once when it does not load."""
    with contextlib.suppress(OSError):
        entries = graphql(address, _LOCATIONS)["workspaceOrError"].get("locationEntries", [])
        for entry in entries:
            found = entry["locationOrLoadError"] or {}
            if found.get("__typename") == "PythonError":
                messages = [found["message"], *(link["error"]["message"] for link in found["errorChain"])]
                if messages[-1] not in _told:
                    _told.add(messages[-1])
                    say("fail", f"the definitions do not load: {messages[-1].strip()}")
                return True  # the UI shows it too, and mends itself when the code is mended
        return bool(entries) and all(e["loadStatus"] == "LOADED" for e in entries)
    return False


def daemon_beats(address: str) -> bool:
    with contextlib.suppress(OSError):
        statuses = graphql(address, "{ instance { daemonHealth { allDaemonStatuses { required healthy } } } }")
        required = [s for s in statuses["instance"]["daemonHealth"]["allDaemonStatuses"] if s["required"]]
        return bool(required) and all(s["healthy"] for s in required)
    return False


# --- one per home, signals, voice -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _one_per_home(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "up.lock").open("a+")
    except OSError as error:
        raise Refused(f"the home {home} cannot be written ({error.strerror}): set MLOPS_HOME to a folder of yours") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(_who_runs(home)) from None
        yield


def _who_runs(home: Path) -> str:
    try:
        running = json.loads((home / SERVICES_FILE).read_text())
        who = f" (pid {running['pid']}): Dagster is at {running['dagster_url']}. Stop it with Ctrl-C there, or `kill {running['pid']}`"
    except (OSError, ValueError, KeyError):
        who = " and is just starting or stopping"
    return f"`mlops up` already runs for {home}{who}; for a second platform set another MLOPS_HOME (이미 실행 중입니다)"


def _fresh(settings: Settings) -> Settings:
    """The settings without what an `mlops up` that was killed left in services.json: those addresses are nobody's now."""
    file = settings.home / SERVICES_FILE
    try:
        stale = json.loads(file.read_text())
    except FileNotFoundError:
        return settings
    except ValueError:
        stale = {}
    file.unlink()
    given = settings.model_dump(exclude_unset=True)
    return load_settings(**{name: value for name, value in given.items() if name not in stale or stale[name] != value})


class Asked:
    """What the user's signals have asked for so far."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.times = 0
        self.last = 0.0

    def stop(self) -> bool:
        return self.times > 0

    def hurry(self) -> bool:
        return self.times > 1

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)


@contextlib.contextmanager
def _signals(voice: Voice) -> Iterator[Asked]:
    asked = Asked()

    def heard(number: int, _frame: object) -> None:
        now = time.monotonic()
        if now - asked.last < 0.3:  # make and the terminal both pass one Ctrl-C on
            return
        asked.last = now
        asked.times += 1
        asked._event.set()
        if asked.times == 1:
            voice.say("ok", "stopping everything; once more to kill it (종료 중입니다, 한 번 더 누르면 강제 종료합니다)")

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Voice:
    """Lines for people: with a spinner on a terminal, plain otherwise."""

    _MARKS = {
        "ok": ("[green]✓[/]", "ok"),
        "warn": ("[yellow]![/]", "warning"),
        "fail": ("[red]✗[/]", "failed"),
        "step": ("[cyan]·[/]", ".."),
    }

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, kind: str, text: str) -> None:
        from rich.markup import escape

        colour, plain = self._MARKS[kind]
        self._console.print(f"{colour if self._console.is_terminal else plain + ':'} {escape(text)}")

    def busy(self, text: str) -> Status | contextlib.nullcontext[None]:
        return self._console.status(text) if self._console.is_terminal else contextlib.nullcontext()

    def addresses(self, platform: Platform, headline: str, next_step: str | None = None) -> None:
        failed = platform.supervisor.failed
        if failed:
            self.say("fail", f"without {', '.join(failed)}, tried again all the time: the logs are in {platform.supervisor.logs}")
        self.say("ok", headline)
        for title, address in platform.links.items():
            self._console.print(f"    {title:<12} {address}")
        self._console.print(f"    {'Logs':<12} {platform.supervisor.logs}")
        self._console.print(
            "  Next: "
            + (next_step or "mlops land sentiment DIR --dataset-version v1    (in another terminal; Ctrl-C here stops everything)"),
            markup=False,
        )
