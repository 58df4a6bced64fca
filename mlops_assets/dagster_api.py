"""Dagster seen from outside, as plain functions: its GraphQL API and its run workers, for the supervisor, the demo, the dashboard.

Belongs here: asking the webserver and launching jobs through it. Does not belong here: any `import dagster`.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOCATION = "mlops_assets"
#: A run's tags: what came of it (refused, registered or promoted) and the sentence that says why. Of one model of several they stand under
#: `mlops/outcome.<model>` and `mlops/why.<model>`.
OUTCOME, WHY = "mlops/outcome", "mlops/why"
FINISHED = ("SUCCESS", "FAILURE", "CANCELED")

#: A proxy must not stand between the platform and its own services.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class RunResult:
    """`refused`: the gate or the registrar said no; `sentence` is its own, or the error's."""

    run_id: str
    status: str
    refused: bool
    sentence: str


def graphql(address: str, query: str, variables: Mapping[str, Any] | None = None, timeout: float = 5) -> dict[str, Any]:
    """One answer.

    Raises:
        OSError: it does not answer, or answers with errors.
    """
    body = json.dumps({"query": query, "variables": dict(variables or {})}).encode()
    request = urllib.request.Request(address + "/graphql", body, {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=timeout) as response:
            answer = json.load(response)
    except ValueError as error:
        raise OSError(f"{address} did not answer in JSON: {error}") from None
    if answer.get("errors"):
        raise OSError(f"{address}: {answer['errors'][0].get('message')}")
    return dict(answer["data"])


_LAUNCH = """mutation Launch($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } ... on Error { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""


def launch(address: str, job: str, config: Mapping[str, Any]) -> str:
    """Launch a job with this run config, as the UI's launchpad does; returns the run's id.

    Raises:
        OSError: Dagster is away, or does not take it; the message says why.
    """
    selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": job}
    params = {"selector": selector, "runConfigData": dict(config)}
    answer = graphql(address, _LAUNCH, {"params": params}, timeout=30)["launchRun"]
    if answer["__typename"] != "LaunchRunSuccess":
        reasons = [error["message"] for error in answer.get("errors", [])] or [answer.get("message", answer["__typename"])]
        raise OSError(f"{job} was not launched: {'; '.join(reasons)}")
    return str(answer["run"]["runId"])


_RESULT = """query Result($run: ID!) { runOrError(runId: $run) { ... on Run { status tags { key value } } }
    logsForRun(runId: $run) { ... on EventConnection { events { ... on ExecutionStepFailureEvent {
        error { message } failureMetadata { description } } } } } }"""


def result(address: str, run_id: str) -> RunResult:
    """What has become of a run so far."""
    data = graphql(address, _RESULT, {"run": run_id})
    run = data["runOrError"]
    tags = {tag["key"]: tag["value"] for tag in run.get("tags", [])}
    failures = [event for event in data["logsForRun"].get("events", []) if event]
    sentences = [(event.get("failureMetadata") or {}).get("description") or (event.get("error") or {}).get("message") for event in failures]
    refused = tags.get(OUTCOME) == "refused"
    told = [tags.get(WHY)] if refused else []
    return RunResult(run_id, run.get("status", "NOT_FOUND"), refused, next((s for s in [*told, *sentences] if s), ""))


def wait(address: str, run_id: str, seconds: float = 120) -> RunResult:
    """The result once the run has ended; after `seconds` as it then is."""
    deadline = time.monotonic() + seconds
    while (found := result(address, run_id)).status not in FINISHED and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


_RUNS = """query Runs($system: String!, $version: String!) { runsOrError(limit: 10, filter: {tags: [
    {key: "mlops/system", value: $system}, {key: "dagster/partition", value: $version}]}) { ... on Runs { results { runId status } } } }"""


def runs_over(address: str, system: str, version: str) -> list[dict[str, Any]] | None:
    """The latest runs of a system's jobs over a dataset version, newest first; None while Dagster does not answer."""
    try:
        data = graphql(address, _RUNS, {"system": system, "version": version}, timeout=5)
    except OSError:
        return None
    return list(data["runsOrError"].get("results", []))


def is_run_worker(pid: int) -> bool:
    """Dagster's code server starts each run as a spawned process; its other helper only tracks semaphores."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("spawn_main" in word for word in process.cmdline())
    return False
