"""kill -9 of run worker, code server and daemon in mid-training, 30 times: seconds until the run is over and its pool slot is another's.

A real `mlops up` trains sentiment without pause: one run in the pool `training`, another one waiting for its slot. Whatever is killed, the
run in progress must be over within 120 s (a killed daemon concerns it not: it succeeds) and the waiting one must be training within 180 s;
a crashed run is retried by the daemon, three times and no more; nothing is left behind. Then single faults: a launch that is cut, a worker
that hangs and heeds no interrupt. Peer: the same platform with Dagster's default instance, where the run stays STARTED and holds its slot.

Takes half an hour; --quick (each kind once) some minutes.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from _common import pressure, report

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter  # noqa: E402
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # noqa: E402

from mlops_assets import sample_data  # noqa: E402
from mlops_assets.dagster_api import LOCATION, graphql  # noqa: E402
from mlops_assets.resources.launcher import said_pid  # noqa: E402
from mlops_assets_tests.running_platform import Running, running_platform  # noqa: E402

TERMINAL_SECONDS, SLOT_SECONDS = 120, 180
VERSION, POOL, RETRIES = "v1", "training", 3
#: What dies together. With a code server its workers die: `mlops up` ends the whole process group.
KINDS: tuple[tuple[str, ...], ...] = (("worker",), ("code",), ("daemon",))
TOGETHER: tuple[tuple[str, ...], ...] = (("worker", "daemon"), ("code", "daemon"), ("worker", "code", "daemon"), ("everything",))


@dataclass
class Trainings:
    """Trainings of sentiment on one platform, through Dagster's own doors: its GraphQL API and its storage."""

    platform: Running
    instance: DagsterInstance
    seed: int = 0
    seen: list[str] = field(default_factory=list)

    def launch(self, **tags: str) -> str:
        """A training that no earlier one has done: each has a seed of its own."""
        self.seed += 1
        job = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": "sentiment_models"}
        key = {"path": ["sentiment", "trained_model"]}
        config = {"ops": {"sentiment__trained_model": {"config": {"seed": self.seed}}}}
        given = [{"key": "dagster/partition", "value": VERSION}, *({"key": name, "value": value} for name, value in tags.items())]
        params = {"selector": job | {"assetSelection": [key]}, "runConfigData": config, "executionMetadata": {"tags": given}}
        query = (
            "mutation L($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess { run { runId } } } }"
        )
        answer = graphql(self.platform.known["dagster_url"], query, {"p": params}, timeout=60)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        self.seen.append(answer["run"]["runId"])
        return self.seen[-1]

    def cancel(self, run_id: str) -> None:
        graphql(
            self.platform.known["dagster_url"],
            "mutation C($r: String!) { terminateRun(runId: $r) { __typename } }",
            {"r": run_id},
            timeout=60,
        )

    def run(self, run_id: str) -> DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def unfinished(self) -> Sequence[DagsterRun]:
        """Oldest first."""
        return self.instance.get_runs(RunsFilter(statuses=NOT_FINISHED_STATUSES), ascending=True)

    def training(self) -> str | None:
        """The run that is training just now: it is started, and some process holds the lock of training."""
        with (self.platform.home / "training.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                started = [run.run_id for run in self.unfinished() if run.status == DagsterRunStatus.STARTED]
                return started[0] if len(started) == 1 else None
        return None

    def pid(self, run_id: str) -> int:
        said = said_pid(self.instance, run_id)
        assert said is not None
        return said[0]

    def retry_of(self, run_id: str) -> str | None:
        return self.run(run_id).tags.get("dagster/auto_retry_run_id")


def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
    return found


@contextmanager
def trainings(folder: Path, steps: int) -> Iterator[Trainings]:
    """A platform with one frozen version, whose trainings make so many steps."""
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    config = folder / "configs" / "sentiment.yaml"
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["models"]["kcbert"]["training"] |= {"min_steps": steps, "checkpoints_per_epoch": 1, "early_stopping_patience": 1000}
    config.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with running_platform(MLOPS_CONFIGS=str(folder / "configs"), MLOPS_THREADS="1") as platform:
        platform.start()
        with instance_of(platform) as instance:
            made = Trainings(platform, instance)
            sample_data.write_reviews(folder / "reviews")
            mlops = str(Path(sys.executable).with_name("mlops"))
            command = [mlops, "land", "sentiment", str(folder / "reviews"), "--dataset-version", VERSION]
            subprocess.run(command, env=platform.environment, check=True, stdout=subprocess.DEVNULL)
            wait(lambda: any(run.is_finished for run in instance.get_runs()), 600, "the first model")
            yield made


@contextmanager
def instance_of(platform: Running) -> Iterator[DagsterInstance]:
    os.environ["MLOPS_DAGSTER_DATABASE_URL"] = platform.known["dagster_database_url"]
    with DagsterInstance.from_config(str(platform.home / "dagster")) as instance:
        yield instance


def strike(made: Trainings, victim: str, parts: Sequence[str]) -> None:
    """kill -9 to all parts at once, as far as that goes."""
    if "everything" in parts:
        made.platform.kill()
        made.platform.start()
        return
    pids = [made.pid(victim) if part == "worker" else made.platform.pid_of(part) for part in parts]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def round_of(made: Trainings, parts: Sequence[str]) -> dict[str, Any]:
    """One kill: seconds until the run in progress was over, and until another one had its slot and trained."""
    while len(made.unfinished()) < 2:
        made.launch()
    victim = wait(made.training, 180, "a training in progress")
    time.sleep(random.uniform(0, 3))
    if made.training() != victim:  # it was just done
        return round_of(made, parts)
    began = time.monotonic()
    strike(made, victim, parts)
    over = wait(lambda: made.run(victim).is_finished and time.monotonic() - began, 600, f"the end of {victim}")
    after = wait(lambda: (found := made.training()) and found != victim and time.monotonic() - began, 600, f"the slot of {victim}")
    status = made.run(victim).status.value
    expected = "SUCCESS" if tuple(parts) == ("daemon",) else "FAILURE"
    if status == "SUCCESS" != expected:  # its last step was done before the signal came
        return round_of(made, parts)
    found = {
        "killed": "+".join(parts),
        "status": status,
        "over_s": round(over, 1),
        "slot_s": round(after, 1),
        "as_expected": status == expected,
    }
    print(json.dumps(found | {"run": victim}), flush=True)
    return found


# --- single faults --------------------------------------------------------------------------------------------------------------


def settled(made: Trainings, seconds: float = 600) -> None:
    wait(lambda: not made.unfinished(), seconds, "the end of every run")


def code_server_killed_while_it_launches(made: Trainings) -> float:
    """The run finds no code server: it waits in the queue, and trains without having failed."""
    run_id = made.launch()
    wait(lambda: made.run(run_id).status == DagsterRunStatus.STARTING, 60, "STARTING")
    began = time.monotonic()
    strike(made, run_id, ["code"])
    wait(lambda: made.training(), 180, "a training after the launch that was cut")
    return time.monotonic() - began


def daemon_killed_while_it_launches(made: Trainings) -> float:
    run_id = made.launch()
    wait(lambda: made.run(run_id).status == DagsterRunStatus.STARTING, 60, "STARTING")
    began = time.monotonic()
    strike(made, run_id, ["daemon"])
    wait(lambda: made.training(), 180, "a training after the launch that was cut")
    return time.monotonic() - began


def worker_hangs_beyond_its_time(made: Trainings) -> float:
    """Stopped, it heeds no interrupt and holds the lock of training: it must be killed before its retry can train."""
    run_id = made.launch(**{"dagster/max_runtime": "45"})  # time enough to load and to begin
    wait(lambda: made.training() == run_id, 120, "the training")
    pid, began = made.pid(run_id), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    wait(lambda: made.run(run_id).is_finished, TERMINAL_SECONDS, "the end of a run that hangs")
    wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 120, "the end of its process")
    took = time.monotonic() - began
    assert made.run(run_id).status == DagsterRunStatus.FAILURE
    for run in made.unfinished():  # its retry has the same limit
        made.cancel(run.run_id)
    return took


def worker_hangs_while_it_is_canceled(made: Trainings) -> float:
    run_id = made.launch()
    wait(lambda: made.training() == run_id, 120, "the training")
    pid = made.pid(run_id)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    made.cancel(run_id)
    wait(lambda: made.run(run_id).status == DagsterRunStatus.CANCELED, TERMINAL_SECONDS, "CANCELED")
    wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 120, "the end of its process")
    return time.monotonic() - began


FAULTS = (
    code_server_killed_while_it_launches,
    daemon_killed_while_it_launches,
    worker_hangs_beyond_its_time,
    worker_hangs_while_it_is_canceled,
)


# --- afterwards -----------------------------------------------------------------------------------------------------------------


def retries(made: Trainings) -> dict[str, int]:
    """How the daemon retried: every crash once, but for those that had had all their retries; `wrong` counts what is otherwise."""
    runs = {run.run_id: run for run in made.instance.get_runs()}
    found = {"crashed": 0, "retried": 0, "out_of_retries": 0, "wrong": 0}
    for run in runs.values():
        crashed = run.status == DagsterRunStatus.FAILURE
        spent = int(run.tags.get("dagster/retry_number", "0")) == RETRIES
        children = len([other for other in runs.values() if other.parent_run_id == run.run_id])
        found["crashed"] += crashed
        found["out_of_retries"] += crashed and spent
        found["retried"] += crashed and children == 1
        found["wrong"] += children != (1 if crashed and not spent else 0)
    return found


def left_behind(made: Trainings) -> dict[str, int]:
    """Workers without a run, zombies, slots, once no run is in progress."""
    code = psutil.Process(made.platform.pid_of("code"))
    ours = [psutil.Process(pid) for pid in made.platform.everything()]
    zombies = [p for p in psutil.process_iter() if p.status() == psutil.STATUS_ZOMBIE and p.ppid() in {o.pid for o in ours}]
    workers = [p for p in ours if any("spawn_main" in word for word in p.cmdline())]
    slots = made.instance.event_log_storage.get_concurrency_info(POOL)
    return {
        "workers": len([p for p in workers if p.ppid() == code.pid]),
        "orphans": len([p for p in workers if p.ppid() != code.pid]),
        "zombies": len(zombies),
        "slots": slots.active_slot_count + len(slots.pending_steps),
    }


def control(made: Trainings, seconds: float) -> dict[str, Any]:
    """Dagster's default instance, with a pool of one: the code server dies with its worker, and nothing ever says so."""
    file = made.platform.home / "dagster" / "dagster.yaml"
    file.write_text(yaml.safe_dump({"storage": yaml.safe_load(file.read_text())["storage"]}))
    for name in ("dagster", "daemon", "code"):
        os.kill(made.platform.pid_of(name), signal.SIGKILL)
    with instance_of(made.platform) as instance:
        again = Trainings(made.platform, instance, made.seed)
        instance.event_log_storage.set_concurrency_slots(POOL, 1)
        launcher = "{ instance { runLauncher { name } } }"

        def is_default() -> bool:
            with suppress(OSError):
                found = graphql(made.platform.known["dagster_url"], launcher)["instance"]["runLauncher"]["name"]
                return bool(found == "DefaultRunLauncher")
            return False

        wait(is_default, 120, "the default instance")
        victim = wait(lambda: _launched(again), 120, "a launch")
        wait(lambda: again.training() == victim, 180, "the control's training")
        waiting = again.launch()
        began = time.monotonic()
        strike(again, victim, ["code"])
        with suppress(TimeoutError):
            wait(lambda: again.run(victim).is_finished or again.run(waiting).is_finished, seconds, "what never comes")
        slots = instance.event_log_storage.get_concurrency_info(POOL)
        return {
            "after_s": round(time.monotonic() - began),
            "status": again.run(victim).status.value,
            "slot_held": victim in {slot.run_id for slot in slots.claimed_slots},
            "waiting": again.run(waiting).status.value,
        }


def _launched(made: Trainings) -> str | None:
    with suppress(OSError, AssertionError):
        return made.launch()
    return None


def pause(file: Path | None) -> None:
    while file is not None and file.exists():
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each kind once")
    parser.add_argument("--pause", type=Path, help="begin no round while this file exists")
    parser.add_argument("--steps", type=int, default=300, help="of one training: a quarter of a minute alone on the machine")
    given = parser.parse_args()
    kinds = list(KINDS) if given.quick else [*(KINDS * 8), *TOGETHER, *TOGETHER[:2]]
    load = pressure()
    random.seed(5)
    with tempfile.TemporaryDirectory(prefix="stuck-") as name:
        os.chmod(name, 0o755)
        with trainings(Path(name), given.steps) as made:
            rounds = []
            for parts in kinds:
                pause(given.pause)
                rounds.append(round_of(made, parts))
            settled(made)
            again = retries(made)
            print(json.dumps(again), flush=True)
            faults = {}
            for fault in FAULTS:
                pause(given.pause)
                faults[fault.__name__] = round(fault(made), 1)
                print(json.dumps({fault.__name__: faults[fault.__name__]}), flush=True)
                settled(made)
            left = left_behind(made)
            default = control(made, 60 if given.quick else SLOT_SECONDS + 10)
    good = [r for r in rounds if r["as_expected"] and r["over_s"] <= TERMINAL_SECONDS and r["slot_s"] <= SLOT_SECONDS]
    worst = max(r["over_s"] for r in rounds)
    more = {
        "kills": len(rounds),
        "within_limits": len(good),
        "over_worst_s": worst,
        "over_median_s": statistics.median(r["over_s"] for r in rounds),
    }
    more |= {
        "slot_worst_s": max(r["slot_s"] for r in rounds),
        "retries": again,
        "left_behind": left,
        "faults_s": faults,
        "control": default,
    }
    unit = "1 / s until a killed run is over; peer: still STARTED"
    report("stuck_runs", 1 / worst, 1 / default["after_s"], 1, load=load, unit=unit, **more)
    kept = len(good) == len(rounds) and not again["wrong"] and not any(left.values())
    sticks = default["status"] == "STARTED" and default["slot_held"]
    sys.exit(0 if kept and sticks else 1)


if __name__ == "__main__":
    main()
