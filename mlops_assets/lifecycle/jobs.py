"""Jobs that people launch: sweep, stage, produce, rollback, retention. They are jobs so that the event log has them; the launchpad is
their form.

Belongs here: the shells, and what broke in their runs. Does not belong here: what they do (`registrar.py`, `retention.py`, `sweep.py`).
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from pydantic import Field, create_model

from mlops_assets.lifecycle.actor import of_run
from mlops_assets.lifecycle.assets import (
    TRAINING_POOL,
    champion_event,
    dataset_versions,
    deliver,
    form,
    key_of,
    refusal,
    sections_of,
    sweep_event,
)
from mlops_assets.lifecycle.report import label, way
from mlops_assets.lifecycle.system import ModelSystem
from mlops_assets.settings import SettingsError, SystemConfig

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.lifecycle.promotion import Promotion
    from mlops_assets.lifecycle.registrar import Registrar


MODEL_LAYERS = ("trained_model", "evaluation_report", "registered_model")


def metric_choices(system: ModelSystem, default: str) -> type[Enum]:
    """What a model of `system` may be chosen by, as the launchpad offers it; the first is the default."""
    make: Any = Enum  # as a plain call: mypy knows only literal names
    return cast(type[Enum], make("Metric", {label(name): label(name) for name in system.choices(default)}))


def metric_field(system: ModelSystem, default: str, said: str) -> tuple[type[Enum], Any]:
    """The form's field in which a metric is chosen: the system's own, `default` (`promotion.metric`) unless another is, with directions."""
    metrics = metric_choices(system, default)
    ways = ", ".join(f"{label(name)}: {way(direction)}" for name, direction in system.choices(default).items())
    return metrics, Field(default=next(iter(metrics)), description=f"{said} ({ways})")


def _choosing(name: str, system: ModelSystem, config: SystemConfig, korean: str, **more: Any) -> type[dg.Config]:
    """The form of a job that chooses the best registered version by a metric."""
    metric = metric_field(system, config.promotion.metric, f"Choose it by this metric. / {korean}")
    return create_model(name, __base__=dg.Config, metric=metric, **more)


class RollbackConfig(dg.Config):
    to: int | None = Field(default=None, description="A former champion's version; empty: the one before the current.")
    reason: str = Field(description="Why; recorded and signed.")


class RetentionConfig(dg.Config):
    dry_run: bool = Field(default=False, description="Only say what would go.")


def lifecycle_jobs(system: ModelSystem, config: SystemConfig, open_platform: Callable[[], "Platform"]) -> list[Any]:
    """`<system>_pipeline` (what the sensor starts), `_train`, `_models`, `_register`, `_sweep`, `_stage`, `_produce`, `_rollback`,
    `_retention`."""
    name = system.name
    layers = [key_of(name, "", "dataset"), key_of(name, "", "cleaned")]
    scenario = [key_of(name, v, layer) for v in scenario_of(system, config) for layer in MODEL_LAYERS]
    attempts = [key_of(name, v, layer) for v in system.variants for layer in ("trained_model", "evaluation_report")]
    registered = [key_of(name, v, "registered_model") for v in system.variants]

    def asset_job(suffix: str, selection: dg.AssetSelection, description: str) -> Any:
        return dg.define_asset_job(
            f"{name}_{suffix}",
            selection=selection,
            description=description,
            tags={"mlops/system": name},
        )

    return [
        asset_job(
            "pipeline",
            dg.AssetSelection.assets(*layers, *scenario),
            "Dataset to champion: what a new dataset version starts.",
        ),
        asset_job("train", dg.AssetSelection.assets(*layers, *attempts), "Dataset to evaluation report and the gate; registers nothing."),
        asset_job("models", dg.AssetSelection.groups(name), "Any of the models, from dataset to registration: choose the assets."),
        asset_job("register", dg.AssetSelection.assets(*registered), "Register what `_train` left, if the gate lets it."),
        _sweep_job(system, config, open_platform),
        *_ledger_jobs(system, config, open_platform),
    ]


def scenario_of(system: ModelSystem, config: SystemConfig) -> Sequence[str]:
    """The variants that a new dataset version trains.

    The champion asset is in no job: the registered models report their promotions as its materializations. In a run that is refused
    Dagster would show it as failed, while it serves on; and of several models one that is refused would keep the others from it.

    Raises:
        SettingsError: `project.scenario` names a variant that the system does not have.
    """
    if unknown := sorted(set(config.project.scenario) - set(system.variants)):
        known = ", ".join(system.variants)
        raise SettingsError(f"project.scenario: {', '.join(unknown)} is no model of {system.name}; choose from {known}")
    chosen = config.project.scenario or system.variants
    # Others are compared with the baseline, and it is served while they still train.
    return chosen if system.baseline is None else list(dict.fromkeys((system.baseline, *chosen)))


def breakdowns_of(run_id: str) -> list[str]:
    """What broke in a failed run, by its events; empty when it was only refused. The run's tags know only of refusals."""
    from mlops_assets.monitoring.sensors import breakdowns

    with dg.DagsterInstance.get() as instance:
        return list(breakdowns(instance, run_id))


#: A sweep may take longer than a run usually may; one that is stopped goes on where it was.
SWEEP_SECONDS = 24 * 3600


def sweep_form(system: ModelSystem, config: SystemConfig) -> type[dg.Config]:
    """The launchpad's form of `<system>_sweep`: what is searched, then parameters that all trials share."""
    types = (
        "Empty: the configured model." if "" in system.searched else f"Models to choose from; empty: all ({', '.join(system.searched)})."
    )
    shared = [name for name in system.parameter_names if name not in ("model_type", "learning_rate")]
    return form(
        system,
        "Sweep",
        shared,
        trials=(int, Field(default=10, description="Trials in all, those of an earlier run of the same sweep included. / 시도 횟수")),
        metric=metric_field(system, config.promotion.metric, "The figure on validation that is optimised. / 최적화할 지표"),
        model_types=(list[str], Field(default=[], description=types)),
        learning_rate_low=(float | None, Field(default=None, description="Least learning rate; empty: a tenth of the configured one.")),
        learning_rate_high=(float | None, Field(default=None, description="Greatest learning rate; empty: ten times the configured one.")),
        minutes=(float | None, Field(default=None, description="After so many minutes no further trial begins; empty: no limit.")),
        prune=(bool, Field(default=True, description="Give trials up that are worse than the median of those before them.")),
    )


def _sweep_job(system: ModelSystem, config: SystemConfig, open_platform: Callable[[], "Platform"]) -> dg.JobDefinition:
    name = system.name
    given_config = config
    form_type = sweep_form(system, config)

    def sweep_op(context: dg.OpExecutionContext, config: dg.Config) -> None:
        from mlops_assets.lifecycle import ledger, sweep
        from mlops_assets.lifecycle.signing import load_signer

        given = config.model_dump()
        platform, version = open_platform(), context.partition_key
        asked = sections_of(context, platform.engine, given_config)
        planned = sweep.plan(
            system,
            asked,
            dataset_version=version,
            metric=given.pop("metric").value,
            learning_rate=(given.pop("learning_rate_low"), given.pop("learning_rate_high")),
            **{key: given.pop(key) for key in ("trials", "model_types", "minutes", "prune", "seed")},
            overrides=given,
        )
        swept = sweep.run(platform, system, asked, planned, run_id=context.run_id, say=context.log.info)
        value = {"metric": planned.metric, "study": swept.study, "trials": swept.rows, "best": swept.best, "command": swept.command}
        key, signer = key_of(name, "", "sweep").to_user_string(), load_signer(platform.settings)
        with platform.engine.begin() as connection:
            ledger.put_value(connection, key, version, context.run_id, {**value, "mlflow": swept.link}, signer)
        context.log_event(sweep_event(name, version, planned.metric, swept))

    # The form differs by system, so its type is known only here.
    sweep_op.__annotations__["config"] = form_type
    op = dg.op(name=f"{name}_sweep_op", pool=TRAINING_POOL)(sweep_op)

    @dg.job(
        name=f"{name}_sweep",
        description="Search model types and learning rates on validation; pruned, resumable, registers nothing.",
        partitions_def=dataset_versions(name),
        tags={"mlops/system": name, "dagster/max_runtime": SWEEP_SECONDS},
    )
    def sweep_job() -> None:
        op()

    return sweep_job


def _ledger_jobs(system: ModelSystem, config: SystemConfig, open_platform: Callable[[], "Platform"]) -> list[dg.JobDefinition]:
    name = system.name
    why = "Why; recorded and signed."
    stage_form = _choosing(
        "Stage", system, config, "어떤 지표를 기준으로 스테이지 하시겠습니까?", reason=(str, Field(default="", description=why))
    )
    produce_form = _choosing(
        "Produce",
        system,
        config,
        "어떤 지표를 기준으로 운영 모델을 등록하시겠습니까?",
        version=(int | None, Field(default=None, description="Promote this registered version instead of the best one.")),
        override=(bool, Field(default=False, description="Promote it although the gate would refuse it today; signed and told with why.")),
        reason=(str, Field(description=why)),
    )

    def act(context: dg.OpExecutionContext, do: Callable[["Registrar"], "Promotion"]) -> None:
        from mlops_assets.lifecycle.registrar import Refused, Registrar

        platform = open_platform()
        actor = of_run(context.run_id)
        try:
            run = context.run
            registrar = Registrar(
                platform.engine, platform.settings, config, actor=actor, dagster_run_id=run.run_id, root_run_id=run.root_run_id
            )
            done = do(registrar)
        except Refused as error:
            raise refusal(context, str(error)) from None
        deliver(platform, context.log.warning)
        context.log.info(f"{done.kind}: {name} v{done.version} ({done.dataset_version}), sequence {done.sequence}: {done.reason}")
        if done.kind != "stage":
            context.log_event(champion_event(done))

    def stage_op(context: dg.OpExecutionContext, config: Any) -> None:
        act(context, lambda registrar: registrar.stage(config.metric.value, config.reason))

    def produce_op(context: dg.OpExecutionContext, config: Any) -> None:
        act(
            context,
            lambda registrar: registrar.produce(
                config.metric.value, reason=config.reason, version=config.version, override=config.override
            ),
        )

    # The forms differ by system, so their types are known only here.
    stage_op.__annotations__["config"], produce_op.__annotations__["config"] = stage_form, produce_form
    staging, producing = dg.op(name=f"{name}_stage_op")(stage_op), dg.op(name=f"{name}_produce_op")(produce_op)

    @dg.op(name=f"{name}_rollback_op")
    def rollback_op(context: dg.OpExecutionContext, config: RollbackConfig) -> None:
        act(context, lambda registrar: registrar.rollback(reason=config.reason, to=config.to))

    @dg.op(name=f"{name}_retention_op")
    def retention_op(context: dg.OpExecutionContext, config: RetentionConfig) -> None:
        from mlops_assets.lifecycle import retention

        platform = open_platform()
        done = retention.apply(
            platform.engine,
            platform.store,
            name,
            platform.settings.public_keys_path,
            rollback_depth=platform.settings.rollback_depth,
            actor=of_run(context.run_id),
            dry_run=config.dry_run,
        )
        for kept in done.keep:
            context.log.info(f"kept {kept.bundle_sha256[:12]} (v{kept.version}): {kept.why}")
        for digest, version, size in done.delete:
            context.log.info(f"{'would delete' if config.dry_run else 'deleted'} {digest[:12]} (v{version}): {size} bytes")
        for digest in done.unsigned:
            context.log.info(f"left bundles/{digest}: its attempt is not signed (older than schema 0016); delete it by hand")

    @dg.job(name=f"{name}_stage", description="Make the best registered version the candidate that the staging server serves.")
    def stage() -> None:
        staging()

    @dg.job(name=f"{name}_produce", description="Promote a registered version to champion.")
    def produce() -> None:
        producing()

    @dg.job(name=f"{name}_rollback", description="Serve a former champion again.")
    def rollback() -> None:
        rollback_op()

    @dg.job(name=f"{name}_retention", description="Delete the bytes of old models that nothing reaches; their receipts stay.")
    def retention_job() -> None:
        retention_op()

    return [stage, produce, rollback, retention_job]
