"""disposal_policy from the Google Sheet to an answer: the midnight job, the real landing sensor, Spark, the table, the server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from sqlalchemy import Engine, text

from mlops_assets.cli import main
from mlops_assets.definitions import build_defs
from mlops_assets.sample_data import policy_rows, write_policies
from mlops_assets.settings import REPOSITORY, Settings
from mlops_assets_tests.ingest.sheets_api import EMAIL, Sheets, running_sheets

BOOK = "1a-book"


@pytest.fixture
def sheets() -> Iterator[Sheets]:
    with running_sheets() as service:
        service.books[BOOK] = {"정책": policy_rows(50)}
        yield service


@pytest.fixture
def platform(dagster_settings: Settings, sheets: Sheets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    configs = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", configs)
    values = yaml.safe_load((configs / "disposal_policy.yaml").read_text(encoding="utf-8"))
    values["sheet"] |= {"spreadsheet": BOOK, "worksheet": "정책", "page_rows": 20}
    (configs / "disposal_policy.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    credentials = sheets.credentials(tmp_path / "account.json")
    changes = {"configs": configs, "sheets_credentials": credentials, "sheets_url": sheets.url}
    for name, value in changes.items():
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(value))
    return dagster_settings.model_copy(update=changes)


class Platform:
    """What the daemon does: the job of the schedule, the sensor's ticks, the runs that it asks for."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.definitions, self.instance = build_defs(settings), instance

    def midnight(self) -> dg.ExecuteInProcessResult:
        schedule = self.definitions.resolve_schedule_def("disposal_policy_collect_nightly")
        assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 0 * * *", "Asia/Seoul")
        job = self.definitions.resolve_job_def(schedule.job_name)
        return job.execute_in_process(instance=self.instance, raise_on_error=False)

    def arrivals(self) -> list[dg.ExecuteInProcessResult]:
        sensor = self.definitions.resolve_sensor_def("disposal_policy_landing")
        resources = {name: self.definitions.resources[name] for name in ("store", "postgres")}
        with dg.build_sensor_context(instance=self.instance, resources=resources) as context:
            done = sensor(context)
        results = []
        for request in done.run_requests or []:
            self.instance.add_dynamic_partitions("disposal_policy_dataset_version", [request.partition_key])
            job = self.definitions.resolve_job_def("disposal_policy_pipeline")
            tags = {"dagster/run_key": request.run_key}
            results.append(
                job.execute_in_process(instance=self.instance, partition_key=request.partition_key, raise_on_error=False, tags=tags)
            )
        return results


def failure(result: dg.ExecuteInProcessResult) -> str:
    data = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert data.user_failure_data is not None, data.error_display_string
    return str(data.user_failure_data.description)


def test_the_sheet_of_every_midnight_becomes_policies_that_are_answered(
    platform: Settings, sheets: Sheets, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastapi.testclient import TestClient

    from mlops_assets.serving.app import create_app

    def current() -> list[tuple[object, ...]]:
        with engine.connect() as connection:
            return [
                tuple(row)
                for row in connection.execute(text("SELECT xmin::text, id, key, version FROM policy WHERE valid_to IS NULL ORDER BY id"))
            ]

    with dg.DagsterInstance.get() as instance:
        daemon = Platform(platform, instance)
        assert daemon.midnight().success
        (first,) = daemon.arrivals()
        assert first.success, [event.step_failure_data.error_display_string for event in first.get_step_failure_events()]
        metadata = first.asset_materializations_for_node("disposal_policy__policy")[0].metadata
        assert metadata["new"].value == 50 and metadata["applied"].value is True
        assert {e.check_name: e.passed for e in first.get_asset_check_evaluations()} == {"contract": True, "row_accounting": True}
        before = current()
        assert daemon.midnight().success and daemon.arrivals() == [], "the same sheet lands nothing"

        # A reading that fails changes nothing, and the run is red with the sentence.
        sheets.forbidden.add(BOOK)
        red = daemon.midnight()
        assert not red.success and "share it with that address" in failure(red) and EMAIL in failure(red)
        sheets.forbidden.clear()
        grid = sheets.books[BOOK]["정책"]
        sheets.books[BOOK]["정책"] = []
        red = daemon.midnight()
        assert not red.success and "is empty" in failure(red)
        assert daemon.arrivals() == [] and current() == before

        # So does a sheet that lost most of its rows; it is refused, not broken.
        sheets.books[BOOK]["정책"] = grid[:20]
        assert daemon.midnight().success
        (refused,) = daemon.arrivals()
        assert not refused.success and "19 policies where 50 hold now" in failure(refused)
        run = instance.get_run_by_id(refused.run_id)
        assert run is not None and run.tags["mlops/outcome"] == "refused"
        assert current() == before
        assert daemon.midnight().success and daemon.arrivals() == [], "the same broken sheet is not told every night"

        # People mend it, and change a rule.
        changed = [list(row) for row in grid]
        changed[1][14] = "=NOW()"
        changed[2][14] = "17:00"
        sheets.books[BOOK]["정책"] = changed
        assert daemon.midnight().success
        (later,) = daemon.arrivals()
        assert later.success
        metadata = later.asset_materializations_for_node("disposal_policy__policy")[0].metadata
        assert [metadata[name].value for name in ("new", "changed", "gone", "unchanged", "kept")] == [0, 1, 0, 48, 1]
        assert len(set(before) & set(current())) == 49, "49 rows were not touched: a formula in a cell ends no policy"

        # By hand: the same path.
        write_policies(tmp_path / "by_hand", rows=50)
        with pytest.raises(SystemExit) as ended:
            main(["land", "disposal_policy", str(tmp_path / "by_hand" / "policies.csv"), "--dataset-version", "by-hand"])
        assert ended.value.code == 0
        (by_hand,) = daemon.arrivals()
        assert by_hand.success
    with TestClient(create_app(platform, "champion")) as client:
        answer = client.get("/policies", params={"region": "대구 달성군", "limit": 1000}).json()
        assert answer["policies"] and answer["dataset_version"] == "by-hand"
        held = client.get("/policies", params={"region": "대구 달성군", "at": "2020-01-01"}).json()
        assert held["policies"] == []
    with pytest.raises(SystemExit) as ended:
        main(["land", "disposal_polcy", str(tmp_path), "--dataset-version", "x"])
    assert ended.value.code == 2 and "disposal_policy" in capsys.readouterr().err
