"""`mlops`: the platform from a terminal. Every command has --json (one document on stdout, logs on stderr).

Exit codes: 0 done, 1 refused by the gate or the registrar (the reason is the last line), 2 wrong use, bad input, or something is broken.
Belongs here: reading arguments and words for people. Does not belong here: anything a program would want to call.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, validators

from mlops_assets.settings import Settings, SettingsError, load_settings, shown

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.lifecycle.system import ModelSystem
    from mlops_assets.settings import SystemConfig

app = App(name="mlops", help="Machine learning as Dagster assets: from landed data to a gated, signed, served and traceable model.")
data = App(name="data", help="Official data sets.")
app.command(data)
ingest = App(name="ingest", help="Reading the sources that the sensors read, by hand.")
app.command(ingest)

#: A registered version.
Number = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on stdout.")]


class Stop(Exception):
    """Ends a command with `code`; the message is the last line. `document_printed`: with --json the command's own document is out."""

    def __init__(self, code: int, message: str, *, document_printed: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.document_printed = document_printed


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Known failures are one sentence; a traceback is a defect of ours."""
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except Stop as stop:
        _end(stop.code, str(stop), as_json and not stop.document_printed)
    except CycloptsError as error:
        _end(2, f"{error} (`mlops --help` lists the commands)", as_json)
    except KeyboardInterrupt:
        _end(130, "stopped", as_json)
    except Exception as error:
        if isinstance(error, _readable()):
            message = str(error) or type(error).__name__
        elif isinstance(error, _outages()):
            message = f"{_first_line(error)}: `mlops doctor`"
        else:
            traceback.print_exc()
            message = f"{type(error).__name__}: {_first_line(error)}"
        _end(2, message, as_json)
    sys.exit(0)


def _outages() -> tuple[type[Exception], ...]:
    """What the clients of the database and of the store raise. Below the first line they quote parameters and their own source."""
    from obstore.exceptions import BaseError
    from sqlalchemy.exc import DBAPIError

    return DBAPIError, BaseError


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _readable() -> tuple[type[Exception], ...]:
    """Exceptions whose message is written for the user."""
    from mlops_assets.database import SchemaTooNew
    from mlops_assets.ingest.comment_source import CommentsError
    from mlops_assets.ingest.objects import LandingError
    from mlops_assets.lifecycle.dataset import DatasetError
    from mlops_assets.lifecycle.ledger import LedgerError
    from mlops_assets.lifecycle.pipeline import UnknownParameter
    from mlops_assets.lifecycle.report import UnknownMetric
    from mlops_assets.lifecycle.signing import KeyProblem
    from mlops_assets.lifecycle.trace import NotFound

    return (
        SettingsError,
        UnknownMetric,
        UnknownParameter,
        LedgerError,
        NotFound,
        KeyProblem,
        SchemaTooNew,
        LandingError,
        CommentsError,
        DatasetError,
        OSError,
        ValueError,
    )


def _end(code: int, message: str, as_json: bool) -> NoReturn:
    message = shown(message)
    if as_json:
        print(json.dumps({"ok": code == 0, "refused": code == 1, "message": message}, ensure_ascii=False))
    print(message, file=sys.stderr)
    sys.exit(code)


def _out(value: Any, as_json: bool, lines: Iterable[str]) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False, default=str))
        return
    for line in lines:
        print(line)


def _table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*[f"{row[c]:.4f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns])
    Console().print(table)


def _known_system(name: str, *, data: bool = False) -> None:
    """Ends the command unless `name` is a system; with `data`, one without a model will do."""
    from mlops_assets.systems import DATA_SYSTEMS, SYSTEMS

    known = (*SYSTEMS, *DATA_SYSTEMS) if data else SYSTEMS
    if name not in known:
        why = f"{name} has data and no model" if name in DATA_SYSTEMS else f"unknown system {name!r}"
        raise Stop(2, f"{why}: choose one of {', '.join(known)}")


def _system(name: str) -> tuple[ModelSystem, SystemConfig, Settings]:
    """A system with a model, by name, with its validated configuration."""
    from importlib import import_module

    from mlops_assets.settings import load_config

    _known_system(name)
    settings = load_settings()
    system: ModelSystem = import_module(f"mlops_assets.systems.{name}.training").SYSTEM
    return system, load_config(system.config_type, name, settings.configs), settings


def _platform(settings: Settings) -> Platform:
    from mlops_assets.lifecycle.pipeline import connect

    return connect(settings)


@app.command
def up(
    *,
    demo: Annotated[bool, Parameter(negative="", help="Land a good and a bad sample version and show what becomes of them.")] = False,
    data: Annotated[Path | None, Parameter(help="Land real data sets instead: a folder such as nsmc/ in it for each.")] = None,
    exit_when_done: Annotated[bool, Parameter(negative="", help="Stop once the landed versions have their verdicts.")] = False,
) -> None:
    """Start everything on this machine; one Ctrl-C stops it cleanly."""
    from mlops_assets.up import run

    code = run(load_settings(), demo=demo, data=data, exit_when_done=exit_when_done)
    if code:
        raise Stop(code, "the platform did not start, did not end cleanly, or a landed version has no verdict: see the lines above")


@app.command
def demo(*, as_json: Json = False) -> None:
    """Land a good and a bad sample version per system on the running platform. Policies that are kept already are left alone."""
    import tempfile

    from mlops_assets.demo import write_sample
    from mlops_assets.ingest.objects import land as land_objects
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems import DATA_SYSTEMS, SYSTEMS

    settings = load_settings()
    settings.require("database_url")
    store, stamp = ObjectStore.of(settings), datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    # A model only takes over when it is better; a sheet of policies ends those that are not in it.
    kept = [system for system in DATA_SYSTEMS if _versions(settings, system)]
    landed: dict[str, list[str]] = {}
    for system in (*SYSTEMS, *(system for system in DATA_SYSTEMS if system not in kept)):
        for version, bad in ((f"demo-{stamp}", False), (f"demo-{stamp}-bad", True)):
            with tempfile.TemporaryDirectory() as folder:
                write_sample(system, Path(folder), bad=bad)
                land_objects(settings, store, system, Path(folder), version)
            landed.setdefault(system, []).append(version)
    lines = [f"landed {system} {version}" for system, versions in landed.items() for version in versions]
    lines += [f"left alone: {system} has data already, which a sample would replace" for system in kept]
    _out({"landed": landed, "left_alone": kept}, as_json, [*lines, "watch: `mlops history SYSTEM`"])


@app.command
def doctor(
    *,
    rotate_key: Annotated[bool, Parameter(negative="", help="Make a new signing key; the old public half stays.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine and the platform, line by line, with the fix for each."""
    from mlops_assets.doctor import run
    from mlops_assets.lifecycle.signing import rotate_key as rotate

    settings = load_settings()
    if rotate_key:
        _out({"key_id": (key_id := rotate(settings))}, as_json, [f"new signing key {key_id}"])
        return
    if run(settings, as_json=as_json):
        raise Stop(1, "something needs mending: see the lines marked fail", document_printed=True)


@app.command
def land(
    system: str,
    path: Path,
    *,
    dataset_version: str,
    parent: Annotated[str | None, Parameter(help="A version that this one extends.")] = None,
    as_json: Json = False,
) -> None:
    """Copy PATH (a file or folder) into the landing zone as a dataset version. The sensor does the rest."""
    from mlops_assets.ingest.objects import land as land_objects
    from mlops_assets.store import ObjectStore

    _known_system(system, data=True)
    if parent is not None:
        _named(parent)
    settings = load_settings()
    done = land_objects(settings, ObjectStore.of(settings), system, path, dataset_version, parent=parent)
    left = [f"in quarantine: {name}: {reason}" for name, reason in done.quarantined.items()]
    more = [f"and {len(left) - 20} more (--json lists them all)"] if len(left) > 20 else []
    _out(
        {
            "system": system,
            "dataset_version": dataset_version,
            "objects": done.objects,
            "bytes": done.bytes,
            "quarantined": dict(done.quarantined),
        },
        as_json,
        [
            *left[:20],
            *more,
            f"landed {done.objects} files ({done.bytes:,} bytes) as {system} {dataset_version}",
            f"watch: `mlops history {system}`",
        ],
    )


@app.command
def cut(system: str, *, as_json: Json = False) -> None:
    """Cut what users gave (comments whose label is new, drawings) into a dataset version that extends an earlier one, now. The sensor does
    the rest."""
    from mlops_assets.ingest import cuts, drawn
    from mlops_assets.lifecycle.pipeline import scratch_folder

    found, config, settings = _system(system)
    if config.cuts is None and config.drawings is None:
        file = settings.configs / f"{system}.yaml"
        raise Stop(2, f"{system} is not cut from what users give: {file} has neither a section `cuts` nor `drawings`")
    platform = _platform(settings)
    with scratch_folder(settings) as scratch:
        if config.drawings is not None:
            done = drawn.run(platform, found, config.drawings, scratch, asked=True)
        elif config.cuts is not None:
            done = cuts.run(platform.engine, platform.store, system, config.cuts, scratch, asked=True)
    lines = [f"landed {system} {version}" for version in done.landed] + [done.why if done.landed else f"nothing is cut: {done.why}"]
    _out({"system": system, "landed": done.landed, "why": done.why}, as_json, lines)


@app.command
def forget(system: str, *, user: str, as_json: Json = False) -> None:
    """Delete every drawing that a user (as the back-end names them) gave, everywhere, and name the models that were trained on them."""
    from mlops_assets import otp
    from mlops_assets.ingest import drawn

    _, config, settings = _system(system)
    if not user.strip():
        raise Stop(2, "--user is empty: give the user as the back-end names them")
    if config.drawings is None:
        raise Stop(2, f"{system} keeps nothing of users: {settings.configs / f'{system}.yaml'} has no section `drawings`")
    settings.require("otp_secret")
    platform = _platform(settings)
    writers = [otp.pseudonym(secret, user) for secret in settings.otp_secrets()]
    done = drawn.forget_writers(platform.engine, platform.store, system, writers, platform.settings.public_keys_path)
    models = [f"{model['variant'] or system} on {model['dataset_version']}, {_registered_as(model)}" for model in done.models]
    lines = [
        f"{done.drawings} drawings deleted" + (f", also from {', '.join(done.dataset_versions)}" if done.dataset_versions else ""),
        *(f"trained on them: {line}" for line in models),
        *(["What a model learned stays in it: retrain without them, with `mlops train`, and promote that."] if models else []),
    ]
    value = {"system": system, "drawings": done.drawings, "dataset_versions": done.dataset_versions, "models": done.models}
    _out(value, as_json, lines)


def _registered_as(model: Mapping[str, Any]) -> str:
    return model["state"] if model["version"] is None else f"v{model['version']} ({model['state']})"


@app.command
def train(
    system: str,
    *,
    dataset_version: str,
    model_type: str | None = None,
    optimizer_type: str | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    sampling_rate: float | None = None,
    unfrozen_layers: int | None = None,
    seed: int | None = None,
    params: Annotated[Path | None, Parameter(help="A params.yaml (parameters, variant, seed); options go over it.")] = None,
    as_json: Json = False,
    **parameters: str,
) -> None:
    """Train on a dataset version and judge the result: dataset to evaluation report and the gate. Registers nothing.

    Any other parameter of the system is an option too, such as --image-size 128.
    """
    from mlops_assets.jobs import run_job
    from mlops_assets.lifecycle.clients import Given, read_parameters
    from mlops_assets.lifecycle.pipeline import NoParent, check_seed, parameters_of, parent_of

    found, config, settings = _system(system)
    _named(dataset_version)
    read = read_parameters(params, system) if params else Given({})
    model_type = model_type or read.variant
    seed = read.seed if seed is None else seed
    if seed is not None:
        check_seed(seed)
    # A file of ours also holds what nobody chooses: a model's own name.
    recorded = {name for variant in found.variants for name in found.variant_parameters(config, variant, {})}
    from_file = {name: value for name, value in read.parameters.items() if name in found.parameter_names or name not in recorded}
    if epochs is not None:
        from_file.pop("min_steps", None)  # who asks for one epoch wants one epoch
    given = (
        _checked(found, from_file)
        | {
            name: value
            for name, value in {
                "model_type": model_type,
                "optimizer_type": optimizer_type,
                "epochs": epochs,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "max_length": max_length,
                "sampling_rate": sampling_rate,
                "unfrozen_layers": unfrozen_layers,
            }.items()
            if value is not None
        }
        | _typed(found, parameters)
    )
    variant = found.variant_of(str(given.get("model_type", config.project.model)))  # of several, each has assets of its own
    if variant:
        given.pop("model_type", None)
    parameters_of(found, config, variant, given)  # a bad name or value must not cost a run
    _known_version(settings, system, dataset_version)
    try:
        parent_of(_platform(settings), found, variant, dataset_version)
    except NoParent as error:
        raise Stop(1, f"nothing to train: {error}") from None
    op = "__".join(part for part in (system, variant, "trained_model") if part)
    run_config = {"ops": {op: {"config": {**given, **({"seed": seed} if seed is not None else {})}}}}
    layers = [(system, "dataset"), (system, "cleaned"), (system, variant, "trained_model"), (system, variant, "evaluation_report")]
    outcome = run_job(
        settings, f"{system}_train", config=run_config, partition=dataset_version, assets=[[p for p in key if p] for key in layers]
    )
    with _platform(settings).engine.connect() as connection:
        from mlops_assets.lifecycle.history import last_report

        report = last_report(connection, system, dataset_version, outcome.run_id, settings.public_keys_path)
    result = {
        "run_id": outcome.run_id,
        "dataset_version": dataset_version,
        "report": report,
        "refused": outcome.refused,
        "reason": outcome.reason,
    }
    if outcome.refused:
        _print_result(result, as_json)
        raise Stop(1, f"refused: {outcome.reason} / 최소값을 넘지 못해 모델 등록에 실패하였습니다.", document_printed=True)
    if not outcome.success:
        raise Stop(2, f"the run {outcome.run_id} failed: {outcome.reason or 'see the run in the Dagster UI'}")
    _print_result(result, as_json)
    if not as_json:
        print(f"passed: {outcome.reason or 'meets register_threshold'}; materialize registered_model to register it")


def _checked(system: ModelSystem, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters from a file, whose values have types already; null is what the configuration says."""
    from mlops_assets.lifecycle.pipeline import check_names

    check_names(system, given)
    for name, value in given.items():
        kind = system.parameter_names[name]
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if value is not None and (not fits or (isinstance(value, bool) and kind is not bool)):
            raise Stop(2, f"{name} is {value!r} in the file: give a value of type {kind.__name__}")
    return {name: value for name, value in given.items() if value is not None}


def _typed(system: ModelSystem, given: Mapping[str, str]) -> dict[str, Any]:
    """Options as the system's parameters, in their types."""
    from mlops_assets.lifecycle.pipeline import check_names

    texts = {name.replace("-", "_"): value for name, value in given.items()}
    check_names(system, texts)
    typed: dict[str, Any] = {}
    for name, value in texts.items():
        kind = system.parameter_names[name]
        try:
            typed[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise Stop(2, f"{name} is {value!r}: give {'true or false' if kind is bool else f'a value of type {kind.__name__}'}") from None
    return typed


@app.command
def sweep(
    system: str,
    *,
    dataset_version: str,
    trials: Annotated[int, Parameter(help="In all, those of an earlier run of the same sweep included.")] = 10,
    model_type: Annotated[list[str] | None, Parameter(negative="", help="One to choose from; may be repeated. Default: all.")] = None,
    learning_rate: Annotated[str, Parameter(help="LOW:HIGH. Default: a tenth to ten times the configured one.")] = "",
    metric: Annotated[str, Parameter(help="What is optimised on validation. Default: promotion.metric.")] = "",
    minutes: Annotated[float | None, Parameter(help="After so many minutes no further trial begins.")] = None,
    prune: Annotated[bool, Parameter(help="Give trials up that are worse than the median of those before.")] = True,
    seed: int | None = None,
    as_json: Json = False,
    **parameters: str,
) -> None:
    """Search model types and learning rates on a dataset version, compared on validation. Registers nothing; a killed sweep goes on.

    Any other parameter of the system is an option that holds for every trial, such as --epochs 2.
    """
    from mlops_assets.jobs import run_job
    from mlops_assets.lifecycle import ledger
    from mlops_assets.lifecycle import sweep as sweeping

    found, config, settings = _system(system)
    _named(dataset_version)
    low, high = _learning_rates(learning_rate)
    given: dict[str, Any] = {"trials": trials, "model_types": model_type or [], "minutes": minutes, "prune": prune, "seed": seed}
    overrides = _typed(found, parameters)
    chosen = _metric(system, metric)
    # Asked twice, here and in the run: a bad value must not cost a run.
    planned = sweeping.plan(
        found, config, dataset_version=dataset_version, metric=chosen, learning_rate=(low, high), overrides=overrides, **given
    )
    _known_version(settings, system, dataset_version)
    form = {**given, "metric": chosen, "learning_rate_low": low, "learning_rate_high": high, **overrides}
    run_config = {"ops": {f"{system}_sweep_op": {"config": {name: value for name, value in form.items() if value is not None}}}}
    outcome = run_job(settings, f"{system}_sweep", config=run_config, partition=dataset_version)
    if not outcome.success:
        raise Stop(2, f"the run {outcome.run_id} failed: {outcome.reason or 'see the run in the Dagster UI'}")
    with _platform(settings).engine.connect() as connection:
        done = ledger.get_value(connection, f"{system}/sweep", dataset_version, outcome.run_id, settings.public_keys_path)
    assert done is not None
    lines = [sweeping.sentence(row, planned) for row in done["trials"]]
    lines += [
        f"best: {sweeping.sentence(done['best'], planned)}",
        *([f"MLflow: {done['mlflow']}"] if done["mlflow"] else []),
        done["command"],
    ]
    _out({"run_id": outcome.run_id, "system": system, "dataset_version": dataset_version, **done}, as_json, lines)


def _learning_rates(given: str) -> tuple[float | None, float | None]:
    if not given:
        return None, None
    try:
        low, high = map(float, given.split(":"))
    except ValueError:
        raise Stop(2, f"learning rate {given!r}: give LOW:HIGH, such as 0.0001:0.01") from None
    return low, high


def _print_result(result: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
    elif result["report"]:
        _table([{"metric": name, "value": value} for name, value in result["report"]["metrics"].items()])


@app.command
def scenario(
    system: str,
    *,
    dataset_version: str = "",
    folder_path: Annotated[str, Parameter(help="The version's folder in the landing zone, such as tires/split_1.")] = "",
    model_type: str | None = None,
    as_json: Json = False,
) -> None:
    """Train the configured models (or --model-type) on a landed version with their defaults and register what passes: what CI starts.

    Without a version the newest one is taken. A run of the sensor over the same version is waited for, not repeated.
    """
    from mlops_assets.jobs import run_job
    from mlops_assets.lifecycle.history import outcomes, sentences
    from mlops_assets.lifecycle.jobs import MODEL_LAYERS, breakdowns_of, scenario_of

    found, config, settings = _system(system)
    variants = [found.variant_of(model_type)] if model_type else list(scenario_of(found, config))
    version = _version_asked(settings, system, dataset_version, folder_path)
    if not model_type:
        _wait_for_runs(settings, system, version)
    with _platform(settings).engine.connect() as connection:
        known = outcomes(connection, system, version)
    missing = variants if model_type else [variant for variant in variants if variant not in known]
    refusal: str | None = None
    if missing:
        keys = [(system, "dataset"), (system, "cleaned"), *((system, variant, layer) for variant in missing for layer in MODEL_LAYERS)]
        outcome = run_job(settings, f"{system}_models", partition=version, assets=[[part for part in key if part] for key in keys])
        if not outcome.success:
            if broken := breakdowns_of(outcome.run_id):
                raise Stop(2, f"the run {outcome.run_id} failed: {'; '.join(broken)}")
            refusal = outcome.reason or "see the run in the Dagster UI"
    with _platform(settings).engine.connect() as connection:
        judged = outcomes(connection, system, version)
    if refusal and not any(variant in judged for variant in missing):
        raise Stop(1, f"refused before any model was judged: {refusal}")
    # Nothing broke: a model that goes on from the champion and has no verdict found none to go on from.
    done = judged | {variant: "skipped" for variant in found.from_champion if variant not in judged}
    if unjudged := [variant or system for variant in variants if variant not in done]:
        raise Stop(2, f"no verdict on {version} of {', '.join(unjudged)}: see `mlops history {system}` and the runs in the Dagster UI")
    done = {variant: done[variant] for variant in variants}
    with _platform(settings).engine.connect() as connection:
        why = {variant: sentence for variant, sentence in sentences(connection, system, version).items() if variant in done}
    value = {"system": system, "dataset_version": version, "outcomes": done, "why": why}
    said = {variant: f"{outcome}: {why[variant]}" if variant in why else outcome for variant, outcome in done.items()}
    _out(value, as_json, [f"{variant or system} on {version}: {line}" for variant, line in said.items()])
    if all(outcome == "skipped" for outcome in done.values()):
        raise Stop(1, f"nothing to train: {system} has no champion whose data {version} extends", document_printed=True)
    if all(outcome in ("refused", "skipped") for outcome in done.values()):
        all_of_them = "; ".join(f"{variant or system}: {why[variant]}" for variant in done if variant in why)
        message = f"every model was refused: {all_of_them} / 최소값을 넘지 못해 모델 등록에 실패하였습니다."
        raise Stop(1, message, document_printed=True)


#: So long a landed version may wait for the sensor, which looks every ten seconds.
SENSOR_SECONDS = 60.0


def _version_asked(settings: Settings, system: str, version: str, folder_path: str) -> str:
    """The version that was named, or whose folder was; else the newest."""
    from sqlalchemy import text

    if folder_path:
        parent, _, name = folder_path.strip("/").rpartition("/")
        if parent.rpartition("/")[2] != system:
            raise Stop(2, f"folder path {folder_path[:200]!r} is not that of a version of {system}: give {system}/VERSION")
        version = name
    if not version:
        with _platform(settings).engine.connect() as connection:
            sql = "SELECT version FROM dataset_version WHERE system = :s AND state <> 'refused' ORDER BY first_seen_at DESC LIMIT 1"
            version = connection.execute(text(sql), {"s": system}).scalar() or ""
        if not version:
            raise Stop(2, f"{system} has no dataset version yet: land one with `mlops land {system} PATH --dataset-version V`")
    _named(version)
    _known_version(settings, system, version)
    return version


def _wait_for_runs(settings: Settings, system: str, version: str) -> None:
    """Until no run over the version is under way. Without a running platform there is none."""
    import time

    from mlops_assets.dagster_api import FINISHED, runs_over

    while settings.dagster_url and any(run["status"] not in FINISHED for run in runs_over(settings.dagster_url, system, version) or []):
        time.sleep(2)


def _named(version: str) -> None:
    """Raises LandingError unless `version` may name a dataset version: before any service is asked whether there is one."""
    from mlops_assets.ingest.objects import check_version_name

    check_version_name(version)


def _versions(settings: Settings, system: str) -> list[str]:
    """Every dataset version of the system, the newest first."""
    from sqlalchemy import text

    sql = text("SELECT version FROM dataset_version WHERE system = :s ORDER BY first_seen_at DESC")
    with _platform(settings).engine.connect() as connection:
        return list(connection.execute(sql, {"s": system}).scalars())


def _known_version(settings: Settings, system: str, version: str) -> None:
    """Raises Stop for a version that there is not. One that has just landed is waited for until the sensor has seen it."""
    import time

    from mlops_assets.ingest.objects import prefix_of

    known, deadline = _versions(settings, system), time.monotonic() + SENSOR_SECONDS
    while version not in known and time.monotonic() < deadline and any(_platform(settings).store.list(prefix_of(system, version))):
        time.sleep(1)
        known = _versions(settings, system)
    if version not in known:
        have = f"there are {', '.join(known[:10])}" if known else "there is none yet"
        raise Stop(
            2, f"{system} has no dataset version {version!r}: {have}. Land it with `mlops land {system} PATH --dataset-version {version}`"
        )


@app.command
def stage(system: str, *, metric: str = "", reason: str = "", as_json: Json = False) -> None:
    """Make the best registered version by METRIC (default: promotion.metric) the candidate that the staging server serves."""
    _ledger_job(system, "stage", {"metric": _metric(system, metric), "reason": reason}, as_json)


@app.command
def produce(
    system: str,
    *,
    reason: str,
    metric: str = "",
    version: Number = None,
    override: Annotated[
        bool, Parameter(negative="", help="Also what the gate would refuse today; signed and told with the reason.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Promote the best registered version by METRIC (default: promotion.metric), or --version N, to champion."""
    _given_reason(reason)
    _ledger_job(
        system, "produce", {"metric": _metric(system, metric), "version": version, "reason": reason, "override": override or None}, as_json
    )


@app.command
def rollback(system: str, *, reason: str, to: Number = None, as_json: Json = False) -> None:
    """Serve a former champion again: --to N, or the one before the current."""
    _given_reason(reason)
    _ledger_job(system, "rollback", {"to": to, "reason": reason}, as_json)


def _given_reason(reason: str) -> None:
    if not reason.strip():
        raise Stop(2, "--reason is empty: say why, it is recorded and signed")


def _metric(system: str, name: str) -> str:
    """The metric that was asked for, or `promotion.metric`, as the job's form names it."""
    from mlops_assets.lifecycle.report import label, metric_name

    found, config, _ = _system(system)
    return label(metric_name(name or config.promotion.metric, list(found.choices(config.promotion.metric))))


def _ledger_job(system: str, action: str, config: Mapping[str, Any], as_json: bool) -> None:
    from mlops_assets.jobs import run_job
    from mlops_assets.lifecycle import promotion

    _, _, settings = _system(system)
    given = {name: value for name, value in config.items() if value is not None}
    outcome = run_job(settings, f"{system}_{action}", config={"ops": {f"{system}_{action}_op": {"config": given}}})
    if not outcome.success:
        raise Stop(1 if outcome.refused else 2, outcome.reason or f"the run {outcome.run_id} failed: see it in the Dagster UI")
    channel: Literal["candidate", "champion"] = "candidate" if action == "stage" else "champion"
    with _platform(settings).engine.connect() as connection:
        done, _ = promotion.latest_verified(connection, system, channel, settings.public_keys_path)
    assert done is not None
    value = {
        "system": system,
        "channel": channel,
        "version": done.version,
        "dataset_version": done.dataset_version,
        "sequence": done.sequence,
        "reason": done.reason,
    }
    _out(value, as_json, [f"{channel} of {system} is v{done.version} ({done.dataset_version}), sequence {done.sequence}: {done.reason}"])


@app.command
def production_info(system: str | None = None, *, as_json: Json = False) -> None:
    """What is in production, since when, by whom and why."""
    from mlops_assets.lifecycle.history import absence, champion_at
    from mlops_assets.systems import SYSTEMS

    names = [system] if system else list(SYSTEMS)
    for name in names:
        _system(name)
    settings = load_settings()
    with _platform(settings).engine.connect() as connection:
        keys = settings.public_keys_path
        found = [champion_at(connection, name, keys) or {"system": name, "version": None} for name in names]
        absences = {name: absence(connection, name) for name in names}
        missing = {name: f"{one.why}. {one.fix}" for name, one in absences.items() if one is not None}
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for info in found:
        if info["version"] is None:
            print(f"{info['system']}: no champion yet" + (f": {why}" if (why := missing.get(info["system"])) else ""))
            continue
        figures = ", ".join(f"{name} {value:.4f}" for name, value in info["metrics"].items())
        print(
            f"{info['system']} v{info['version']} on {info['dataset_version']} since {info['since']} by {info['actor']}: {info['reason']}"
        )
        print(f"  {figures}")
        print(f"  {info['uri']}  bundle {info['bundle_sha256'][:16]}  commit {info['git_commit'][:12]}")


@app.command
def history(
    system: str,
    *,
    at: Annotated[datetime | None, Parameter(help="As it was known at this moment (ISO 8601; naive: UTC).")] = None,
    as_json: Json = False,
) -> None:
    """Dataset versions beside each other, then verdicts and promotions, newest first."""
    from mlops_assets.lifecycle.history import absence, champion_at, compare, events

    _known_system(system, data=True)
    moment = at.replace(tzinfo=UTC) if at and at.tzinfo is None else at
    settings = load_settings()
    with _platform(settings).engine.connect() as connection:
        keys = settings.public_keys_path
        versions, rows = compare(connection, system, keys, at=moment), events(connection, system, keys, at=moment)
        champion = champion_at(connection, system, keys, moment)
        missing = absence(connection, system) if champion is None and moment is None else None
    if as_json:
        print(json.dumps({"champion": champion, "versions": versions, "events": rows}, ensure_ascii=False))
        return
    none = f"champion: none: {missing.why}. {missing.fix}" if missing else "champion: none"
    print(f"champion: v{champion['version']} ({champion['dataset_version']})" if champion else none)
    if not versions and not rows:
        return
    figures = [{**row, "event": row["verdict"], "why": _figures(row)} for row in versions]
    told = [{**row, "why": f"{row['why']} ({row['actor']})"} for row in rows]
    zone = "UTC" + datetime.now().astimezone().isoformat()[-6:]
    for title, lines in ((f"dataset versions (times: {zone})", figures), ("decisions, newest first", told)):
        print(title)
        for line in _decisions(lines):
            print(line)


def _figures(row: Mapping[str, Any]) -> str:
    from mlops_assets.lifecycle.report import label

    return "  ".join(f"{label(name)} {value:.3f}" for name, value in row.items() if isinstance(value, float))


def _decisions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line each: when (in this machine's time), what, which model of which data, why; the width of a terminal cuts the why."""
    import shutil

    from rich.cells import cell_len, set_cell_size

    from mlops_assets.lifecycle.history import at_home, told_apart

    columns = shutil.get_terminal_size((0, 0)).columns  # 0: nobody's terminal, nothing is cut
    names = ["/".join(part for part in (row["dataset_version"], row.get("variant")) if part) for row in rows]
    shown = told_apart(names, max(24, columns // 3) if columns else 200)
    width = max((len(name) for name in shown.values()), default=0)
    lines = []
    for row, name in zip(rows, names, strict=True):
        at = at_home(row["at"]) if row["at"] else ""
        line = f"  {at:<16}  {row['event']:<10}  {row.get('model', ''):<4}  {shown[name]:<{width}}  {' '.join(row['why'].split())}".rstrip()
        lines.append(set_cell_size(line, columns - 1) + "…" if columns and cell_len(line) > columns else line)
    return lines


@app.command
def predict(system: str, *inputs: str, version: Number = None, as_json: Json = False) -> None:
    """Ask the running server: texts, or files where the system reads pictures."""
    import httpx

    files = _system(system)[0].asked_with == "files"
    if not inputs:
        example = "PHOTO.jpg" if files else "'다시 보고 싶은 영화'"
        raise Stop(2, f"nothing to predict: `mlops predict {system} {example}`")
    if files and (missing := [name for name in inputs if not os.path.isfile(name)]):
        raise Stop(2, f"{missing[0][:300]} is no file: {system} reads pictures, give their files")
    url = load_settings().require("serve_url")
    try:
        content: dict[str, Any] = {"json": {"inputs": list(inputs)}}
        if files:
            content = {"files": [("files", (Path(one).name, Path(one).read_bytes())) for one in inputs]}
        reply = httpx.post(
            f"{url}/predict/{system}", **content, params={"version": version} if version else None, timeout=30, trust_env=False
        )
        body = reply.json()
    except httpx.HTTPError as error:
        raise Stop(2, f"the server at {url} does not answer ({error}): `mlops doctor`") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Stop(2, f"{url} did not answer in JSON: MLOPS_SERVE_URL must be the model server's address") from None
    if reply.is_error:
        raise Stop(2, f"{body.get('message')} ({body.get('code')}). {body.get('fix', '')}")
    lines = [f"{p['label']}  {p['confidence']:.3f}  {p.get('text', p.get('file', ''))}" for p in body["predictions"]]
    _out(body, as_json, [*lines, f"request {body['request_id']}: `mlops trace {body['request_id']}`"])


@app.command
def trace(
    request_id: str,
    *,
    quick: Annotated[bool, Parameter(negative=(), help="Do not read the bytes: then nothing says that the links hold.")] = False,
    as_json: Json = False,
) -> None:
    """From an answer to the bytes that trained its model, each of them read. Exit code 1 when a link of the chain does not hold."""
    from mlops_assets.lifecycle.trace import trace as trace_answer

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", request_id):
        raise Stop(2, f"{request_id[:100]!r} is no request id: it stands in every answer, as `request_id` and in the header X-Request-ID")
    settings = load_settings()
    platform = _platform(settings)
    with platform.engine.connect() as connection:
        found = trace_answer(connection, platform.store, settings.public_keys_path, request_id, read_bytes=not quick)
    receipt, dataset = found["receipt"], found["dataset"]
    if found["problems"]:
        verdict = f"PROBLEM   {'; '.join(found['problems'])}"
    elif found["verified"]:
        verdict = f"verified  every link holds (files: {dataset['objects_checked']})"
    else:
        verdict = f"unknown   files: {dataset['objects_checked']}; `mlops trace {request_id}` reads them"
    lines = [
        f"request   {found['request_id']} answered {found['answered_at']}",
        f"model     {found['system']} v{found['version']}  bundle {found['bundle_sha256']}",
        f"receipt   {receipt['at']} by {receipt['actor']}: {receipt['reason']}",
        *[f"promotion #{p['sequence']} {p['kind']} {p['at']} by {p['actor']}: {p['reason']}" for p in found["promotions"]],
        f"data      {dataset['version']}  manifest {dataset['manifest_sha256']}",
        *[f"          {o['key']}  {o['size']:,} bytes  sha256 {o['sha256']}{_deleted(o)}" for o in dataset["objects"]],
        f"code      {found['git_commit']}  seed {receipt['seed']}",
        f"runs      Dagster {found['dagster_run_id']}  MLflow {found['mlflow_run_id']}",
        verdict,
    ]
    _out(found, as_json, lines)
    if found["problems"]:
        raise Stop(1, "; ".join(found["problems"]), document_printed=True)


def _deleted(file: Mapping[str, Any]) -> str:
    return f"  deleted on request {file['deleted_on_request']}" if "deleted_on_request" in file else ""


@app.command
def retention(
    system: str | None = None,
    *,
    dry_run: Annotated[bool, Parameter(negative="", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Delete the bytes of old models that no alias, rollback depth or hold reaches. Receipts stay."""
    from mlops_assets.lifecycle import retention as rules
    from mlops_assets.lifecycle.actor import of_command
    from mlops_assets.systems import SYSTEMS

    names = [system] if system else SYSTEMS
    for name in names:
        _known_system(name)
    settings = load_settings()
    platform = _platform(settings)
    plans = {}
    for name in names:
        plans[name] = rules.apply(
            platform.engine,
            platform.store,
            name,
            settings.public_keys_path,
            rollback_depth=settings.rollback_depth,
            actor=of_command(),
            dry_run=dry_run,
        )
    value = {
        name: {"keep": [vars(k) for k in plan.keep], "delete": [{"bundle_sha256": d, "version": v, "bytes": b} for d, v, b in plan.delete]}
        for name, plan in plans.items()
    }
    lines = [f"{name}: keeps {k.bundle_sha256[:12]} (v{k.version}): {k.why}" for name, plan in plans.items() for k in plan.keep]
    verb = "would delete" if dry_run else "deleted"
    lines += [f"{name}: {verb} {d[:12]} (v{v}), {b:,} bytes" for name, plan in plans.items() for d, v, b in plan.delete]
    _out(value, as_json, lines)


@app.command
def serve(*, channel: Literal["champion", "candidate"] = "champion") -> None:
    """Run the model server (candidate: the staging server)."""
    from mlops_assets.serving.app import serve as run

    run(load_settings(), channel)


@app.command
def web(page: Literal["dagster", "dashboard", "tensorboard"]) -> None:
    """Run one of the pages that `mlops up` starts, behind its guard (see MLOPS_ALLOWED_HOSTS) and on its port."""
    from importlib import import_module

    from mlops_assets.supervise import listen

    settings = load_settings()
    modules = {"dagster": "resources.webserver", "dashboard": "dashboard.server", "tensorboard": "board"}
    listener = listen(settings.host, getattr(settings, f"{page}_port"), f"MLOPS_{page.upper()}_PORT")
    import_module(f"mlops_assets.{modules[page]}").run(settings, listener)


@ingest.command
def comments(
    system: str = "hate_speech",
    *,
    once: Annotated[bool, Parameter(negative="", help="One tick, as the sensor does it (the default).")] = False,
    reconcile: Annotated[bool, Parameter(negative="", help="Compare every comment with the source, as the night does.")] = False,
    accept_deletions: Annotated[bool, Parameter(negative="", help="With --reconcile: however much is gone, it was deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Read the application's comments into the platform: what is new, edited or deleted since the last time."""
    from mlops_assets import database
    from mlops_assets.ingest import comments as reader
    from mlops_assets.ingest.comment_source import section_of

    if once and reconcile or accept_deletions and not reconcile:
        raise Stop(2, "--once and --reconcile exclude each other, and --accept-deletions belongs to --reconcile")
    _known_system(system)
    settings = load_settings()
    section = section_of(settings, system)
    engine = database.connect(settings.require("database_url"), pool_size=0)
    try:
        if reconcile:
            done = reader.reconcile(engine, settings, section, accept_deletions=accept_deletions)
        else:
            done = reader.tick(engine, settings, section)
    finally:
        engine.dispose()
    _out(done.as_json(), as_json, [done.sentence(), *done.problems])


@data.command
def pull(
    name: str, target: Annotated[Path | None, Parameter(help="Where to; default: <home>/data/NAME.")] = None, *, as_json: Json = False
) -> None:
    """Fetch a data set from its official source, with checksum, licence and attribution."""
    from mlops_assets.ingest.official import pull as pull_official

    done = pull_official(load_settings(), name, target)
    _out(
        {"name": name, "folder": str(done.folder), "files": done.files, "licence": done.licence, "attribution": done.attribution},
        as_json,
        [f"{name} is in {done.folder}", f"licence: {done.licence}", f"attribution: {done.attribution}"],
    )


if __name__ == "__main__":
    main()
