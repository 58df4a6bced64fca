"""The mirror sensor: hands out the outbox and puts back aliases that somebody moved by hand, every 20 seconds.

Belongs here: that shell. Does not belong here: what MLflow is told (`mirror.py`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform


def mirror_sensor(systems: Sequence[str], open_platform: Callable[[], "Platform"]) -> dg.SensorDefinition:
    """One sensor for all systems. It starts no run: a tick is the work."""

    @dg.sensor(
        name="mlflow_mirror",
        minimum_interval_seconds=20,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fills MLflow and Slack from the outbox and moves aliases back to what the promotion ledger says.",
    )
    def mlflow_mirror(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from mlops_assets.lifecycle.mirror import Mirror, hand_out

        platform = open_platform()
        delivered = hand_out(platform)
        if platform.tracking.uri is None:
            return dg.SkipReason(f"{delivered} delivered; MLflow is not set (MLOPS_MLFLOW_TRACKING_URI)")
        mirror = Mirror(platform.engine, platform.tracking.client, platform.settings.public_keys_path)
        moved: list[str] = []
        failed: list[str] = []
        for system in systems:
            try:
                sentences = mirror.align(system)
            except Exception as error:  # one system's bad receipt must not leave the aliases of the others moved
                context.log.exception(f"{system}: the aliases cannot be put back")
                failed.append(f"{system}: {type(error).__name__}: {error}")
                continue
            for sentence in sentences:
                context.log.warning(sentence)
            moved += sentences
        if failed:  # at the end, so that the tick fails where people look, and every system had its turn
            raise RuntimeError(f"the aliases of {len(failed)} of {len(systems)} systems cannot be put back: " + "; ".join(failed))
        return dg.SkipReason(f"{delivered} delivered, {len(moved)} aliases put back" + "".join(f"; {m}" for m in moved))

    return mlflow_mirror
