"""The model half of every system as Dagster assets: trained_model -> evaluation_report -> registered_model -> champion.

`model_lifecycle(system)` is one policy and never differs by system. Belongs here: the shells around `pipeline.py` and `registrar.py`,
and what people see in the asset's metadata. Does not belong here: any decision.
"""

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, create_model

from mlops_assets.dagster_api import OUTCOME, WHY
from mlops_assets.lifecycle import sections
from mlops_assets.lifecycle.actor import of_run
from mlops_assets.lifecycle.sections import SECTIONS, C
from mlops_assets.lifecycle.system import ModelSystem, Picture
from mlops_assets.settings import SystemConfig, git_commit

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.lifecycle.promotion import Promotion
    from mlops_assets.lifecycle.registrar import Registrar, Registration
    from mlops_assets.lifecycle.report import Earlier, Report
    from mlops_assets.lifecycle.sweep import Swept

#: Pictures of one event together; more goes into the store and is linked.
EVENT_PICTURE_BYTES = 48 * 1024
TRAINING_POOL = "training"
#: What a run says of several models: a refusal, which made it red; else that one was promoted.
TOLD_FIRST = ("refused", "promoted", "registered")
#: A tag of a run is no place for more.
WHY_LENGTH = 300
#: In the metadata of a step's failure: it is a refusal. The run's tag alone does not tell which of several steps was refused.
REFUSAL = "mlops/refusal"


@dataclass(frozen=True)
class Lifecycle:
    """What `model_lifecycle` made of a system."""

    assets: Sequence[dg.AssetsDefinition | dg.AssetSpec]
    checks: Sequence[dg.AssetChecksDefinition]
    keys: Sequence[dg.AssetKey]


def dataset_versions(system: str) -> dg.DynamicPartitionsDefinition:
    return dg.DynamicPartitionsDefinition(name=f"{system}_dataset_version")


def key_of(system: str, variant: str, layer: str) -> dg.AssetKey:
    return dg.AssetKey([part for part in (system, variant, layer) if part])


def model_lifecycle(
    system: ModelSystem, config: SystemConfig, open_platform: Callable[[], "Platform"], *, owners: Sequence[str] = ()
) -> Lifecycle:
    """The assets and checks of one system's model half.

    Args:
        open_platform: connects when a run needs it; loading the definitions connects to nothing.
    """
    assets: list[dg.AssetsDefinition] = []
    checks: list[dg.AssetChecksDefinition] = []
    for variant in system.variants:
        half = _Half(system, variant, config, open_platform, tuple(owners))
        assets += [half.trained_model(), half.evaluation_report(), half.registered_model()]
        checks.append(half.register_threshold())
    assets.append(_champion(system, config, open_platform, tuple(owners)))
    keys = [key for asset in assets for key in asset.keys]
    return Lifecycle([*assets, _sweep(system, owners)], checks, keys)


@dataclass(frozen=True)
class _Half:
    """One variant's assets; the fields are what they share."""

    system: ModelSystem
    variant: str
    config: SystemConfig
    open_platform: Callable[[], "Platform"]
    owners: tuple[str, ...]

    def key(self, layer: str) -> dg.AssetKey:
        return key_of(self.system.name, self.variant, layer)

    @property
    def tags(self) -> dict[str, str]:
        """The baseline's steps go first: it is promoted and served while the others still train."""
        return {"dagster/priority": "1" if self.variant == self.system.baseline else "0"}

    @property
    def named(self) -> str:
        """What a run's tags call the model; of a system's only one they say nothing."""
        return (self.variant or self.system.name) if len(self.system.variants) > 1 else ""

    def trained_model(self) -> dg.AssetsDefinition:
        from mlops_assets.lifecycle.pipeline import code_version

        def trained_model(context: dg.AssetExecutionContext, config: dg.Config) -> Iterator[dg.MaterializeResult[None]]:
            from mlops_assets.lifecycle import pipeline

            given, platform = config.model_dump(), self.open_platform()
            try:
                done = pipeline.train(
                    platform,
                    self.system,
                    sections_of(context, platform.engine, self.config),
                    variant=self.variant,
                    dataset_version=context.partition_key,
                    run_id=context.run.run_id,
                    overrides={name: value for name, value in given.items() if name != "seed"},
                    seed=given["seed"],
                    say=context.log.info,
                )
            except pipeline.NoParent as error:
                # Left unmaterialized, and what stands on it is skipped in a green run; the asset's page says why.
                context.log.warning(f"skipped: {error}")
                skipped = {"skipped": str(error), "건너뜀": "이어서 학습할 운영 모델이 없습니다."}
                context.log_event(dg.AssetObservation(self.key("trained_model"), partition=context.partition_key, metadata=skipped))
                return
            attempt = done.attempt
            self.put_value(context, "trained_model", {"attempt_id": attempt.id})
            metadata: dict[str, Any] = {
                "attempt": attempt.id,
                "dataset_version": attempt.dataset_version,
                "manifest_sha256": attempt.manifest_sha256,
                "bundle_sha256": attempt.bundle_sha256,
                "git_commit": git_commit(),
                "seed": attempt.seed,
                "dagster/row_count": done.table.rows,
                "parameters": dg.MetadataValue.json(dict(attempt.config)),
                **_metrics(attempt.metrics),
                **_pictures(done.trained.pictures),
            }
            if done.run.link:
                metadata["mlflow_run"] = dg.MetadataValue.url(done.run.link)
            if done.trained.resumed_from_step is not None:
                metadata["resumed_from_step"] = done.trained.resumed_from_step
            yield dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(attempt.bundle_sha256))

        # The launchpad's form differs by system, so its type is known only here.
        trained_model.__annotations__["config"] = training_config(self.system)
        decorate = dg.asset(
            key=self.key("trained_model"),
            group_name=self.system.name,
            partitions_def=dataset_versions(self.system.name),
            owners=list(self.owners) or None,
            op_tags=self.tags,
            deps=[key_of(self.system.name, "", "cleaned")],
            description="One attempt: a model trained on the version, exported as the bundle that would be served.",
            kinds={"torch", "onnx", "mlflow"},
            code_version=code_version(self.system, self.variant),
            pool=TRAINING_POOL,
            output_required=self.variant not in self.system.from_champion,
        )
        return decorate(trained_model)

    def evaluation_report(self) -> dg.AssetsDefinition:
        @dg.asset(
            key=self.key("evaluation_report"),
            group_name=self.system.name,
            partitions_def=dataset_versions(self.system.name),
            owners=list(self.owners) or None,
            op_tags=self.tags,
            deps=[self.key("trained_model")],
            description="The exported bundle measured on the holdout through the server's own predictor, beside the champion.",
            kinds={"onnx", "postgres"},
            code_version="1",
        )
        def evaluation_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            from mlops_assets.lifecycle import pipeline

            platform = self.open_platform()
            attempt_id = self.value(context, "trained_model")["attempt_id"]
            done = pipeline.evaluate(platform, self.system, attempt_id, run_id=context.run.run_id)
            self.put_value(context, "evaluation_report", {"attempt_id": attempt_id, "report_id": done.report_id})
            report = done.report
            links = pipeline.save_pictures(platform.store, report.sha256, done.evaluation.pictures)
            # What people look for first stands first: figures, pictures, the champion; digests last.
            metadata: dict[str, Any] = {
                "dataset_version": report.dataset_version,
                **_metrics(report.metrics),
                **_yardsticks(report),
                **_comparison(report),
                **_pictures(done.evaluation.pictures),
                "slices": _table([{"slice": name, **values, "rows": int(values["rows"])} for name, values in report.slices.items()]),
                **{title: _table(rows) for title, rows in report.tables.items() if rows},
                "picture_files": dg.MetadataValue.json(links),
                "dagster/row_count": report.rows,
                "attempt": attempt_id,
                "report": done.report_id,
                "manifest_sha256": report.manifest_sha256,
                "bundle_sha256": report.bundle_sha256,
                "holdout_sha256": report.holdout_sha256,
                "git_commit": git_commit(),
            }
            return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(report.sha256))

        return evaluation_report

    def register_threshold(self) -> dg.AssetChecksDefinition:
        from mlops_assets.lifecycle.checks import partitioned_check

        @partitioned_check(
            asset=self.key("evaluation_report"),
            name="register_threshold",
            partitions_def=dataset_versions(self.system.name),
            op_tags=self.tags,
            description="The gate as people see it; only a refused model fails it. The registrar decides again by itself.",
        )
        def register_threshold(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
            value = self.value(context, "evaluation_report")
            registrar = self.registrar(context)
            verdict = registrar.judge(value["attempt_id"], value["report_id"])
            refused = verdict.outcome == "refused"
            if refused:
                mark(context, "refused", verdict.sentence, self.named)
            return dg.AssetCheckResult(
                passed=not refused,
                severity=dg.AssetCheckSeverity.ERROR,
                description=verdict.sentence,
                metadata={
                    "verdict": verdict.outcome,
                    "code": verdict.code,
                    "why": verdict.sentence,
                    "이유": verdict.sentence_ko,
                    "thresholds": dg.MetadataValue.json(dict(registrar.policy.thresholds)),
                    "attempt": str(value["attempt_id"]),  # text: Dagster plots numbers
                    "report": str(value["report_id"]),
                },
            )

        return register_threshold

    def registered_model(self) -> dg.AssetsDefinition:
        @dg.asset(
            key=self.key("registered_model"),
            group_name=self.system.name,
            partitions_def=dataset_versions(self.system.name),
            owners=list(self.owners) or None,
            op_tags=self.tags,
            deps=[self.key("evaluation_report"), self.key("trained_model")],
            description="The signed receipt: what passed the gate, and when it is better than the champion, its promotion.",
            kinds={"postgres", "mlflow"},
            code_version="1",
        )
        def registered_model(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            trained = self.value(context, "trained_model")
            report = self.value(context, "evaluation_report")
            registrar = self.registrar(context)
            # The attempt of trained_model with the report of evaluation_report: if they are not of each other, the gate refuses.
            done = registrar.register(trained["attempt_id"], report["report_id"])
            if done.verdict.code == "champion_changed" and len(self.system.variants) > 1:
                from mlops_assets.lifecycle import pipeline

                # All models of a run are measured before the first of them is promoted: those after it are compared with it now.
                again = pipeline.evaluate(self.open_platform(), self.system, trained["attempt_id"], run_id=context.run.run_id)
                done = registrar.register(trained["attempt_id"], again.report_id)
            if done.receipt is None:
                more = {"code": done.verdict.code, "이유": done.verdict.sentence_ko}
                raise refusal(context, done.verdict.sentence, more, self.named)
            mark(context, done.verdict.outcome, done.verdict.sentence, self.named)
            self.put_value(
                context,
                "registered_model",
                {
                    "version": done.receipt.version,
                    "outcome": done.verdict.outcome,
                    "sequence": done.promotion.sequence if done.promotion else None,
                },
            )
            deliver(self.open_platform(), context.log.warning)
            champion = key_of(self.system.name, "", "champion")
            if done.promotion and champion not in context.op_execution_context.job_def.asset_layer.selected_asset_keys:
                context.log_event(champion_event(done.promotion))
            return dg.MaterializeResult(
                metadata={**_receipt_metadata(done), "versions": _versions_table(self.open_platform(), self.system.name)},
                data_version=dg.DataVersion(done.receipt.bundle_sha256),
            )

        return registered_model

    def registrar(self, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> "Registrar":
        platform = self.open_platform()
        asked = _asked(context, platform.engine, self.config)
        policy = sections.judged_by(self.config, asked.config, self.system.directions)
        return _registrar(platform, policy, context, asked.sha256)

    def value(self, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, layer: str) -> dict[str, Any]:
        return _value(self.open_platform(), self.key(layer), _partition(context), context.run.run_id)

    def put_value(self, context: dg.AssetExecutionContext, layer: str, value: Mapping[str, Any]) -> None:
        from mlops_assets.lifecycle import ledger
        from mlops_assets.lifecycle.signing import load_signer

        platform = self.open_platform()
        signer = load_signer(platform.settings)
        with platform.engine.begin() as connection:
            ledger.put_value(connection, self.key(layer).to_user_string(), context.partition_key, context.run.run_id, value, signer)


def _champion(
    system: ModelSystem, config: SystemConfig, open_platform: Callable[[], "Platform"], owners: tuple[str, ...]
) -> dg.AssetsDefinition:
    registered = [key_of(system.name, variant, "registered_model") for variant in system.variants]

    @dg.asset(
        key=key_of(system.name, "", "champion"),
        group_name=system.name,
        partitions_def=dataset_versions(system.name),
        deps=registered,
        owners=list(owners) or None,
        output_required=False,
        description=(
            "What the servers serve. Left unmaterialized when the run's model was registered but is not better. "
            "Materialized alone, it promotes this version's registered model by hand."
        ),
        kinds={"postgres"},
        code_version="1",
    )
    def champion(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        from mlops_assets.lifecycle import ledger, promotion
        from mlops_assets.lifecycle.registrar import Refused

        platform = open_platform()
        run_keys = set(context.run.asset_selection or ()) or set(registered)
        together = bool(run_keys & set(registered))
        promoted = None
        with platform.engine.connect() as connection:
            keys, run_id = platform.settings.public_keys_path, context.run.run_id
            values = [ledger.get_value(connection, key.to_user_string(), context.partition_key, run_id, keys) for key in registered]
            current, _ = promotion.latest_verified(connection, system.name, "champion", keys)
        found = [value for value in values if value is not None]
        if together:
            promoted = current if current and any(value["sequence"] == current.sequence for value in found) else None
        else:
            if not found:
                raise dg.Failure(f"{context.partition_key} has no registered model: materialize it from `dataset` on", allow_retries=False)
            try:
                promoted = _registrar(platform, config, context).produce(
                    reason="the champion asset was materialized by itself", version=max(value["version"] for value in found)
                )
            except Refused as error:
                raise refusal(context, str(error)) from None
            deliver(platform, context.log.warning)
        if promoted is None:
            context.log.info("registered, not promoted: the champion stays" + (f" v{current.version}" if current else ""))
            return
        yield dg.MaterializeResult(metadata=_champion_metadata(promoted), data_version=_champion_data(promoted))

    return champion


def _sweep(system: ModelSystem, owners: Sequence[str]) -> dg.AssetSpec:
    """Not an asset that can be materialized: "materialize all" must not begin hours of training. `<system>_sweep` reports it."""
    return dg.AssetSpec(
        key_of(system.name, "", "sweep"),
        deps=[key_of(system.name, "", "cleaned")],
        group_name=system.name,
        partitions_def=dataset_versions(system.name),
        owners=list(owners),
        description=f"What the job {system.name}_sweep found: trainings compared on validation. Nothing of it is registered.",
        kinds={"optuna", "mlflow"},
    )


def sweep_event(system: str, version: str, metric: str, swept: "Swept") -> dg.AssetMaterialization:
    """A sweep as a materialization: pictures first, then every trial."""
    best = dict(swept.best)
    metadata: dict[str, Any] = {
        "best": dg.MetadataValue.json(best),
        "train_command": dg.MetadataValue.md(f"`{swept.command}`"),
        **_metrics({metric: best[metric]}),
        **_pictures(swept.pictures),
        "trials": _table(swept.rows),
        "dataset_version": version,
        "study": swept.study,
        "git_commit": git_commit(),
        **{state: sum(row["state"] == state for row in swept.rows) for state in ("complete", "pruned", "fail")},
    }
    if swept.link:
        metadata["mlflow_run"] = dg.MetadataValue.url(swept.link)
    return dg.AssetMaterialization(key_of(system, "", "sweep"), partition=version, metadata=metadata)


def champion_event(promoted: "Promotion") -> dg.AssetMaterialization:
    """A promotion that was not made by the champion asset itself, as its materialization: the asset's page shows every champion."""
    return dg.AssetMaterialization(
        key_of(promoted.system, "", "champion"),
        partition=promoted.dataset_version,
        metadata=_champion_metadata(promoted),
        tags={"dagster/data_version": _champion_data(promoted).value},
    )


def _champion_data(promoted: "Promotion") -> dg.DataVersion:
    return dg.DataVersion(f"{promoted.sequence}-{promoted.bundle_sha256}")


def _champion_metadata(promoted: "Promotion") -> dict[str, Any]:
    return {
        "version": promoted.version,
        "sequence": promoted.sequence,
        "kind": promoted.kind,
        "dataset_version": promoted.dataset_version,
        "manifest_sha256": promoted.receipt.body["manifest_sha256"],
        "bundle_sha256": promoted.bundle_sha256,
        "git_commit": promoted.receipt.body["git_commit"],
        "actor": promoted.actor,
        "why": promoted.reason,
        **_metrics(promoted.receipt.metrics),
    }


def training_config(system: ModelSystem) -> type[dg.Config]:
    """The launchpad's form: every parameter of the system, each empty unless it should differ from configs/."""
    return form(system, "Training", system.parameter_names)


def form(system: ModelSystem, name: str, parameters: Iterable[str], **first: Any) -> type[dg.Config]:
    """A launchpad's form: the fields `first`, then the system's `parameters` and the seed, each of which may stay empty."""
    fields: dict[str, Any] = dict(first)
    for parameter in parameters:
        described = Field(default=None, description=f"{parameter}; empty: as configs/{system.name}.yaml has it")
        fields[parameter] = (system.parameter_names[parameter] | None, described)
    fields["seed"] = (int | None, Field(default=None, description="empty: project.seed"))
    return create_model(f"{system.name.title().replace('_', '')}{name}", __base__=dg.Config, **fields)


def mark(context: Any, outcome: str, why: str, variant: str = "") -> None:
    """Tag the run, so that lists and alerts tell a refusal from a breakdown, and say why.

    Of several models each has its own tags. The run's own say the first of TOLD_FIRST that one came to, and name every model that did.
    """
    instance, run_id, why = context.instance, context.run.run_id, why[:WHY_LENGTH]
    if not variant:
        instance.add_run_tags(run_id, {OUTCOME: outcome, WHY: why})
        return
    mine = {f"{OUTCOME}.{variant}": outcome, f"{WHY}.{variant}": why}
    tags = {**instance.get_run_by_id(run_id).tags, **mine}
    outcomes = {name.removeprefix(f"{OUTCOME}."): value for name, value in tags.items() if name.startswith(f"{OUTCOME}.")}
    told = next(value for value in TOLD_FIRST if value in outcomes.values())
    sentences = [f"{name}: {tags[f'{WHY}.{name}']}" for name, value in outcomes.items() if value == told]
    instance.add_run_tags(run_id, {**mine, OUTCOME: told, WHY: "; ".join(sentences)[: 3 * WHY_LENGTH]})


def refusal(context: Any, sentence: str, metadata: Mapping[str, Any] | None = None, variant: str = "") -> dg.Failure:
    """What a step raises that was told no: nothing is broken, so nobody is paged and nothing is tried again."""
    mark(context, "refused", sentence, variant)
    return dg.Failure(description=sentence, metadata={REFUSAL: True, **(metadata or {})}, allow_retries=False)


def deliver(platform: "Platform", warn: Callable[[str], None]) -> None:
    """Hand out the outbox now rather than at the mirror sensor's next tick. A failure only waits for that tick."""
    from mlops_assets.lifecycle.mirror import hand_out

    try:
        hand_out(platform)
    except Exception as error:  # the mirror is never worth a run
        warn(f"MLflow and Slack will be told later: {error}")


def sections_of(context: Any, engine: "Engine", now: C) -> C:
    """The configuration that the step's run was asked for with; a line of its log says what was changed since."""
    asked = _asked(context, engine, now)
    if asked.changed:
        context.log.warning(asked.changed)
    return asked.config


def _asked(context: Any, engine: "Engine", now: C) -> sections.Asked[C]:
    """A run that was launched by hand has the sections of its first step, which its retries keep."""
    digest = context.run.tags.get(SECTIONS)
    asked = sections.of_run(engine, now, digest)
    if digest is None:
        context.instance.add_run_tags(context.run.run_id, {SECTIONS: asked.sha256})
    return asked


def _registrar(platform: "Platform", config: SystemConfig, context: Any, sections_sha256: str | None = None) -> "Registrar":
    from mlops_assets.lifecycle.registrar import Registrar

    run = context.run
    return Registrar(
        platform.engine,
        platform.settings,
        config,
        actor=of_run(run.run_id),
        dagster_run_id=run.run_id,
        root_run_id=run.root_run_id,
        sections_sha256=sections_sha256,
    )


def _value(platform: "Platform", key: dg.AssetKey, partition: str, run_id: str) -> dict[str, Any]:
    from mlops_assets.lifecycle import ledger

    with platform.engine.connect() as connection:
        value = ledger.get_value(connection, key.to_user_string(), partition, run_id, platform.settings.public_keys_path)
    if value is None:
        why = "has not been materialized (since schema 0016 what it hands on is signed)"
        raise dg.Failure(f"{key.to_user_string()} {why} for {partition}: select it too", allow_retries=False)
    return value


def _partition(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> str:
    keys: Any = context.op_execution_context if isinstance(context, dg.AssetCheckExecutionContext) else context
    return str(keys.partition_key)


def _metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"metric/{name}": float(value) for name, value in metrics.items() if math.isfinite(value)}


def _comparison(report: "Report") -> dict[str, Any]:
    theirs = report.champion
    if theirs is None:
        return {"champion": "none yet"}
    rows = [{"metric": name, "challenger": value, "champion": theirs.metrics.get(name, math.nan)} for name, value in report.metrics.items()]
    return {
        "champion": f"v{theirs.version} ({theirs.dataset_version})",
        "champion_comparison": _table(rows),
        **({"mcnemar_p": float(theirs.p_value)} if theirs.p_value is not None else {}),
        **_second_exam(report, theirs.earlier),
    }


def _yardsticks(report: "Report") -> dict[str, Any]:
    """What needs no model, and what needs a minute, beside the model."""
    named = {name for figures in report.trivial.values() for name in figures}
    rows = [{"answered by": name, **figures} for name, figures in report.trivial.items()]
    if report.baseline is not None and not report.baseline.missing:
        named = named or set(report.metrics)
        theirs = {name: value for name, value in report.baseline.metrics.items() if name in named}
        rows.append({"answered by": f"the baseline {report.baseline.variant}", **theirs})
    if not rows:
        return {}
    ours = {name: value for name, value in report.metrics.items() if name in named}
    found: dict[str, Any] = {"beside": _table([*rows, {"answered by": "this model", **ours}])}
    if report.baseline is not None and report.baseline.missing:
        found["baseline"] = report.baseline.missing
    return found


def _second_exam(report: "Report", earlier: "Earlier | None") -> dict[str, Any]:
    """Challenger and champion on the champion's own holdout, where that is another one."""
    if earlier is None or earlier.holdout_sha256 == report.holdout_sha256:
        return {}
    if earlier.missing:
        return {"earlier_holdout": f"not measured: {earlier.missing}"}
    rows = [
        {"metric": name, "challenger": earlier.metrics.get(name, math.nan), "champion": value} for name, value in earlier.champion.items()
    ]
    return {"earlier_holdout": f"{earlier.dataset_version}, {earlier.rows} rows", "earlier_holdout_comparison": _table(rows)}


def _table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as Dagster's own table; every cell a string or a number."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        {name: (f"{row[name]:.4f}" if isinstance(row.get(name), float) else str(row.get(name, ""))) for name in columns} for row in rows
    ]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in columns])
    return dg.MetadataValue.table([dg.TableRecord(record) for record in cells], schema=schema)


def _pictures(pictures: Sequence[Picture]) -> dict[str, dg.MarkdownMetadataValue]:
    """As many pictures inline as an event may carry, in order."""
    shown: dict[str, dg.MarkdownMetadataValue] = {}
    left = EVENT_PICTURE_BYTES
    for picture in pictures:
        if len(picture.png) <= left:
            left -= len(picture.png)
            data = base64.b64encode(picture.png).decode()
            shown[picture.title] = dg.MetadataValue.md(f"![{picture.title}](data:image/png;base64,{data})")
    return shown


def _receipt_metadata(done: "Registration") -> dict[str, Any]:
    assert done.receipt is not None
    body = done.receipt.body
    return {
        "verdict": done.verdict.outcome,
        "why": done.verdict.sentence,
        "이유": done.verdict.sentence_ko,
        "version": done.receipt.version,
        "dataset_version": done.receipt.dataset_version,
        "manifest_sha256": body["manifest_sha256"],
        "bundle_sha256": done.receipt.bundle_sha256,
        "git_commit": body["git_commit"],
        "seed": body["seed"],
        "signed_by": done.receipt.key_id,
        "receipt": dg.MetadataValue.json(body),
        **_metrics(done.receipt.metrics),
    }


def _versions_table(platform: "Platform", system: str) -> dg.TableMetadataValue:
    """Every dataset version's last verdict beside each other: what a backfill is read by."""
    from mlops_assets.lifecycle.history import compare

    with platform.engine.connect() as connection:
        return _table(compare(connection, system, platform.settings.public_keys_path))
