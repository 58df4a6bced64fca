"""What `mlops up --demo` and `--data` do: land data sets, then tell from the ledgers how far each has come, until its verdict.

Belongs here: which data is landed under which version, and the line for each stage. Does not belong here: any step of the pipeline itself:
the sensors do that, and nothing here helps them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.dagster_api import FINISHED, runs_over
from mlops_assets.settings import Settings, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

#: Folder of a real data set (the layout that `make run DATA=dir` takes) -> its system.
FOLDERS = {"nsmc": "sentiment", "magnetic_tile": "tires", "unsmile": "hate_speech", "mnist": "digits"}

#: What lands together with a real data set where it lies beside it: digits are measured on real drawings too.
BESIDE = {"mnist": "hwd1000"}

#: Asked of the server when the first champion is there; a system that is not here is asked about the first photo of what was landed.
QUESTIONS = {"sentiment": "배우들 연기 정말 재미있었어요", "hate_speech": "요즘 외국인들 모임에 다녀왔다"}
PHOTOS = (".jpg", ".jpeg", ".png")

#: Of several models on one version, the one that came furthest is the version's outcome.
BEST_FIRST = ("promoted", "registered", "refused")

_LONGEST_SECONDS = 3600.0
_SILENT_SECONDS = 20.0
#: While a model trains, people hear of it so often.
BEAT_SECONDS = 10.0

Say = Callable[[str, str], None]


@dataclass
class Landing:
    """One data set on its way to a verdict."""

    system: str
    version: str
    source: Path | None
    """Folder to land; None: a generated sample."""
    bad: bool = False
    process: subprocess.Popen[bytes] | None = None
    landed: bool = False
    outcome: str | None = None
    """refused | registered | promoted (and served) | failed"""
    said: set[str] = field(default_factory=set)
    idle_since: float | None = None
    beat: tuple[str, int] = ("", 0)
    """Variant and step that were told last."""
    next_beat: float = 0.0


#: What `--demo` lands: system, version, source (generated), whether it is deliberately bad.
SAMPLES = (
    ("sentiment", "demo-1", None, False),
    ("sentiment", "demo-bad", None, True),
    ("tires", "demo-tires-1", None, False),
    ("hate_speech", "demo-comments-1", None, False),
    ("digits", "demo-digits-1", None, False),
)


def write_sample(system: str, folder: Path, *, bad: bool) -> None:
    """The generated data of any system."""
    from mlops_assets import sample_data

    write: dict[str, Callable[..., None]] = {
        "sentiment": sample_data.write_reviews,
        "tires": sample_data.write_tires,
        "hate_speech": sample_data.write_comments,
        "digits": sample_data.write_digits,
        "disposal_policy": sample_data.write_policies,
    }
    write[system](folder, bad=bad)


class Demo:
    """Lands, then follows. Driven by `tick` from the supervisor's loop; nothing in it blocks for long."""

    def __init__(self, settings: Settings, landings: Sequence[Landing]) -> None:
        self.landings = landings
        self._settings = settings
        self._begun = 0.0
        self._next = 0.0
        self._first_model_said = False
        self._engine: Engine | None = None

    @classmethod
    def of(cls, settings: Settings, *, sample: bool, data: Path | None) -> Demo:
        """The landings that were asked for.

        Raises:
            SettingsError: the folder is missing, or holds no data set that is known.
        """
        if data is None:
            return cls(settings, [Landing(*one) for one in SAMPLES] if sample else [])
        if not data.is_dir():
            raise SettingsError(f"{data} is not a folder: give the one that holds {', '.join(FOLDERS)}")
        found = [Landing(system, f"{name}-1", (data / name).resolve()) for name, system in FOLDERS.items() if (data / name).is_dir()]
        if not found:
            raise SettingsError(f"{data} holds no data set that is known ({', '.join(FOLDERS)}): put each in a folder of that name")
        return cls(settings, found)

    @property
    def done(self) -> bool:
        return all(landing.outcome for landing in self.landings)

    def finished(self) -> bool:
        """Every landing has its end, and so has every run over it: stopping now cuts nothing off. Asks once a second."""
        now = time.monotonic()
        if not self.done or now < self._next:
            return False
        self._next = now + 1.0
        return not any(self._working(landing) for landing in self.landings)

    @property
    def failed(self) -> bool:
        """A good version that did not become a model, or a bad one that did."""
        return any(landing.outcome == "failed" or (landing.outcome == "refused") != landing.bad for landing in self.landings)

    @property
    def next_step(self) -> str:
        return "mlops predict sentiment '정말 재미있었어요'    (in another terminal; Ctrl-C here stops everything)"

    def begin(self, settings: Settings, environment: Mapping[str, str], say: Say) -> None:
        from mlops_assets import database

        self._settings, self._environment, self._say = settings, dict(environment), say
        self._begun = time.monotonic()
        self._engine = database.connect(settings.require("database_url"), pool_size=1)

    def tick(self) -> bool:
        """Look once a second. True in the one call with which everything has its end."""
        now = time.monotonic()
        if self.done or now < self._next:
            return False
        self._next = now + 1.0
        self._step(now)
        waiting = [landing for landing in self.landings if landing.outcome is None]
        if not waiting and self._engine is not None:
            self._engine.dispose()
        return not waiting

    def _step(self, now: float) -> None:
        for landing in self.landings:
            if landing.outcome is None:
                if not landing.landed:
                    self._land(landing)
                else:
                    self._follow(landing)
                if landing.outcome is None and now - self._begun > _LONGEST_SECONDS:
                    self._end(landing, "failed", f"no verdict after {_LONGEST_SECONDS / 60:.0f} minutes: look at the runs in Dagster")
            if not landing.landed:
                return  # one after the other: the good version first

    def _end(self, landing: Landing, outcome: str, text: str = "") -> None:
        landing.outcome = outcome
        if outcome == "failed":
            self._say("fail", f"{landing.system} {landing.version}: {text}")

    def _land(self, landing: Landing) -> None:
        if landing.process is None:
            if self._known(landing):
                landing.landed = True
                self._first_model_said = True  # no figure to speak of: it was there
                self._say("step", f"{landing.system} {landing.version}: was landed before")
                return
            landing.source = self._together(landing.source) if landing.source else self._sample(landing)
            source = landing.source
            self._say("step", f"{landing.system} {landing.version}: landing {source}{' (deliberately bad)' if landing.bad else ''}")
            command = [sys.executable, str(Path(sys.executable).with_name("mlops")), "land", landing.system, str(source)]
            log = (self._settings.home / "logs" / f"land-{landing.version}.log").open("wb")
            with log:
                landing.process = subprocess.Popen(
                    [*command, "--dataset-version", landing.version],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=self._environment,
                )
        elif (code := landing.process.poll()) is not None:
            landing.landed = True
            if code != 0:
                text = (self._settings.home / "logs" / f"land-{landing.version}.log").read_text(errors="replace")
                self._end(landing, "failed", f"landing ended with exit code {code}: {text.strip()[-500:]}")

    def _together(self, source: Path) -> Path:
        """The folder to land: `source`, or links to its files and to those that land with it."""
        other = source.parent / BESIDE.get(source.name, "")
        if source.name not in BESIDE or not other.is_dir():
            return source
        folder = self._settings.home / "samples" / source.name
        for part in (source, other):
            for file in (found for found in part.rglob("*") if found.is_file()):
                link = folder / part.name / file.relative_to(part)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(file)
        return folder

    def _known(self, landing: Landing) -> bool:
        from sqlalchemy import text

        assert self._engine is not None
        with self._engine.connect() as connection:
            sql = text("SELECT 1 FROM dataset_version WHERE system = :system AND version = :version")
            return connection.execute(sql, {"system": landing.system, "version": landing.version}).first() is not None

    def _sample(self, landing: Landing) -> Path:
        folder = self._settings.home / "samples" / landing.system / landing.version
        folder.mkdir(parents=True, exist_ok=True)
        write_sample(landing.system, folder, bad=landing.bad)
        return folder

    def _follow(self, landing: Landing) -> None:
        assert self._engine is not None
        outcomes = []
        with self._engine.connect() as connection:
            for fact in facts(connection, landing.system, landing.version):
                if fact.key not in landing.said:
                    landing.said.add(fact.key)
                    self._say(fact.kind, f"{landing.system} {landing.version}: {fact.text}")
                outcomes.append(fact.outcome)
        self._heartbeat(landing)
        best = next((outcome for outcome in BEST_FIRST if outcome in outcomes), None)
        if best == "promoted":
            self._served(landing)
        elif best is None:
            self._watch_runs(landing)
        elif not self._working(landing):  # another model of the same run may still do better
            self._end(landing, best)

    def _heartbeat(self, landing: Landing) -> None:
        """A training takes minutes in which no ledger changes."""
        from mlops_assets.training.attempt import trainings

        now = time.monotonic()
        if now < landing.next_beat:
            return
        for one in trainings(self._settings.home, landing.system, landing.version):
            if (one["variant"], one["step"]) != landing.beat:
                landing.beat, landing.next_beat = (one["variant"], one["step"]), now + BEAT_SECONDS
                named = f"training {one['variant']}" if one["variant"] else "training"
                self._say("step", f"{landing.system} {landing.version}: {named}: {one['said']}")

    def _working(self, landing: Landing) -> bool:
        """Also while Dagster is too busy to say."""
        runs = runs_over(self._settings.require("dagster_url"), landing.system, landing.version)
        return runs is None or any(run["status"] not in FINISHED for run in runs)

    def _served(self, landing: Landing) -> None:
        """The end of the good path is an answer, not a row."""
        import httpx

        question, asked = self._question(landing)
        try:
            url = f"{self._settings.require('serve_url')}/predict/{landing.system}"
            answer = httpx.post(url, timeout=2, trust_env=False, **asked)
            answer.raise_for_status()
        except httpx.HTTPError:
            return
        first = next(iter(_first_answers(answer.json())), {})
        said = f"{question} -> {first.get('label')} {first.get('confidence', 0):.2f}" if first else question
        version = answer.headers.get("X-Model-Version", "?")
        self._say("ok", f"{landing.system} {landing.version}: served: {said} (model version {version}, {url})")
        if not self._first_model_said:
            self._first_model_said = True
            self._say("ok", f"first model served {time.monotonic() - self._begun:.0f} s after the platform was up")
        self._end(landing, "promoted")

    def _question(self, landing: Landing) -> tuple[str, dict[str, Any]]:
        """What is asked, for people and for httpx."""
        if landing.system in QUESTIONS:
            return QUESTIONS[landing.system], {"json": {"inputs": [QUESTIONS[landing.system]]}}
        folder = self._together(landing.source) if landing.source else self._settings.home / "samples" / landing.system / landing.version
        photo = next(path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PHOTOS and _is_photo(path))
        return photo.name, {"files": [("files", (photo.name, photo.read_bytes()))]}

    def _watch_runs(self, landing: Landing) -> None:
        """A run that broke (not: was refused) leaves no verdict; say so when nothing works on the version any more."""
        runs = runs_over(self._settings.require("dagster_url"), landing.system, landing.version)
        if not runs or any(run["status"] not in FINISHED for run in runs):
            landing.idle_since = None
            return
        landing.idle_since = landing.idle_since or time.monotonic()
        if time.monotonic() - landing.idle_since > _SILENT_SECONDS:
            broken = runs[0]
            link = f"{self._settings.dagster_url}/runs/{broken['runId']}"
            self._end(landing, "failed", f"its run ended as {broken['status']} without a verdict: {link}")


def _is_photo(path: Path) -> bool:
    from mlops_assets.images import BadImage, decode

    try:
        decode(path.read_bytes())
    except BadImage:
        return False
    return True


@dataclass(frozen=True)
class Fact:
    key: str
    kind: str
    text: str
    outcome: str | None = None


def facts(connection: Connection, system: str, version: str) -> Iterator[Fact]:
    """All that the ledgers say of one dataset version, oldest first."""
    from sqlalchemy import text

    names = {"system": system, "version": version}

    def rows(sql: str) -> Sequence[Mapping[Any, Any]]:
        return connection.execute(text(sql), names).mappings().all()

    for row in rows("SELECT * FROM dataset_version WHERE system = :system AND version = :version"):
        if row["closed_at"] is not None:
            yield Fact("closed", "step", "landing is complete, a run is requested")
        if row["state"] == "frozen":
            yield Fact("frozen", "step", f"frozen: {row['object_count'] or 0} objects, {row['byte_count'] or 0:,} bytes")
        if row["state"] == "refused":
            yield Fact("dataset-refused", "warn", f"refused before training: {row['reason']}", "refused")
    for row in rows("SELECT count(*) AS rows FROM quarantined_row WHERE system = :system AND version = :version HAVING count(*) > 0"):
        yield Fact("quarantined", "step", f"{row['rows']} rows are quarantined, each with a reason")
    for row in rows("SELECT id, variant, bundle_sha256 FROM attempt WHERE system = :system AND dataset_version = :version ORDER BY id"):
        yield Fact(f"attempt-{row['id']}", "step", f"trained and exported, bundle {row['bundle_sha256'][:12]}")
    for row in rows(
        "SELECT r.id, r.body FROM report r JOIN attempt a ON a.id = r.attempt_id "
        "WHERE a.system = :system AND a.dataset_version = :version ORDER BY r.id"
    ):
        body = row["body"] if isinstance(row["body"], dict) else json.loads(row["body"])
        metrics = {name: body.get("metrics", {}).get(name) for name in ("accuracy", "f1")}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float))
        yield Fact(f"report-{row['id']}", "step", f"evaluated on the holdout: {shown}")
    sql = "SELECT id, outcome, sentence FROM verdict WHERE system = :system AND dataset_version = :version ORDER BY id"
    for row in rows(sql):
        kind = "warn" if row["outcome"] == "refused" else "ok"
        yield Fact(f"verdict-{row['id']}", kind, f"{row['outcome']}: {row['sentence']}", row["outcome"])
    for row in rows(
        "SELECT p.sequence, p.version, p.channel FROM promotion p JOIN receipt r USING (system, version) "
        "WHERE p.system = :system AND r.dataset_version = :version ORDER BY p.sequence"
    ):
        yield Fact(f"promotion-{row['sequence']}", "ok", f"version {row['version']} is {row['channel']} (promotion {row['sequence']})")


def _first_answers(answer: Any) -> Sequence[Mapping[str, Any]]:
    """The list of predictions of an answer of `POST /predict/{system}`."""
    found = answer.get("predictions") if isinstance(answer, dict) else answer
    return found if isinstance(found, list) else []
