"""The model half of a run, without Dagster: train one attempt, evaluate its exported bundle beside the champion.

Used by the assets, `mlops train` and `ModelTrainer` alike. Belongs here: the order of the steps and what each leaves behind.
Does not belong here: deciding (`gate.py`), registering (`registrar.py`), how a model is trained (the systems).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets import names, sources
from mlops_assets.lifecycle import bundle, ledger, outbox, promotion
from mlops_assets.lifecycle.dataset import DatasetError
from mlops_assets.lifecycle.report import BaselineScore, ChampionScore, Earlier, Report, directions_of, label
from mlops_assets.lifecycle.signing import load_signer
from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.settings import Settings, SettingsError, SystemConfig, canonical, git_commit
from mlops_assets.tracking import TrackedRun, Tracking

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets.store import ObjectStore

logger = logging.getLogger(__name__)

#: How long the checkpoints of a killed training wait for somebody to resume it: of a KcBERT they are gigabytes.
ABANDONED_DAYS = 30


@dataclass(frozen=True)
class Platform:
    """What the steps act on."""

    settings: Settings
    engine: Engine
    store: ObjectStore
    tracking: Tracking


def connect(settings: Settings) -> Platform:
    """Raises SettingsError when nothing runs."""
    from mlops_assets import database
    from mlops_assets.store import ObjectStore

    return Platform(
        settings,
        database.connect(settings.require("database_url"), pool_size=0),
        ObjectStore.of(settings),
        Tracking(settings.mlflow_tracking_uri),
    )


@dataclass(frozen=True)
class Attempted:
    """An attempt just recorded, with what people want to see of it."""

    attempt: ledger.Attempt
    trained: Trained
    table: CleanedTable
    run: TrackedRun


@dataclass(frozen=True)
class Evaluated:
    report_id: int
    report: Report
    evaluation: Evaluation


class UnknownParameter(ValueError):
    """A training parameter that the system does not have. The message lists the choices."""


class NoParent(LookupError):
    """There is no champion that this training could go on from: nothing is wrong, and nothing is trained. The message says why."""


@dataclass(frozen=True)
class Parent:
    """A champion whose fp32 weights, as its receipt lists them, a training goes on from."""

    version: int
    dataset_version: str
    bundle_sha256: str
    weights: bundle.Files


def code_version(system: ModelSystem, variant: str) -> str:
    """Changes when, and only when, the text of what trains, exports or measures the variant does."""
    return sources.code_version(system.train.__module__, *system.loaded_by_name(variant))


def check_names(system: ModelSystem, overrides: Iterable[str]) -> None:
    """Raises UnknownParameter."""
    unknown = sorted(set(overrides) - set(system.parameter_names))
    if unknown:
        raise UnknownParameter(
            f"{system.name} has no parameter {', '.join(unknown)}: choose from {', '.join(sorted(system.parameter_names))}"
        )


def parameters_of(system: ModelSystem, config: SystemConfig, variant: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's parameters over those of the sections of the configuration that they choose.

    Raises:
        UnknownParameter: an override that `system.parameter_names` does not list.
        SettingsError: a model or a data set that the configuration does not have, or a value that its section does not take.
    """
    check_names(system, overrides)
    given = {name: value for name, value in overrides.items() if value is not None}
    return dict(system.variant_parameters(config, variant, given))


def check_seed(seed: int) -> int:
    """Raises SettingsError unless every generator of random numbers takes it."""
    if not 0 <= seed < 2**32:
        raise SettingsError(f"seed is {seed}: give 0 to {2**32 - 1}")
    return seed


def context_of(
    settings: Settings,
    system: ModelSystem,
    config: SystemConfig,
    *,
    variant: str,
    table: CleanedTable,
    parameters: Mapping[str, Any],
    seed: int,
    parent: Parent | None = None,
) -> TrainContext:
    """One training as its system takes it, with the fingerprint and the folder that are its own. It logs to nobody yet."""
    identity: dict[str, Any] = {
        "system": system.name,
        "variant": variant,
        "manifest": table.manifest_sha256,
        "table": table.sha256,  # the manifest stays the same when it is cleaned again to other rows
        "parameters": dict(parameters),
        "seed": seed,
        "code": code_version(system, variant),
        **({"parent": parent.bundle_sha256} if parent else {}),
        **({"forgotten": table.forgotten} if table.forgotten else {}),  # no checkpoint from before a deletion is resumed
    }
    fingerprint = hashlib.sha256(canonical(identity).encode()).hexdigest()
    workdir = workdir_of(settings, fingerprint)
    workdir.mkdir(parents=True, exist_ok=True)
    return TrainContext(
        system=system.name,
        variant=variant,
        table=table,
        config=config,
        parameters=parameters,
        seed=seed,
        fingerprint=fingerprint,
        workdir=workdir,
        log_dir=settings.home
        / "tensorboard"
        / system.name
        / table.dataset_version
        / "-".join(part for part in (variant, fingerprint[:8]) if part),
        log_metrics=lambda metrics, step: None,
        threads=settings.threads,
    )


def workdir_of(settings: Settings, fingerprint: str) -> Path:
    """Raises BadName: a fingerprint may come from a study's rows."""
    names.digest(fingerprint)
    return settings.home / "training" / fingerprint[:16]


def _remove_abandoned(current: Path, say: Callable[[str], None]) -> None:
    """What killed trainings left (checkpoints, weights, pictures) and none resumed. Called while this is the only training here."""
    oldest = time.time() - ABANDONED_DAYS * 24 * 3600
    for folder in current.parent.iterdir():
        with suppress(OSError):  # a sweep cleans up too; what cannot be removed fails no training
            touched = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
            if folder != current and touched < oldest:
                shutil.rmtree(folder)
                say(f"removed {folder}: nothing was written there for {ABANDONED_DAYS} days")


def parent_of(platform: Platform, system: ModelSystem, variant: str, dataset_version: str) -> Parent | None:
    """The newest champion of a network, from which a training of `variant` goes on; None for a variant that begins anew.

    The baseline has no weights to go on from: while it serves, the network that it displaced is the parent.

    Raises:
        NoParent: there was no such champion, or its data is not part of `dataset_version`.
    """
    from sqlalchemy import text

    if variant not in system.from_champion:
        return None
    with platform.engine.connect() as connection:
        champions = promotion.verified(connection, system.name, platform.settings.public_keys_path, "champion")
        networks = (found for found in champions if system.baseline is None or found.receipt.variant != system.baseline)
        champion = next(networks, None)
        if champion is None:
            only = " but of the baseline, which has no weights of a network" if system.baseline is not None else ""
            raise NoParent(f"{system.name} has no champion yet{only}: {variant} has nothing to go on from")
        ancestors = connection.execute(
            text(
                "WITH RECURSIVE line AS (SELECT version, parent FROM dataset_version WHERE system = :s AND version = :v UNION "
                "SELECT d.version, d.parent FROM dataset_version d JOIN line ON d.version = line.parent WHERE d.system = :s) "
                "SELECT version FROM line"
            ),
            {"s": system.name, "v": dataset_version},
        ).scalars()
        if champion.dataset_version not in set(ancestors):
            raise NoParent(
                f"{dataset_version} does not extend {champion.dataset_version}, on which the champion v{champion.version} was trained: "
                f"{variant} has nothing to go on from"
            )
    if not champion.receipt.weights:
        raise NoParent(
            f"the receipt of the champion v{champion.version} names no weights (older than schema 0016): train {dataset_version} from the "
            f"beginning first; {variant} goes on from that"
        )
    return Parent(champion.version, champion.dataset_version, champion.bundle_sha256, champion.receipt.weights)


def train(
    platform: Platform,
    system: ModelSystem,
    config: SystemConfig,
    *,
    variant: str,
    dataset_version: str,
    run_id: str,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    say: Callable[[str], None] = logger.info,
) -> Attempted:
    """Train, export, publish and record one attempt.

    A killed training leaves its checkpoints under the fingerprint; the same call again resumes from them. The bundle and the fp32 weights
    are in the store before the attempt's row is written, so that a row never names bytes that are not there.

    Raises:
        NoParent: the variant goes on from the champion, and there is none to go on from.
        KeyProblem: the attempt could not be signed. Before anything is trained.
    """
    settings = platform.settings
    signer = load_signer(settings)
    parent = parent_of(platform, system, variant, dataset_version)
    parameters = parameters_of(system, config, variant, overrides or {})
    seed = check_seed(config.project.seed if seed is None else seed)
    with one_training_at_a_time(settings, say), scratch_folder(settings) as scratch:
        table = system.open_table(platform.store, platform.engine, dataset_version, scratch / "table")
        code = code_version(system, variant)  # of now: somebody may edit the files while this trains
        context = context_of(settings, system, config, variant=variant, table=table, parameters=parameters, seed=seed, parent=parent)
        if parent is not None:
            say(f"going on from the champion v{parent.version} ({parent.dataset_version})")
            weights = bundle.fetch_weights(platform.store, parent.bundle_sha256, parent.weights, scratch / "parent")
            context = replace(context, parent=weights)
        fingerprint, workdir = context.fingerprint, context.workdir
        _remove_abandoned(workdir, say)
        run = platform.tracking.start(
            system.name,
            "/".join(part for part in (dataset_version, variant, fingerprint[:8]) if part),
            dagster_run_id=run_id,
            tags={"variant": variant, "dataset_version": dataset_version, "fingerprint": fingerprint, "git_commit": git_commit()},
        )
        run.log_params({**parameters, "seed": seed, "dataset_version": dataset_version, "manifest_sha256": table.manifest_sha256})
        context = replace(context, log_metrics=run.log_metrics, say=say)
        began = time.monotonic()
        try:
            trained = system.train(context)
            folder = scratch / "bundle"
            folder.mkdir()
            system.export(trained, context, folder)
        except BaseException:
            run.finish("FAILED")
            raise
        digest, files = bundle.publish(platform.store, folder)
        weights_files = bundle.publish_weights(platform.store, digest, trained.folder)
        run.log_metrics({f"train/{name}": value for name, value in trained.metrics.items()}, 0)
        run.log_bytes(
            "bundle/bundle-digest.json", canonical({"bundle_sha256": digest, "files": {n: list(f) for n, f in files.items()}}).encode()
        )
        attempt = ledger.Attempt(
            system=system.name,
            variant=variant,
            dataset_version=dataset_version,
            manifest_sha256=table.manifest_sha256,
            config=dict(parameters),
            config_sha256=hashlib.sha256(canonical(dict(parameters)).encode()).hexdigest(),
            code_version=code,
            git_commit=git_commit(),
            seed=seed,
            fingerprint=fingerprint,
            parent_bundle_sha256=parent.bundle_sha256 if parent else None,
            bundle_sha256=digest,
            bundle_files=files,
            metrics=dict(trained.metrics),
            mlflow_run_id=run.run_id,
            dagster_run_id=run_id,
            table_sha256=table.sha256,
            weights_files=weights_files,
        )
        minutes = (time.monotonic() - began) / 60
        with platform.engine.begin() as connection:
            attempt_id, new = ledger.record_attempt(connection, attempt, signer, settings.public_keys_path)
            attempt = ledger.attempt(connection, attempt_id, settings.public_keys_path)
            if new:
                outbox.tell(connection, _trained(attempt, trained, minutes, config), "모델 학습이 완료되었습니다.")
        shutil.rmtree(workdir, ignore_errors=True)
        run.finish()
    say(f"attempt {attempt.id}: bundle {digest[:12]}")
    return Attempted(attempt, trained, table, run)


def _trained(attempt: ledger.Attempt, trained: Trained, minutes: float, config: SystemConfig) -> str:
    """What people are told of an attempt: the figures that will decide about it, as validation had them, or else what validation had."""
    deciding = [f"validation_{metric.lower()}" for metric in dict.fromkeys((config.promotion.metric, *config.register_threshold))]
    named = [name for name in deciding if name in trained.metrics] or [name for name in trained.metrics if name.startswith("validation_")]
    figures = [f"{label(name.removeprefix('validation_'))} {trained.metrics[name]:.3f}" for name in named]
    from_step = trained.resumed_from_step
    how = f"{minutes:.1f} min" + (f", resumed from step {from_step}" if from_step is not None else ", not resumed")
    return f"trained: {attempt.title}: {', '.join(figures) or 'no figure'} on validation ({how})"


def evaluate(platform: Platform, system: ModelSystem, attempt_id: int, *, run_id: str) -> Evaluated:
    """Run the attempt's exported bundle, fetched from the store and verified, over the holdout; the champion over the same rows; and both
    over the champion's own holdout, which the split ledger kept from the challenger's training too.

    Raises:
        KeyProblem: the report could not be signed. Before anything is measured.
    """
    settings = platform.settings
    signer = load_signer(settings)
    with platform.engine.connect() as connection:
        attempt = ledger.attempt(connection, attempt_id, settings.public_keys_path)
        champion, _ = promotion.latest_verified(connection, system.name, "champion", settings.public_keys_path)
    with scratch_folder(settings) as scratch:
        table = system.open_table(platform.store, platform.engine, attempt.dataset_version, scratch / "table")
        folder = bundle.fetch(platform.store, attempt.bundle_sha256, attempt.bundle_files, scratch / "bundles")
        evaluation = system.evaluate(folder, table, settings.threads)
        compared = None
        if champion is not None and champion.bundle_sha256 != attempt.bundle_sha256:
            theirs_folder = bundle.fetch(platform.store, champion.bundle_sha256, champion.files, scratch / "bundles")
            theirs = system.evaluate(theirs_folder, table, settings.threads)
            earlier = _earlier(platform, system, champion, (folder, theirs_folder), (evaluation, theirs), scratch / "earlier")
            compared = _compare(champion, theirs, evaluation, earlier)
        baseline = _baseline(platform, system, attempt, table, scratch / "bundles")
    second = compared.earlier if compared else None
    measured = {**evaluation.metrics, **(second.metrics if second else {}), **(second.champion if second else {})}
    report = Report(
        system=system.name,
        variant=attempt.variant,
        dataset_version=attempt.dataset_version,
        attempt_id=attempt.id,
        bundle_sha256=attempt.bundle_sha256,
        manifest_sha256=table.manifest_sha256,
        holdout_sha256=evaluation.holdout_sha256,
        rows=evaluation.rows,
        metrics=dict(evaluation.metrics),
        created_at=datetime.now(UTC),
        champion=compared,
        slices=dict(evaluation.slices),
        tables=dict(evaluation.tables),
        directions=directions_of(system.directions, measured),
        support=dict(evaluation.support),
        trivial=dict(evaluation.trivial),
        baseline=baseline,
    )
    with platform.engine.begin() as connection:
        report_id = ledger.record_report(connection, report, run_id, signer)
    _mirror_report(platform, attempt, evaluation)
    return Evaluated(report_id, report, evaluation)


def _baseline(platform: Platform, system: ModelSystem, attempt: ledger.Attempt, table: CleanedTable, folder: Path) -> BaselineScore | None:
    """The newest baseline of the attempt's own data, on the same holdout; None where the system has none, or this is it."""
    if system.baseline is None or attempt.variant == system.baseline:
        return None
    with platform.engine.connect() as connection:
        attempts = ledger.attempts(connection, system.name, platform.settings.public_keys_path)
        same = (found for found in attempts if (found.variant, found.manifest_sha256) == (system.baseline, attempt.manifest_sha256))
        found = next(same, None)
    train = f"`mlops train {system.name} --dataset-version {attempt.dataset_version} --model-type {system.baseline}`, then evaluate again"
    if found is None:
        return BaselineScore(system.baseline, missing=f"it was not trained on {attempt.dataset_version}: {train}")
    try:
        theirs = system.evaluate(
            bundle.fetch(platform.store, found.bundle_sha256, found.bundle_files, folder), table, platform.settings.threads
        )
    except bundle.BadBundle as error:  # retention deleted its bytes, or somebody changed them
        return BaselineScore(system.baseline, found.id, found.bundle_sha256, missing=f"{error}: {train}")
    return BaselineScore(system.baseline, found.id, found.bundle_sha256, dict(theirs.metrics))


def _earlier(
    platform: Platform,
    system: ModelSystem,
    champion: promotion.Promotion,
    folders: tuple[Path, Path],
    first: tuple[Evaluation, Evaluation],
    scratch: Path,
) -> Earlier:
    """Challenger and champion, in this order in `folders` and `first` exam, on the holdout of the champion's own data.

    What is known is not measured again: both where the first exam was the same, the champion where its receipt has its figures on these
    very rows. Files that were forgotten on request are in no table, so nobody is measured on them.
    """
    version, receipt = champion.dataset_version, champion.receipt
    if first[0].holdout_sha256 == receipt.body["holdout_sha256"]:
        return Earlier(version, first[0].holdout_sha256, first[0].rows, dict(first[0].metrics), dict(first[1].metrics))
    try:
        table = system.open_table(platform.store, platform.engine, version, scratch)
        if table.manifest_sha256 != receipt.body["manifest_sha256"]:
            return Earlier(version, missing=f"{version} is not what the champion v{champion.version} was trained on")
        ours = system.evaluate(folders[0], table, platform.settings.threads)
        known = receipt.metrics if ours.holdout_sha256 == receipt.body["holdout_sha256"] else {}
        theirs = known if set(known) >= set(ours.metrics) else system.evaluate(folders[1], table, platform.settings.threads).metrics
    except (DatasetError, FileNotFoundError, ValueError) as error:  # its rows are gone: deleted, forgotten, or none are held out
        return Earlier(version, missing=str(error))
    return Earlier(version, ours.holdout_sha256, ours.rows, dict(ours.metrics), dict(theirs))


def _compare(champion: promotion.Promotion, theirs: Evaluation, ours: Evaluation, earlier: Earlier) -> ChampionScore:
    from mlops_assets.training.metrics import mcnemar

    if theirs.holdout_sha256 != ours.holdout_sha256:
        raise ledger.LedgerError("champion and challenger were not measured on the same rows: the evaluation is not reproducible")
    return ChampionScore(
        champion.version,
        champion.bundle_sha256,
        champion.dataset_version,
        dict(theirs.metrics),
        p_value=mcnemar(ours.correct, theirs.correct).p_better,
        earlier=earlier,
    )


def _mirror_report(platform: Platform, attempt: ledger.Attempt, evaluation: Evaluation) -> None:
    if attempt.mlflow_run_id is None or platform.tracking.uri is None:
        return
    run = TrackedRun(platform.tracking.client, attempt.mlflow_run_id)
    run.log_metrics({f"holdout/{name}": value for name, value in evaluation.metrics.items()}, 0)
    run.flush()
    for picture in evaluation.pictures:
        run.log_bytes(f"evaluation/{_slug(picture)}.png", picture.png)


def _slug(picture: Picture) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in picture.title.lower()).strip("-") or "picture"


def save_pictures(store: ObjectStore, digest: str, pictures: Sequence[Picture]) -> dict[str, str]:
    """Title -> address in the store."""
    links = {}
    for picture in pictures:
        key = f"reports/{digest}/{_slug(picture)}.png"
        store.put(key, picture.png)
        links[picture.title] = store.uri(key)
    return links


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[Path]:
    """A folder under the home (not /tmp, which may be small), gone afterwards; after a kill, when the next one is made."""
    parent = settings.home / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob("*.lock"):
        _remove_if_dead(left)
    folder = parent / uuid.uuid4().hex
    with folder.with_suffix(".lock").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)  # dies with the process
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)


def _remove_if_dead(lock: Path) -> None:
    with suppress(FileNotFoundError, BlockingIOError), lock.open("r+") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)


@contextmanager
def one_training_at_a_time(settings: Settings, say: Callable[[str], None]) -> Iterator[None]:
    """Two trainings on the same cores take longer than one after the other. Dagster's pool queues its runs; this holds for callers
    outside its queue too. The lock dies with the process."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "training.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another training runs on this machine: waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
