"""Where every setting comes from: MLOPS_* environment variables and the YAML files of `configs/`, validated once, frozen.

The only module that reads the process environment. Belongs here: the names, defaults and validation of settings. Does not belong here:
anything that connects to, starts or downloads something.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

REPOSITORY = Path(__file__).resolve().parent.parent

#: Written by `mlops up` under the home: the addresses of what runs on this machine, read by every other command.
SERVICES_FILE = "services.json"


class SettingsError(ValueError):
    """A setting is missing or wrong. The message says which, why, and what to do."""


#: 0: any free one.
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Everything that differs between machines. Each field is the variable `MLOPS_<NAME>`.

    `None` for an address means "the embedded one under `home`"; `mlops up` fills those in through `services.json`.
    """

    model_config = SettingsConfigDict(env_prefix="MLOPS_", frozen=True, extra="ignore")

    home: Path = Path(".mlops")
    """All state of this installation: databases, objects, checkpoints, keys, logs."""
    configs: Path = REPOSITORY / "configs"
    """Folder of `base.yaml` and one `<system>.yaml` each."""

    database_url: str | None = Field(default=None, repr=False)
    """PostgreSQL of the platform's own ledgers (`postgresql+psycopg://...`)."""
    dagster_database_url: str | None = Field(default=None, repr=False)
    """PostgreSQL of Dagster's storage (`postgresql://...`)."""
    mlflow_database_url: str | None = Field(default=None, repr=False)
    """PostgreSQL of the MLflow server (`postgresql://...`)."""
    comments_url: str | None = Field(default=None, repr=False)
    """The application's MySQL (`mysql+pymysql://...`), read only."""
    sheets_credentials: Path | None = None
    """JSON file of the Google service account that may read the team's sheet."""
    sheets_url: str | None = None
    """Another endpoint than Google's Sheets API (tests, a proxy)."""

    object_store_url: str | None = Field(default=None, repr=False)
    """`file:///dir` or `s3://bucket/prefix`: landing zone, frozen objects, bundles."""
    s3_endpoint_url: str | None = Field(default=None, repr=False)
    """Another S3 endpoint than AWS (MinIO, moto)."""

    mlflow_tracking_uri: str | None = Field(default=None, repr=False)
    spark_remote: str | None = Field(default=None, repr=False)
    """`sc://host:port` (Spark Connect) or `spark://host:port` / `local[*]` (JVM); `None` starts the embedded engine (Sail)."""
    serve_url: str | None = None
    staging_url: str | None = None
    dagster_url: str | None = None

    slack_token: str | None = Field(default=None, repr=False)
    slack_channel: str = "#mlops"
    slack_webhook_url: str | None = Field(default=None, repr=False)

    signing_key: Path | None = None
    """Ed25519 private key, mode 0600; default `<home>/keys/signing/current.pem`. Only the registrar reads it."""
    public_keys: Path | None = None
    """Folder of `<key_id>.pub`; default `<home>/keys/public`. All that the server has."""
    api_token: str | None = Field(default=None, repr=False)
    """Bearer token for HTTP calls that write; without one they are refused."""

    otp_secret: str | None = Field(default=None, min_length=32, pattern="^[^,]*$", repr=False)
    """Shared with the caller's back-end: signs one-time-code sessions. Without it `/otp` only practises and keeps nothing. No comma is in
    it: it will be one of `otp_former_secrets`."""
    otp_former_secrets: str = Field(default="", repr=False)
    """Former secrets, separated by commas: pseudonyms were made with the secret of their day, and users must be found to be forgotten."""
    otp_hold_seconds: float = Field(default=600, gt=0, le=86_400)
    """So long drawings wait in memory for the back-end to say that their code was right."""
    otp_held_sessions: int = Field(default=1000, ge=1)
    """Drawings of so many sessions wait at most; those of more are dropped."""

    host: str = "127.0.0.1"
    allowed_hosts: str = ""
    """Further names under which people reach the services (a proxy's), separated by commas; `*.example.com` for all below one."""
    allowed_origins: str = ""
    """Origins (`https://mlops.example.com`) of other pages that may ask the services, separated by commas."""
    max_header_bytes: int = Field(default=64 * 1024, ge=1024)
    """Of one request to any of the services, its address included."""
    header_seconds: float = Field(default=20, gt=0)
    """So long a service waits for the whole of a request's headers."""
    body_seconds: float = Field(default=60, gt=0)
    """So long for the body; a second more for every 16 KiB of it that came."""
    max_connections: int = Field(default=500, ge=1)
    """Of one service at a time; beyond, the connection that keeps it waiting longest is closed."""
    dagster_port: Port = 3000
    mlflow_port: Port = 5000
    serve_port: Port = 8000
    staging_port: Port = 8001
    dashboard_port: Port = 8501
    tensorboard_port: Port = 6006
    otp_demo_port: Port = 8010

    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Threads of training and of the inference engine."""
    sensor_interval_seconds: int = Field(default=10, ge=5)
    settle_seconds: float = Field(default=30.0, ge=0)
    """A version without a `_READY` marker is complete when nothing in it changed for this long, unless `mlops land` has begun it."""
    max_object_bytes: int = Field(default=5 * 1024**3, gt=0)
    max_line_bytes: int = Field(default=1024**2, gt=0)
    max_run_seconds: int = Field(default=6 * 3600, gt=0)
    poll_seconds: float = Field(default=1.0, gt=0)
    """How often the server looks at the promotion ledger."""
    resident_previous: int = Field(default=1, ge=0)
    """How many former champions the server keeps loaded."""
    rollback_depth: int = Field(default=3, ge=1)
    """How many former champions retention keeps."""

    @field_validator("home", "configs", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("object_store_url")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("file:///", "s3://")):
            raise ValueError(f"must begin with file:/// or s3://, got {shown(value)!r}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over what `mlops up` last wrote."""
        home = init_settings().get("home") or os.environ.get("MLOPS_HOME") or ".mlops"
        running = Path(home).expanduser() / SERVICES_FILE
        return init_settings, env_settings, JsonConfigSettingsSource(settings_cls, json_file=running)

    @property
    def store_url(self) -> str:
        return self.object_store_url or (self.home / "store").as_uri()

    @property
    def reached_at(self) -> str:
        """The host under which this machine itself reaches what listens on `host`, as it stands in a URL."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
        return everywhere.get(self.host, f"[{self.host}]" if ":" in self.host else self.host)

    @property
    def signing_key_path(self) -> Path:
        return self.signing_key or self.home / "keys" / "signing" / "current.pem"

    @property
    def public_keys_path(self) -> Path:
        return self.public_keys or self.home / "keys" / "public"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    def require(self, name: str) -> str:
        """The address `name`, or a SettingsError that says how to have one."""
        value = getattr(self, name)
        if not value:
            raise SettingsError(
                f"{name} is not set: nothing runs under {self.home}. Start the platform with `mlops up`, or set MLOPS_{name.upper()}."
            )
        return str(value)

    def otp_secrets(self) -> list[str]:
        """The secret and those of before: a user's pseudonym was made with one of them."""
        former = [one.strip() for one in self.otp_former_secrets.split(",")]
        return [one for one in (self.otp_secret, *former) if one]

    def environment(self) -> dict[str, str]:
        """The MLOPS_* (and DAGSTER_HOME) variables that make a child process see the same settings."""
        values = {f"MLOPS_{name.upper()}": str(value) for name, value in self.model_dump(mode="json").items() if value is not None}
        return values | {"DAGSTER_HOME": str(self.dagster_home)}


def variable(name: str) -> str:
    """A variable that a CI job hands to a program of ours; "" when it is not set. Settings are fields of `Settings`, not this."""
    return os.environ.get(name, "")


_PASSWORD = re.compile(r"(://[^/@\s:]*):[^/\s]*@")
_TOKEN = re.compile(r"([?&;][\w-]*(?:token|password|passwd|secret|key|signature)[\w-]*=)[^&;\s]+", re.IGNORECASE)


def shown(text: str) -> str:
    """A URL, or a message that quotes URLs, for people, logs and metadata: without the passwords and tokens in them."""
    return _TOKEN.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def library_defaults() -> None:
    """What libraries read from the environment when they load. Must come before torch is imported; what is set already stays.

    OpenMP's threads sleep, not spin, while they wait for each other: a machine that trains also runs Dagster, MLflow and servers, and with
    spinning threads a training step took 10 to 20 times as long as soon as anything else ran on the same two cores. Texts are tokenized by
    the thread that asks: waking others for the four of a round cost the server 2 % of its answers. Sail logs errors alone, not each start
    and stop of its own.
    """
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "RUST_LOG": "error"}.items():
        os.environ.setdefault(name, value)


def load_settings(**overrides: Any) -> Settings:
    """Settings from arguments, environment and the running platform; one clear message when they are wrong.

    Raises:
        SettingsError: a variable has a bad value, or an MLOPS_* variable that nothing reads looks like a typo of one that is read.
    """
    library_defaults()
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(f"MLOPS_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"{problems}. See the table of settings in README.md.") from None
    known = {f"MLOPS_{name.upper()}" for name in Settings.model_fields} | {
        "MLOPS_REQUIRE_SERVICES",
        "MLOPS_REAL_DATA",
        "MLOPS_CRASH_AT",
    }
    unknown = sorted(v for v in os.environ if v.startswith("MLOPS_") and v not in known)
    if unknown:
        near = {u: fnmatch.filter(known, u[:12] + "*") for u in unknown}
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}. Nothing reads it"
            + "".join(f"; did you mean {', '.join(sorted(n))}?" for n in near.values() if n)
        )
    return settings


def export(settings: Settings) -> None:
    """Put the settings into this process's environment, for libraries that read only that (Dagster's `env:`, MLflow)."""
    os.environ.update(settings.environment())


def crash_point() -> str | None:
    """The named crash point at which this process must kill itself (tests only)."""
    return os.environ.get("MLOPS_CRASH_AT")


def process_environment() -> dict[str, str]:
    """A copy of the environment, to start a child process with."""
    return dict(os.environ)


# --- configs/<system>.yaml ------------------------------------------------------------------------------------------------------


class Strict(BaseModel):
    """Base of every configuration section: frozen, and a misspelled key or a number that is none is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PromotionPolicy(Strict):
    """When a registered model becomes champion."""

    mode: Literal["auto", "manual"] = "auto"
    """auto: a run promotes what passes the gate; manual: it registers, and `mlops produce` promotes."""
    metric: str = "f1"
    """The metric on which challenger and champion are compared."""
    min_improvement: float = Field(default=0.0, ge=0)
    """How much better (in the metric's own direction) a challenger must be."""
    max_fall: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Metric, or family such as `recall_*` -> how much worse than the champion, on the same rows, a challenger may be in it; one that falls
    further is refused. On the champion's own holdout it counts too."""
    max_earlier_fall: float = Field(default=0.02, ge=0)
    """The same for `metric` on the champion's own holdout, where `max_fall` does not name it."""
    min_rows: int = Field(default=100, ge=1)
    """On a smaller holdout a model is refused: so few rows say nothing."""
    min_class_rows: int = Field(default=20, ge=1)
    """The same for each class, and for each part of the holdout that has a figure of its own."""
    alpha: float = Field(default=0.05, gt=0, le=1)
    """A challenger is promoted over a champion when a paired test on the same rows finds it better with at most this chance of error."""
    max_report_age_hours: float = Field(default=24 * 7, gt=0)
    """An older evaluation is stale: refused."""


class MonitoringPolicy(Strict):
    """When people are told that a champion does badly on what its users really ask."""

    min_live_accuracy: float | None = Field(default=None, gt=0, le=1)
    """Share of right answers among those whose truth is known; null: nobody is told."""
    min_answers: int = Field(default=50, ge=1)
    """Fewer known truths than these say nothing."""
    window_hours: float = Field(default=24, gt=0)
    """Truths that came within so many hours count."""


class ClientFiles(Strict):
    """Files in the store for clients that read no ledger."""

    state_dict: bool = False
    """Per registered version `params.yaml` and `model.pt`, and `latest_model.yaml` for the champion, under `clients/<system>/`."""


class CutsSection(Strict):
    """When a later dataset version of a system is cut from the ledger of comments."""

    when: Literal["collection_end", "labels", "schedule"]
    """collection_end: comments arrived and none did for `quiet_minutes`; labels: enough of them are new; schedule: by `cron`."""
    min_new_labels: int = Field(default=1, ge=1)
    """With fewer comments whose label is new (or that are gone) no version is cut."""
    quiet_minutes: float = Field(default=10, ge=0)
    cron: str = "0 4 * * *"
    """In the time of Asia/Seoul."""
    origins: tuple[Literal["dataset", "moderation", "review"], ...] = ("moderation", "review")
    """Labels of these origins are cut. A data set's own labels are in the version that was made of its files."""


class ReviewSection(Strict):
    """How people are asked about comments that nobody has labelled."""

    random_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the questions that are drawn at random: they alone say how often a label truly is. The others are the most uncertain."""
    lease_minutes: float = Field(default=15, gt=0)
    """So long a question belongs to the person who got it."""
    max_opinions: int = Field(default=5, ge=2)
    """A comment about which so many people do not agree is asked no further; it has no label."""
    exclusive: tuple[str, ...] = ()
    """Labels that stand alone, such as `clean`."""
    scores_per_run: int = Field(default=20_000, ge=1)
    """Comments that one run of `<system>_score_comments` reads at most."""


class DrawingsSection(Strict):
    """Which drawings of users become training data, and when. See `ingest/drawn.py` for what each stops."""

    per_writer: int = Field(default=60, ge=1)
    """Drawings of one user within `window_days`; more are dropped."""
    window_days: int = Field(default=30, ge=1)
    near_duplicate: float = Field(default=0.15, ge=0, le=1)
    """Of the points where either has ink: a drawing that differs from an earlier one in no larger share is dropped."""
    min_probability: float = Field(default=0.01, ge=0, le=1)
    """The champion's probability of the confirmed digit. Below it, the drawing waits until other users have drawn alike; 0 trusts all."""
    agreeing_writers: int = Field(default=2, ge=1)
    """So many other users must have drawn such a digit alike."""
    alike: float = Field(default=0.5, ge=0, le=1)
    """Of the points where either has ink: what differs in no larger share is drawn alike."""
    min_new: int = Field(default=300, ge=1)
    """With fewer new drawings no version is cut."""
    min_writers: int = Field(default=10, ge=1)
    """With fewer users among them no version is cut."""
    max_share: float = Field(default=0.2, gt=0, lt=1)
    """All drawings of users together, of the rows of the version that a cut extends."""
    max_digit_share: float = Field(default=0.2, gt=0, le=1)
    """Drawings of one digit, of those of a cut."""


class ProjectSection(Strict):
    """What the system is called, who owns it, and which data set and model it uses by default."""

    name: str
    description: str = ""
    owners: tuple[str, ...] = ()
    dataset: str
    model: str
    seed: int = 42
    scenario: tuple[str, ...] = ()
    """Of a system with several models: those that a new dataset version trains; empty: all."""


class SystemConfig(Strict):
    """The part of `configs/<system>.yaml` that every system has; a system's own config type extends it."""

    project: ProjectSection
    register_threshold: dict[str, FiniteFloat]
    """Metric name -> the least (for a loss: the most) that may be registered."""
    promotion: PromotionPolicy = PromotionPolicy()
    monitoring: MonitoringPolicy = MonitoringPolicy()
    clients: ClientFiles = ClientFiles()
    cuts: CutsSection | None = None
    """Of a system whose later versions are cut from the ledger of comments."""
    review: ReviewSection | None = None
    """Of a system about whose comments people are asked."""
    drawings: DrawingsSection | None = None
    """Of a system whose later versions are cut from what users drew."""

    @model_validator(mode="after")
    def _has_threshold(self) -> Self:
        if not self.register_threshold:
            raise ValueError("register_threshold names no metric: nothing would ever be refused")
        return self


C = TypeVar("C", bound=Strict)


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, section by section."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


class _Yaml(yaml.SafeLoader):
    """YAML in which a mapping has each key once: PyYAML keeps the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, yaml.Node] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            key = unicodedata.normalize("NFC", key).strip() if isinstance(key, str) else key
            before = first.setdefault(key, key_node)
            if before is not key_node:
                problem = f"the key {key!r} is there twice, the first time in line {before.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value that looks like a date or a number and is none is an error of its line: PyYAML lets Python's own errors out."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"the value cannot be read ({error})", node.start_mark) from None


#: Values in one file, those behind an alias counted each time: ten lines of aliases can stand for more than any memory holds.
MAX_YAML_VALUES: Final = 100_000


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping.

    Raises:
        SettingsError: missing, not UTF-8, not YAML (with line and column), a key twice, not a mapping, or more than a configuration can be.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Yaml)
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist. Copy it from the repository's configs/, or set MLOPS_CONFIGS.") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}). It must be a file that this user may read.") from None
    except RecursionError:
        raise SettingsError(f"{path} is nested too deeply for a configuration. Remove the brackets.") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}. Mend that line.") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold a mapping of sections, it holds {type(content).__name__}.")
    if problem := _unusable(content):
        raise SettingsError(f"{path} {problem}")
    return content


def _unusable(content: Any) -> str | None:
    """What YAML can say and nothing can work with, or None."""
    waiting, seen = [content], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MAX_YAML_VALUES:
            return f"stands for more than {MAX_YAML_VALUES} values by its aliases (*name). Write out what is meant."
        if isinstance(value, str) and ("\x00" in value or any("\ud800" <= character <= "\udfff" for character in value)):
            return f"holds {value[:40]!a}, a character that no text has. Remove the escape."
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return None


def load_config(kind: type[C], name: str, folder: Path, path: Path | None = None) -> C:
    """`base.yaml` with `<name>.yaml` (or `path`) over it, validated as `kind`.

    Raises:
        SettingsError: with the file, the field and what it wants.
    """
    path = path or folder / f"{name}.yaml"
    base = read_yaml(folder / "base.yaml") if (folder / "base.yaml").exists() else {}
    return validate(kind, merge(base, read_yaml(path)), str(path))


def load_section(kind: type[C], system: str, section: str, folder: Path) -> C:
    """One section alone, for the server, which knows no system's config type; its defaults where there is none."""
    content = load_config_text(system, folder).get(section)
    try:
        return kind.model_validate(content or {})
    except ValidationError as error:
        raise SettingsError(f"{folder / f'{system}.yaml'}: {section} is not valid: {error.errors()[0]['msg']}") from None


def load_config_text(name: str, folder: Path) -> dict[str, Any]:
    """`base.yaml` with `<name>.yaml` over it, not validated; empty where there are none."""
    files = [path for path in (folder / "base.yaml", folder / f"{name}.yaml") if path.exists()]
    merged: dict[str, Any] = {}
    for path in files:
        merged = merge(merged, read_yaml(path))
    return merged


def validate(kind: type[C], values: Mapping[str, Any], source: str) -> C:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"{source} is not valid:\n" + "\n".join(lines)) from None


def canonical(value: Any) -> str:
    """The one JSON text of a value that digests and signatures are made over: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@cache
def git_commit() -> str:
    """The commit of the running code, `unknown` outside a checkout, with `-dirty` when files differ from it."""
    import subprocess

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("GIT_COMMIT", "unknown")
