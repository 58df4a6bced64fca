"""The toy's runs on a Dagster instance, the sensors that watch them, and truths about its answers."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
from sqlalchemy import text

from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.lifecycle.sensors import mirror_sensor
from mlops_assets.monitoring.sensors import failure_sensor, live_sensors
from mlops_assets.serving import feedback
from mlops_assets.settings import MonitoringPolicy, Settings, SystemConfig
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import World
from mlops_assets_tests.toy import toy_definitions

#: Of 4 truths at least half must be right.
POLICY = MonitoringPolicy(min_live_accuracy=0.5, min_answers=4)


class Watched:
    """One toy system. Each tick of a sensor gets the cursor that the tick before left, as the daemon does it."""

    def __init__(
        self,
        world: World,
        instance: dg.DagsterInstance,
        qualities: dict[str, Any],
        *,
        settings: Settings | None = None,
        config: SystemConfig | None = None,
        variants: dict[str, Any] | None = None,
    ) -> None:
        self.world, self.instance, self.engine = world, instance, world.engine
        self.platform = Platform(settings or world.settings, world.engine, world.store, Tracking(None))
        self.definitions = toy_definitions(self.platform, config, qualities, variants)
        self.sensors = {
            "mirror": mirror_sensor(["toy"], lambda: self.platform),
            "failures": failure_sensor(lambda: self.platform),
            "live": live_sensors("toy", POLICY, lambda: self.platform)[0],
        }
        self.cursors: dict[str, str | None] = {}
        for version in qualities:
            world.dataset(version)
            instance.add_dynamic_partitions("toy_dataset_version", [version])

    def run(self, job: str, version: str | None = None, assets: Sequence[str] = (), **config: Any) -> dg.ExecuteInProcessResult:
        found = self.definitions.resolve_job_def(f"toy_{job}")
        return found.execute_in_process(
            instance=self.instance,
            partition_key=version,
            asset_selection=[dg.AssetKey(["toy", *name.split("/")]) for name in assets] or None,
            run_config={"ops": {f"toy_{job}_op": {"config": config}}} if config else None,
            raise_on_error=False,
        )

    def tick(self, sensor: str) -> str:
        """One tick as Dagster evaluates it; the sentence that it left."""
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursors.get(sensor)) as context:
            done = self.sensors[sensor].evaluate_tick(context)
        self.cursors[sensor] = done.cursor
        assert not done.run_requests, "these sensors start nothing"
        return done.skip_message or ""

    def outbox(self, kind: str = "") -> list[str]:
        """What people are or will be told, oldest first, whose first words are `kind`."""
        sql = text("SELECT payload ->> 'text' FROM outbox WHERE topic = 'slack' ORDER BY id")
        with self.engine.connect() as connection:
            return [message for message in connection.execute(sql).scalars() if message.startswith(kind)]


def truths(world: World, version: int, right: int, wrong: int) -> None:
    """So many right and wrong answers of a version, and the truth about them as `POST /feedback` stores it."""
    request_id, inputs = uuid.uuid4().hex, right + wrong
    sql = text(
        "INSERT INTO answer (request_id, system, version, bundle_sha256, inputs, labels, at) VALUES (:r, :s, :v, 'b', :n, :labels, now())"
    )
    with world.engine.begin() as connection:
        connection.execute(sql, {"r": request_id, "s": world.system, "v": version, "n": inputs, "labels": ["yes"] * inputs})
    feedback.give(world.engine, request_id, ["yes"] * right + ["no"] * wrong, ("yes", "no"), "test")


def old_truths(world: World, version: int, right: int, wrong: int, hours_ago: float) -> None:
    """As if they had come so long ago: rows of `feedback` cannot be changed afterwards."""
    sql = text(
        "INSERT INTO feedback (request_id, position, system, version, said, truth, actor, at) SELECT gen_random_uuid(), 0, :s, :v, 'yes', "
        "CASE WHEN n <= :right THEN 'yes' ELSE 'no' END, 'test', now() - make_interval(secs => :seconds) FROM generate_series(1, :all) n"
    )
    values = {"s": world.system, "v": version, "right": right, "all": right + wrong, "seconds": hours_ago * 3600}
    with world.engine.begin() as connection:
        connection.execute(sql, values)


def kinds(messages: Sequence[str]) -> Counter[str]:
    """How many messages of each kind: what stands before the first colon."""
    return Counter(message.split(":")[0] for message in messages)


def refuse_to_connect() -> Callable[[], Platform]:
    def open_platform() -> Platform:
        raise ConnectionError("the database is away")

    return open_platform
