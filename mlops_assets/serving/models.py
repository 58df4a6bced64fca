"""Which model answers: each system's host follows the signed promotion ledger, and a bad bundle never replaces a good one.

A promotion is verified with the public keys, its bundle fetched by digest, tried in a child process, loaded, and only then does one
reference change; requests in flight keep the model that they began with. Belongs here: following, verifying, swapping, remembering.
Does not belong here: how a bundle loads (`loading.py`), HTTP (`app.py`), writing to the ledger (`lifecycle/registrar.py`).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_assets import names
from mlops_assets.lifecycle import promotion as ledger
from mlops_assets.lifecycle.bundle import BadBundle, fetch
from mlops_assets.lifecycle.history import Absence, absence
from mlops_assets.lifecycle.promotion import Promotion, Receipt
from mlops_assets.lifecycle.signing import BadSignature
from mlops_assets.serving import loading
from mlops_assets.serving.loading import Predictor

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.settings import Settings
    from mlops_assets.store import ObjectStore

log = logging.getLogger("mlops.serving")

#: Versions asked for by name that stay loaded, per system.
NAMED_RESIDENT = 2
#: Requests by name that may wait for a version to be loaded, of all systems together; more are refused at once.
NAMED_WAITING = 8
#: Refusals that GET /models remembers, per system.
REFUSALS_KEPT = 20
#: Names of no system of ours that are remembered, so that the log has them once.
STRANGERS_KEPT = 1000
#: A version by name that could not be loaded is not tried again for so long: loading is the dearest thing a client can ask for.
NAMED_RETRY_SECONDS = 30.0
MAX_BACKOFF_SECONDS = 30.0
#: For so long it stays known why a system has no champion.
ABSENCE_SECONDS = 2.0


class VersionUnavailable(Exception):
    """A version asked for by name cannot answer. `code`: unknown_version, version_deleted, version_refused, versions_busy,
    ledger_away."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, eq=False)
class Model:
    """One loaded version. Requests hold on to it until they are answered."""

    system: str
    version: int
    bundle_sha256: str
    dataset_version: str
    metrics: Mapping[str, float]
    predictor: Predictor
    loaded_at: datetime

    def describe(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "model_kind": self.predictor.kind,
            "bundle_sha256": self.bundle_sha256,
            "dataset_version": self.dataset_version,
            "labels": list(self.predictor.labels),
            "metrics": dict(self.metrics),
            "loaded_at": self.loaded_at.isoformat(),
        }


@dataclass(frozen=True)
class Refusal:
    """Why a promotion is not served. `code` is stable."""

    sequence: int
    version: int | None
    code: str
    reason: str
    at: str


class Seen(NamedTuple):
    """What a channel's rows look like from afar: it changes with every row. No number alone does, anybody may insert the highest."""

    rows: int
    newest: int


class ModelHost:
    """The models of one system on one channel.

    Args:
        folder: private to this host: fetched bundles and the state file.
        load_seconds: time limit of a bundle's first load.
        threads: processors that a model may use.
    """

    def __init__(
        self,
        system: str,
        channel: ledger.Channel,
        *,
        store: ObjectStore,
        public_keys: Path,
        folder: Path,
        resident_previous: int = 1,
        load_seconds: float = loading.LOAD_SECONDS,
        threads: int = 1,
        on_swap: Callable[[Model, Promotion], None] | None = None,
        on_refusal: Callable[[str, Refusal], None] | None = None,
    ) -> None:
        self.system = names.system(system)  # it becomes a folder, in which files are deleted
        self.channel: ledger.Channel = channel
        self.previous: list[Model] = []
        self.refusals: list[Refusal] = []
        self.retrying: str | None = None
        self._store = store
        self._public_keys = public_keys
        self._bundles = folder / "bundles"
        self._state_file = folder / "state.json"
        self._resident_previous = resident_previous
        self._load_seconds = load_seconds
        self._threads = threads
        self._on_swap = on_swap
        self._on_refusal = on_refusal
        self._serving: tuple[Model, Promotion] | None = None
        """One reference, replaced and never changed: the event loop reads it without the lock."""
        self._lock = threading.RLock()
        """Held over files of this host (a swap is remembered and flushed to the disk), never over fetching, trying and loading a bundle.
        The event loop never takes it: it would wait for the disk, and every system with it."""
        self._loading: threading.Thread | None = None
        self._loading_seen: Seen | None = None
        self._opening: list[str] = []
        """Digests that are being fetched or loaded now: pruning leaves them alone."""
        self._settled: Seen | None = None
        """The ledger when it was last decided on; nothing is looked at again until it changes."""
        self._tries = 0
        self._retry_at = 0.0
        self._named: OrderedDict[int, Model] = OrderedDict()
        self._named_failures: dict[int, tuple[float, str]] = {}
        self._named_lock = threading.Lock()
        self.applied = self._highest_applied()
        for path in self._bundles.glob(".*"):  # downloads that a killed process left behind
            shutil.rmtree(path, ignore_errors=True)

    @property
    def current(self) -> Model | None:
        serving = self._serving
        return None if serving is None else serving[0]

    # --- following -------------------------------------------------------------------------------------------------------------

    def wants(self, seen: Seen) -> bool:
        """Whether the ledger must be looked at."""
        with self._lock:
            if seen == self._settled:
                return False
            if self._loading is not None:  # it may hang, and what is newer may be the rollback to what is resident
                return seen != self._loading_seen
            return time.monotonic() >= self._retry_at

    def consider(self, connection: Connection, seen: Seen) -> None:
        """Look at the ledger and act: swap at once to what is resident, load the rest on a thread of its own."""
        newest = seen.newest
        found, rejected = ledger.latest_verified(connection, self.system, self.channel, self._public_keys)
        with self._lock:
            if rejected:
                self._refuse(newest, None, "bad_signature", rejected[0])
            elif found is None or found.sequence < newest:
                self._refuse(newest, None, "no_receipt", f"promotion #{newest} has no receipt")
            if found is None:
                self._settled = seen
                return
            if found.sequence < self.applied:
                if not rejected:
                    reason = f"the ledger's newest is #{found.sequence}, #{self.applied} was served before: refused, the ledger went back"
                    self._refuse(found.sequence, found.version, "lower_sequence", reason)
                self._settled = seen
                return
            if self.current is not None and found.sequence == self.applied:
                self._settled = seen
                return
            resident = self._resident(found.bundle_sha256)
            if resident is not None:
                self._swap(resident, found)
                self._settled = seen
            elif self._loading is None:
                self._loading_seen = seen
                self._loading = threading.Thread(target=self._load, args=(found, seen), name=f"load-{self.system}", daemon=True)
                self._loading.start()

    def restore(self) -> bool:
        """Serve the last promotion that was served before, from the disk alone; it is verified again. False when there is none."""
        with self._lock:
            if self.current is not None or self._loading is not None:
                return self.current is not None
            found = self._remembered()
            if found is None:
                return False
            # A load like any other: meanwhile the ledger may swap to what is resident, and nobody opens the same bundle twice.
            self._loading, self._loading_seen = threading.current_thread(), None
        problem: Exception | None = None
        try:
            ledger.verify(found, self._public_keys)
            model = self._open(found.receipt)
        except Exception as error:  # without the store and without the disk there is nothing to serve: say why, keep following
            problem = error
        with self._lock:
            self._loading = None
            if problem is not None:
                code = getattr(problem, "code", "bad_signature" if isinstance(problem, BadSignature) else "unavailable")
                self._refuse(found.sequence, found.version, code, f"from the disk: {_line(problem)}")
            elif self.current is None and found.sequence >= self.applied:  # else the ledger was quicker, and what it names stays
                self._swap(model, found, prune=False)
            return self.current is not None

    def preload_previous(self, connection: Connection) -> None:
        """After a restart: load the champion before the current one too, so that a rollback stays a matter of milliseconds."""
        with self._lock:
            if self.current is None or self.previous or self._resident_previous == 0 or self._loading is not None:
                return
            version = self.current.version
        for found in ledger.verified(connection, self.system, self._public_keys, self.channel):
            if found.version == version or found.sequence > self.applied:
                continue
            try:
                model = self._open(found.receipt)
            except Exception as error:
                log.warning("%s: the previous v%s does not stay at hand: %s", self.system, found.version, _line(error))
                return
            with self._lock:
                if self.current is not None and self.current.version == version and not self.previous:
                    self.previous = [model]
            return

    def retry(self) -> None:
        """Forget what was decided: the next look at the ledger decides again, also on what was refused."""
        with self._lock:
            self._settled = None
            self._retry_at = 0.0
            self._named_failures.clear()

    def wait(self, timeout: float) -> None:
        """Until a load in progress has ended."""
        thread = self._loading
        if thread is not None:
            thread.join(timeout)

    def _load(self, found: Promotion, seen: Seen) -> None:
        problem: Exception | None = None
        try:
            model = self._open(found.receipt)
        except Exception as error:  # whatever happens on this thread must end in the log and in GET /models
            problem = error
        with self._lock:
            self._loading = None
            if problem is None:
                self._tries, self.retrying = 0, None
                if found.sequence >= self.applied:
                    self._swap(model, found)
                self._settled = seen
            elif isinstance(problem, BadBundle):
                self._tries, self.retrying = 0, None
                self._refuse(found.sequence, found.version, problem.code, str(problem))
                self._settled = seen
            else:
                self._tries += 1
                delay = min(MAX_BACKOFF_SECONDS, 0.5 * 2**self._tries)
                self._retry_at = time.monotonic() + delay
                self.retrying = f"v{found.version} cannot be fetched ({type(problem).__name__}: {problem}); next try in {delay:g} s"
                log.warning("%s: %s", self.system, self.retrying)

    def _open(self, receipt: Receipt) -> Model:
        """Fetch, verify, try and load a registered version.

        Raises:
            BadBundle: it must not be served. OSError and the store's errors: it could not be fetched, and may be later.
        """
        digest = receipt.bundle_sha256
        self._opening.append(digest)
        try:
            folder = self._fetch(receipt)
            tried = self._bundles / f"{digest}.tried"
            if not tried.exists() or tried.read_text(encoding="utf-8") != loading.engine_version():
                loading.try_in_child(folder, self.system, self._threads, self._load_seconds)
            predictor = loading.load(folder, self.system, self._threads)
            tried.write_text(loading.engine_version(), encoding="utf-8")
        finally:
            self._opening.remove(digest)
        _give_memory_back()
        return Model(self.system, receipt.version, digest, receipt.dataset_version, receipt.metrics, predictor, datetime.now(UTC))

    def _fetch(self, receipt: Receipt) -> Path:
        digest = receipt.bundle_sha256
        was_there = (self._bundles / digest).exists()
        try:
            return fetch(self._store, digest, receipt.files, self._bundles)
        except BadBundle as error:
            if error.code != "wrong_digest" or not was_there:
                raise
            log.warning("%s: %s", self.system, error)  # the copy on disk had gone bad and is deleted now
            return fetch(self._store, digest, receipt.files, self._bundles)

    def _swap(self, model: Model, found: Promotion, *, prune: bool = True) -> None:
        """The one moment at which another model begins to answer. `prune=False`: the previous one, on the disk, is still to be loaded."""
        before = self.current
        self._serving, self.applied = (model, found), found.sequence
        if before is not None and before is not model:
            former = [before, *(m for m in self.previous if m is not model and m is not before)]
            self.previous = former[: self._resident_previous]
        self.retrying = None
        log.info(
            "%s: serving v%s (bundle %s, data %s) on %s, promotion #%s %s: %s",
            *(self.system, model.version, model.bundle_sha256[:12], model.dataset_version, self.channel),
            *(found.sequence, found.kind, found.reason),
        )
        try:
            self._remember(found)
            if prune:
                self._prune()
        except OSError as error:
            log.error("%s: v%s is served, but not remembered for a start without the database: %s", self.system, model.version, error)
        if self._on_swap is not None:
            self._on_swap(model, found)

    def _refuse(self, sequence: int, version: int | None, code: str, reason: str) -> None:
        refusal = Refusal(sequence, version, code, reason, datetime.now(UTC).isoformat())
        last = self.refusals[-1] if self.refusals else None
        if last is not None and (last.sequence, last.code, last.reason) == (sequence, code, reason):
            return
        still = f"v{self.current.version} serves on" if self.current else "nothing is served"
        which = f"#{sequence} (v{version})" if version else f"#{sequence}"
        log.error("%s: promotion %s refused (%s): %s; %s", self.system, which, code, reason, still)
        self.refusals = [*self.refusals, refusal][-REFUSALS_KEPT:]
        if self._on_refusal is not None:
            self._on_refusal(self.system, refusal)

    def _resident(self, digest: str) -> Model | None:
        known = [m for m in (self.current, *self.previous, *list(self._named.values())) if m is not None]
        return next((m for m in known if m.bundle_sha256 == digest), None)

    # --- a version by name -----------------------------------------------------------------------------------------------------

    def loaded(self, version: int) -> Model | None:
        """The version if it is resident, whoever asked for it."""
        for model in (self.current, *self.previous, self._named.get(version)):
            if model is not None and model.version == version:
                return model
        return None

    def named(self, version: int, engine: Engine) -> Model:
        """A registered version, loaded when it is not resident yet. Blocks: call it on a thread.

        Raises:
            VersionUnavailable
        """
        with self._named_lock:
            resident = self.loaded(version)
            if resident is not None:
                return resident
            until, reason = self._named_failures.get(version, (0.0, ""))
            if time.monotonic() < until:
                raise VersionUnavailable("version_refused", reason)
            try:
                model = self._open(self._registered(version, engine))
            except VersionUnavailable:
                raise
            except BadBundle as error:
                reason = f"{self.system} v{version} cannot be served ({error.code}): {error}"
                self._named_failures[version] = (time.monotonic() + NAMED_RETRY_SECONDS, reason)
                log.error("%s", reason)
                raise VersionUnavailable("version_refused", reason) from None
            except Exception as error:
                raise VersionUnavailable("ledger_away", f"{self.system} v{version} cannot be fetched now: {_line(error)}") from error
            self._named[version] = model
            while len(self._named) > NAMED_RESIDENT:
                self._named.popitem(last=False)
            log.info("%s: v%s loaded by name", self.system, version)
            return model

    def _registered(self, version: int, engine: Engine) -> Receipt:
        with engine.connect() as connection:
            found = ledger.receipt(connection, self.system, version)
            if found is None:
                raise VersionUnavailable("unknown_version", f"{self.system} has no registered version {version}")
        try:
            ledger.verify_receipt(found, self._public_keys)
        except BadSignature as error:
            raise BadBundle("bad_signature", str(error)) from None
        with engine.connect() as connection:
            gone = ledger.deleted(connection, self._store, found)
        if gone is not None:
            message = f"the bytes of {self.system} v{version} were deleted by retention on {gone:%Y-%m-%d}"
            raise VersionUnavailable("version_deleted", message)
        return found

    # --- what GET /models shows ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Without the lock: the event loop calls it."""
        shown = None
        serving = self._serving
        if serving is not None:
            model, promotion = serving
            since = {"sequence": promotion.sequence, "kind": promotion.kind, "promoted_at": promotion.at.isoformat()}
            shown = model.describe() | since
        return {
            "system": self.system,
            "channel": self.channel,
            "serving": shown,
            "previous": [m.describe() for m in self.previous],
            "named": [m.describe() for m in list(self._named.values())],
            "loading": self._loading is not None,
            "retrying": self.retrying,
            "refused": [asdict(refusal) for refusal in reversed(self.refusals)],
        }

    # --- what survives a restart -----------------------------------------------------------------------------------------------

    def _remember(self, found: Promotion) -> None:
        state = asdict(found) | {"receipt": asdict(found.receipt)}
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._state_file.with_suffix(".new")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(state, file, default=str, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._state_file)

    def _remembered(self) -> Promotion | None:
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
            receipt = Receipt(**state["receipt"] | {"at": datetime.fromisoformat(state["receipt"]["at"])})
            return Promotion(**state | {"receipt": receipt, "at": datetime.fromisoformat(state["at"])})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError) as error:
            log.error("%s: %s cannot be read (%s): it is ignored", self.system, self._state_file, error)
            return None

    def _highest_applied(self) -> int:
        """Only a promotion that verifies counts: a damaged or invented state file must not lock out the ledger."""
        found = self._remembered()
        if found is None or found.system != self.system or found.channel != self.channel:
            return 0
        try:
            ledger.verify(found, self._public_keys)
        except BadSignature as error:
            log.error("%s: the remembered promotion is ignored: %s", self.system, error)
            return 0
        return found.sequence

    def _prune(self) -> None:
        """Delete fetched bundles that nothing here serves."""
        keep = {m.bundle_sha256 for m in (self.current, *self.previous, *list(self._named.values())) if m is not None} | set(self._opening)
        for path in self._bundles.iterdir():
            if path.name.removesuffix(".tried") in keep or path.name.startswith("."):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class Follower:
    """Keeps the hosts of one server in step with the ledger: told by NOTIFY, and looking every `poll_seconds` in any case.

    A restarted server answers at once with what it served before, verified again, and asks the ledger then. The database may be away at the
    start or go away later: what is served stays, and the follower comes back by itself.
    """

    def __init__(
        self,
        settings: Settings,
        channel: ledger.Channel,
        connect: Callable[[], Engine],
        *,
        load_seconds: float = loading.LOAD_SECONDS,
        on_swap: Callable[[Model, Promotion], None] | None = None,
        on_refusal: Callable[[str, Refusal], None] | None = None,
        on_look: Callable[[Connection], None] | None = None,
    ) -> None:
        from mlops_assets.store import ObjectStore

        self.channel: ledger.Channel = channel
        self.away_since: str | None = None
        self.away_reason: str | None = None
        self._settings = settings
        self._connect = connect
        self._folder = settings.home / "serving" / channel
        self._store = ObjectStore.of(settings)
        self._load_seconds = load_seconds
        self._on_swap, self._on_refusal, self._on_look = on_swap, on_refusal, on_look
        self._hosts: dict[str, ModelHost] = {}
        self._hosts_lock = threading.Lock()
        self._absences: dict[str, tuple[float, Absence | None]] = {}
        self._absence_lock = threading.Lock()
        self._strangers: dict[str, Seen] = {}
        self._check_lock = threading.Lock()
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._restorer = threading.Thread(target=self._restore, name="restore", daemon=True)
        self._preloader = threading.Thread(target=self._preload, name="preload", daemon=True)
        self._named_loads = ThreadPoolExecutor(1, "named")
        self._named_room = threading.BoundedSemaphore(NAMED_WAITING)
        configured = {p.stem for p in settings.configs.glob("*.yaml")} - {"base"}
        remembered = set(self._remembered())
        self.known = configured | remembered

    def restore(self) -> None:
        """Begin to load what was served before, from the disk."""
        self._restorer.start()

    def start(self) -> None:
        """Begin to follow the ledger, once what was served before is back."""
        if self._restorer.ident is None:
            self.restore()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(self._settings.poll_seconds + 5)
        if self._preloader.is_alive():
            self._preloader.join(10)
        self._named_loads.shutdown(wait=False, cancel_futures=True)

    def host(self, system: str) -> ModelHost | None:
        """The host of a system that has, or once had, a promotion on this channel."""
        return self._hosts.get(system)

    def hosts(self) -> dict[str, ModelHost]:
        return dict(sorted(self._hosts.items()))

    def make_host(self, system: str) -> ModelHost:
        with self._hosts_lock:
            if system not in self._hosts:
                made = ModelHost(
                    system,
                    self.channel,
                    store=self._store,
                    public_keys=self._settings.public_keys_path,
                    folder=self._folder / system,
                    resident_previous=self._settings.resident_previous,
                    load_seconds=self._load_seconds,
                    threads=self._settings.threads,
                    on_swap=self._on_swap,
                    on_refusal=self._on_refusal,
                )
                # Replaced, never changed in place: the event loop reads both without a lock.
                self._hosts = self._hosts | {system: made}
                self.known = self.known | {system}
            return self._hosts[system]

    def named(self, system: str, version: int) -> Future[Model]:
        """A registered version, loaded on the one thread that is kept for this: anybody may ask, and no other work may wait for it.

        Raises:
            VersionUnavailable: too many wait already. The future has the others, of `ModelHost.named`.
        """
        if not self._named_room.acquire(blocking=False):
            message = f"{NAMED_WAITING} requests for versions by name are waiting already; this request was not queued"
            raise VersionUnavailable("versions_busy", message)
        loaded = self._named_loads.submit(lambda: self.make_host(system).named(version, self._connect()))
        loaded.add_done_callback(lambda _: self._named_room.release())
        return loaded

    def has_looked(self, timeout: float | None = None) -> bool:
        """Whether the ledger (or, when it is away, the disk) was looked at once and what it named has loaded or was refused."""
        return self._looked.wait(timeout) if timeout is not None else self._looked.is_set()

    def check(self, connection: Connection) -> None:
        """One look at the ledger for every system."""
        from sqlalchemy import text

        sql = text("SELECT system, count(*), max(sequence) FROM promotion WHERE channel = :channel GROUP BY system")
        with self._check_lock:
            for system, rows, newest in connection.execute(sql, {"channel": self.channel}).all():
                seen = Seen(rows, newest)
                host = self._hosts.get(system) or self._meet(connection, system, seen)
                if host is not None and host.wants(seen):
                    host.consider(connection, seen)

    def _meet(self, connection: Connection, system: str, seen: Seen) -> ModelHost | None:
        """The host of a system without one; None for a name that nobody configured and no verified promotion bears."""
        if self._strangers.get(system) == seen:
            return None
        keys = self._settings.public_keys_path
        if names.is_system(system) and (system in self.known or ledger.latest_verified(connection, system, self.channel, keys)[0]):
            return self.make_host(system)
        log.error("promotions of %r are ignored: no system has that name, and none of them is signed", system[:80])
        if len(self._strangers) >= STRANGERS_KEPT:
            self._strangers.clear()
        self._strangers[system] = seen
        return None

    def check_now(self, system: str) -> None:
        """Look again, also at what was refused; returns when the load that follows has ended. Blocks: call it on a thread."""
        host = self.make_host(system)
        host.retry()
        with self._connect().connect() as connection:
            self.check(connection)
        host.wait(self._load_seconds + 30)

    def absence_known(self, system: str) -> tuple[bool, Absence | None]:
        """Whether it was asked a moment ago why `system` has no champion, and the answer. Never waits."""
        until, found = self._absences.get(system, (0.0, None))
        return self.away_since is not None or time.monotonic() < until, found

    def absence(self, system: str) -> Absence | None:
        """Why `system` has no champion, by the ledger; None when it does not say. Blocks: call it on a thread."""
        with self._absence_lock:  # of many that ask at once, one asks the database
            known, found = self.absence_known(system)
            if not known:
                try:
                    with self._connect().connect() as connection:
                        found = absence(connection, system)
                except Exception as error:  # the answer is the same without it
                    log.warning("%s: why there is no champion is not known: %s", system, _line(error))
                self._absences[system] = time.monotonic() + ABSENCE_SECONDS, found
            return found

    def describe(self) -> dict[str, Any]:
        ledger_state = {"connected": self.away_since is None, "away_since": self.away_since, "reason": self.away_reason}
        return {"channel": self.channel, "ledger": ledger_state}

    def _run(self) -> None:
        self._restorer.join()
        failures = 0
        while not self._stop.is_set():
            try:
                with self._connect().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    self._follow(connection)
                    failures = 0
            except Exception as error:  # the driver, the pool and the network each have their own; the thread must outlive them all
                failures = 0 if self.away_since is None else failures + 1
                self._on_away(error)
                self._stop.wait(min(MAX_BACKOFF_SECONDS, self._settings.poll_seconds * 2 ** min(failures, 8)))

    def _follow(self, connection: Connection) -> None:
        from sqlalchemy import text

        connection.execute(text("LISTEN promotion"))
        driver: Any = connection.connection.driver_connection
        while not self._stop.is_set():
            self.check(connection)
            if self.away_since is not None:
                log.info("the ledger is back")
                self.away_since = self.away_reason = None
            if not self._looked.is_set():
                for host in self._hosts.values():
                    host.wait(self._load_seconds + 30)
                self._looked.set()
                _give_memory_back()
            if self._preloader.ident is None:
                self._preloader.start()
            if self._on_look is not None:
                self._on_look(connection)
            for _ in driver.notifies(timeout=self._settings.poll_seconds, stop_after=1):
                pass

    def _preload(self) -> None:
        hosts = list(self._hosts.values())
        for host in hosts:
            host.wait(self._load_seconds + 30)
        try:
            with self._connect().connect() as connection:
                for host in hosts:
                    host.preload_previous(connection)
        except Exception as error:
            log.warning("the previous champions do not stay at hand: %s", _line(error))

    def _remembered(self) -> list[str]:
        """Systems that were served before from this folder."""
        return sorted(path.parent.name for path in self._folder.glob("*/state.json") if names.is_system(path.parent.name))

    def _on_away(self, error: Exception) -> None:
        if self.away_since is None:
            self.away_since = datetime.now(UTC).isoformat()
            log.error("the ledger is away, what is served stays: %s", _line(error))
        self.away_reason = _line(error)
        self._restore()
        self._looked.set()

    def _restore(self) -> None:
        """What was served last is served again, each system by a thread of its own: it is half reading and hashing."""
        systems = self._remembered()
        threads = [threading.Thread(target=self.make_host(name).restore, name=f"restore-{name}", daemon=True) for name in systems]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _give_memory_back() -> None:
    """Loading a model leaves as much freed heap behind as the model is large; glibc keeps it unless told."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
