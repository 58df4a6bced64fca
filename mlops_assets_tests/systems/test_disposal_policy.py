"""Disposal policies: every row accounted for and every repair named; the table's history written once, in order, atomically."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mlops_assets import crash
from mlops_assets.ingest import objects, sheet
from mlops_assets.ingest.rows import Rejected, find_cleaned
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.dataset import DatasetError, NothingLeft
from mlops_assets.resources.spark import SparkEngine
from mlops_assets.sample_data import policy_rows, write_policies
from mlops_assets.settings import Settings, process_environment, read_yaml, validate
from mlops_assets.store import ObjectStore
from mlops_assets.systems.disposal_policy import collect, data, history, rows
from mlops_assets.systems.disposal_policy.config import STANDARD_COLUMNS, PolicyConfig
from mlops_assets_tests.factories import POINTER

HEADER, *SAMPLE = policy_rows(40)
AT = {name: HEADER.index(column) for name, column in STANDARD_COLUMNS.items()}
TYPES = {"거점수거": "거점수거", "문전수거": "문전수거", "거점수거+문전수거": "거점수거+문전수거", "문전수거+거점수거": "거점수거+문전수거"}


def config(settings: Settings) -> PolicyConfig:
    path = settings.configs / "disposal_policy.yaml"
    return validate(PolicyConfig, read_yaml(path), str(path))


def changed(row: Sequence[str], **cells: str) -> list[str]:
    done = list(row)
    for name, cell in cells.items():
        done[AT[name]] = cell
    return done


def cleaned(**cells: str) -> rows.Row | Rejected:
    return rows.clean_row({name: changed(SAMPLE[0], **cells)[at] for name, at in AT.items()}, TYPES)


# --- one row --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "name", "value", "found"),
    [
        ({"general_days": "일+월+수"}, "general_days", "월+수+일", []),
        ({"general_days": "매일"}, "general_days", "월+화+수+목+금+토+일", ["day_spelling"]),
        ({"general_days": "월~금"}, "general_days", "월+화+수+목+금", ["day_spelling"]),
        ({"general_days": "금-월"}, "general_days", "월+금+토+일", ["day_spelling"]),
        ({"general_days": "매주 월, 수요일"}, "general_days", None, "bad_days"),
        ({"general_days": "월, 수요일"}, "general_days", "월+수", ["day_spelling"]),
        ({"general_days": "평일·토요일"}, "general_days", "월+화+수+목+금+토", ["day_spelling"]),
        ({"general_days": "일+월+일"}, "general_days", "월+일", ["repeated_day"]),
        ({"general_days": "격주 월"}, "general_days", None, "bad_days"),
        ({"general_days": "5일"}, "general_days", None, "bad_days"),
        ({"general_days": "", "food_days": "-", "recycling_days": "없음"}, "general_days", None, "bad_days"),
        ({"general_end": "24:00"}, "general_end", "24:00", ["time_24"]),
        ({"general_end": "00:00"}, "general_end", "24:00", ["midnight_end"]),
        ({"general_start": "24:00"}, "general_start", "00:00", ["time_24"]),
        ({"general_start": "오후 8:30:00"}, "general_start", "20:30", ["time_spelling"]),
        ({"general_start": "오전 12:05"}, "general_start", "00:05", ["time_spelling"]),
        ({"general_start": "9시"}, "general_start", "09:00", ["time_spelling"]),
        ({"general_start": "24:01"}, "general_start", None, "bad_time"),
        ({"general_start": "20:60"}, "general_start", None, "bad_time"),
        ({"general_start": "일몰 후"}, "general_start", None, "bad_time"),
        ({"general_start": "오후 13:00"}, "general_start", None, "bad_time"),
        ({"bulky_end": ""}, "bulky_end", None, ["one_time_missing"]),
        ({"bulky_start": "15:00", "bulky_end": "15:00"}, "bulky_end", "15:00", ["no_duration"]),
        ({"collection_type": "문전수거+거점수거"}, "collection_type", "거점수거+문전수거", ["type_spelling"]),
        ({"collection_type": "방문"}, "collection_type", None, "bad_collection_type"),
        ({"sido": "서울"}, "sido", "서울특별시", ["region_spelling"]),
        ({"sido": "전라북도"}, "sido", "전라북도", []),
        ({"sido": "한양"}, "sido", None, "bad_region"),
        ({"sigungu": "없음"}, "sigungu", None, "bad_region"),
        ({"sigungu": "중구(종량제)"}, "sigungu", "중구", ["region_note"]),
        ({"place": "\u3000집  앞\n"}, "place", "집 앞", ["whitespace"]),
        ({"place": "\u1112\u1161\u11ab 앞"}, "place", "한 앞", ["not_nfc"]),
        ({"place": "초등하?입구"}, "place", "초등하?입구", ["lost_character"]),
        ({"place": "=1+1"}, "place", "=1+1", []),
        *(
            ({"general_method": cell}, "general_method", None, "formula_error")
            for cell in (
                *(
                    "#REF!",
                    "#N/A",
                    "＃N/A",
                    " #n/a ",
                    "#N/A N/A",
                    "#N/A!",
                    "#NV",
                    "#SPILL!",
                    "#CALC!",
                    "#BLOCKED!",
                    "#GETTING_DATA",
                    "#BUSY!",
                ),
                *(
                    "#DIV/0!",
                    "#¡DIV/0!",
                    "#¡REF!",
                    "#이름?",
                    "#값!",
                    "#WERT!",
                    "#VALEUR!",
                    "#FIELD!",
                    "#UNKNOWN!",
                    "Err:502",
                    "########",
                    "#",
                ),
                *(
                    "Loading...",
                    "Loading…",
                    "loading",
                    "로드 중...",
                    "로드 중…",
                    "불러오는 중...",
                    "読み込んでいます...",
                    "正在加载...",
                    "Cargando...",
                ),
                *("Wird geladen...", "Chargement...", "กำลังโหลด...", "\u200bLoading...\u200b"),
            )
        ),
        *(
            ({"general_method": cell}, "general_method", cell, [])
            for cell in ("#101동 앞", "#3", "101#", "로드 중앙 앞", "Loading dock", "#주차장 옆", "#101/102동", "신고!", "봉투는?")
        ),
        ({"place": "\x00"}, "place", None, "malformed_row"),
        ({"no_collection": "1899-12-30"}, "no_collection", None, ["excel_zero"]),
        ({"bulky_place": "해당없음"}, "bulky_place", None, ["placeholder"]),
        ({"phone": "(054) 930 6193"}, "phone", "054-930-6193", ["phone_spelling"]),
        ({"phone": "+82-2-123-4567"}, "phone", "02-123-4567", ["phone_spelling"]),
        ({"phone": "1588-1234"}, "phone", "1588-1234", []),
        ({"phone": "930-6193"}, "phone", None, ["bad_phone"]),
        ({"data_date": "2020. 7. 10."}, "data_date", "2020-07-10", ["date_spelling"]),
        ({"data_date": "2020-02-30"}, "data_date", None, "bad_date"),
        ({"data_date": ""}, "data_date", None, "bad_date"),
    ],
)
def test_a_cell_is_unified_and_named_or_its_row_is_turned_away(cells: dict[str, str], name: str, value: str | None, found: Any) -> None:
    row = cleaned(**cells)
    if isinstance(found, str):
        assert isinstance(row, Rejected) and row.code == found and found in rows.REASONS
    else:
        assert isinstance(row, rows.Row)
        assert row.values[name] == value and [f.rule for f in row.findings] == found and set(found) <= set(rows.FINDINGS)


@given(st.dictionaries(st.sampled_from(list(STANDARD_COLUMNS)), st.text(max_size=8)))
def test_any_row_is_a_policy_that_stays_the_same_or_has_a_reason(cells: dict[str, str]) -> None:
    row = cleaned(**cells)
    if isinstance(row, Rejected):
        assert row.code in rows.REASONS and "\x00" not in row.excerpt
    else:
        again = rows.clean_row({name: value or "" for name, value in row.values.items()}, TYPES)
        assert isinstance(again, rows.Row) and again.values == row.values and again.place_key == row.place_key


def test_a_place_is_one_place_however_it_is_spelled() -> None:
    keys = [
        cleaned(**cells) for cells in ({"place": "집 앞", "sido": "강원도"}, {"place": "집앞", "sido": "강원특별자치도"}, {"place": "집뒤"})
    ]
    first, second, other = (row.place_key for row in keys if isinstance(row, rows.Row))
    assert first == second != other


# --- a version ------------------------------------------------------------------------------------------------------------------


class Versions:
    """Lands sheets, and freezes, cleans and applies them as the pipeline does."""

    def __init__(self, settings: Settings, store: ObjectStore, engine: Engine, folder: Path) -> None:
        self.settings, self.store, self.engine, self.folder = settings, store, engine, folder
        self.config = config(settings)

    def arrive(self, version: str, content: Sequence[Sequence[str]] | bytes, name: str = "policies.csv") -> None:
        path = self.folder / version / name
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else sheet.csv_bytes(HEADER, content))
        objects.land(self.settings, self.store, data.SYSTEM, path, version, engine=self.engine)
        objects.tick(self.engine, self.store, data.SYSTEM, settle_seconds=3600)

    def freeze(self, version: str) -> dataset.Manifest:
        limit = self.settings.max_object_bytes
        return dataset.freeze(self.engine, self.store, data.SYSTEM, version, max_object_bytes=limit, scratch=self.folder)

    def clean(self, version: str) -> data.Cleaned:
        manifest = self.freeze(version)
        return data.clean(self.engine, self.store, manifest, self.config.cleaning, SparkEngine(), self.folder / f"scratch-{version}")

    def apply(self, version: str, **options: Any) -> history.Applied:
        manifest, table = find_cleaned(self.engine, self.store, data.SYSTEM, version)
        options = {"max_loss_share": self.config.history.max_loss_share, **options}
        return history.apply(self.engine, manifest, table, data.read_policies(self.store, table), **options)

    def run(self, version: str, content: Sequence[Sequence[str]]) -> history.Applied:
        self.arrive(version, content)
        self.clean(version)
        return self.apply(version)

    def quarantined(self, version: str) -> dict[int, str]:
        query = "SELECT line, reason_code FROM quarantined_row WHERE system = :s AND version = :v ORDER BY line"
        return dict(self.rows(query, s=data.SYSTEM, v=version))

    def findings(self, version: str) -> list[tuple[int, str, str]]:
        query = "SELECT line, field, rule FROM row_finding WHERE system = :s AND version = :v ORDER BY 1, 2, 3"
        return self.rows(query, s=data.SYSTEM, v=version)

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), parameters)]

    def table(self) -> list[Any]:
        """All of `policy`, also the hidden columns that change with any write."""
        return self.rows("SELECT xmin::text, ctid::text, * FROM policy ORDER BY id")


@pytest.fixture
def versions(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Versions:
    (tmp_path / "versions").mkdir()
    return Versions(settings, store, engine, tmp_path / "versions")


def test_every_row_is_accepted_or_turned_away_with_its_reason(versions: Versions) -> None:
    base = SAMPLE[0]
    own = changed(base, place="두 규칙", data_date="2026-05-01", general_days="월+수")
    content = [
        base,  # 2
        base,  # 3: the same
        changed(base, place="옛것", data_date="2026-01-01"),  # 4: older than 5
        changed(base, place="옛 것", data_date="2026-02-01"),
        own,  # 6, and 7 for other days, are two rules of one place
        changed(own, general_days="금"),
        changed(own, general_days="금+토"),  # 8: what holds on 금 then?
        changed(own, general_days="일", provider_code="other"),  # 9: another provider, as new
        changed(base, place="틀린 날", general_days="격주"),  # 10
        [*base, "", "넘침"],  # 11
        changed(base, place="=1+1", phone="1234"),  # 12: kept, its number is not
    ]
    versions.arrive("v1", content)
    done = versions.clean("v1")
    expected = {3: "duplicate_row", 4: "superseded", 8: "conflicting_rule", 9: "conflicting_rule", 10: "bad_days", 11: "malformed_row"}
    assert versions.quarantined("v1") == expected
    assert versions.findings("v1") == [(12, "phone", "bad_phone")]
    assert (done.rows_in, done.accepted, done.quarantined) == (11, 5, dict(sorted(Counter(expected.values()).items())))
    account = data.account(versions.engine, versions.store, "v1")
    assert account.adds_up and account.sentence == "11 rows in = 5 accepted + 6 quarantined"
    assert data.contract(versions.store, versions.engine, "v1", versions.folder) == (5, [])
    assert versions.clean("v1").unchanged
    with versions.engine.begin() as connection:
        connection.execute(text("DELETE FROM quarantined_row WHERE line = 3"))
    assert not data.account(versions.engine, versions.store, "v1").adds_up, "control"


def test_two_rules_of_one_place_keep_their_keys_when_the_sheet_is_sorted_otherwise(versions: Versions) -> None:
    two = [changed(SAMPLE[0], general_days=days, general_start=start) for days, start in (("화+목", "15:00"), ("금", "20:00"))]
    assert versions.run("v1", [*two, SAMPLE[1]]).new == 3
    assert versions.run("v2", [SAMPLE[1], *reversed(two)]).sentence == "0 new, 0 changed, 0 gone, 3 as they were"


def test_dirty_rows_are_handed_to_people_as_a_csv_without_formulas(versions: Versions) -> None:
    versions.arrive(
        "v1", [SAMPLE[0], changed(SAMPLE[1], place="=cmd|' /C calc'!A0", general_days="@월"), changed(SAMPLE[2], bulky_place="-")]
    )
    versions.clean("v1")
    written = versions.store.get(data.report_key(versions.freeze("v1")))
    header, *lines = csv.reader(io.StringIO(written.decode("utf-8-sig"), newline=""))
    assert tuple(header) == data.REPORT_HEADER
    assert [(line[1], line[3]) for line in lines] == [("3", "bad_days"), ("4", "placeholder")]
    assert lines[1][5] == "'-" and not any(cell.startswith(("=", "+", "-", "@")) for line in lines for cell in line)


@pytest.mark.parametrize("encoding", ["cp949", "utf-8-sig"])
def test_the_sample_lands_in_the_encoding_of_excel(versions: Versions, encoding: str) -> None:
    write_policies(versions.folder / "sample", rows=30)
    content = (versions.folder / "sample" / "policies.csv").read_bytes().decode("cp949")
    versions.arrive("v1", content.encode(encoding))
    done = versions.clean("v1")
    assert (done.rows_in, done.accepted) == (36, 33) and set(done.quarantined) == {"duplicate_row", "bad_days", "bad_time"}
    places = data.read_policies(versions.store, done.table)["place"].to_pylist()
    assert "=1+1 앞" in places


def test_a_version_of_which_nothing_is_left_is_refused_and_says_why(versions: Versions) -> None:
    versions.arrive("v1", b"\xff\xfe\xff")
    versions.arrive("v2", [changed(SAMPLE[0], data_date="")])
    versions.arrive("v3", b"x", name="readme.txt")
    versions.arrive("v4", POINTER)
    for version, why in (("v1", "unreadable"), ("v2", "1 bad_date"), ("v3", "unexpected_file"), ("v4", "lfs_pointer")):
        with pytest.raises(NothingLeft, match=rf"no policy is left of \d rows .*{why}"):
            versions.clean(version)
    assert versions.rows("SELECT DISTINCT state FROM dataset_version") == [("refused",)]
    assert versions.quarantined("v2") == {2: "bad_date"}


@pytest.mark.parametrize(
    ("cells", "rule"),
    [
        ({"general_days": "수+월"}, "general_days"),
        ({"food_days": "월수"}, "food_days: days_joined_by_plus"),
        ({"general_end": "00:00"}, "general_end"),
        ({"general_start": "24:00"}, "general_start"),
        ({"sido": "서울"}, "sido: known_sido"),
        ({"phone": "123"}, "phone"),
        ({"general_days": None, "food_days": None, "recycling_days": None}, "a day for some kind of waste"),
        ({"key": "x"}, "key"),
    ],
)
def test_the_contract_refuses_what_is_wrong(versions: Versions, cells: Mapping[str, str | None], rule: str) -> None:
    import pyarrow as pa

    versions.arrive("v1", SAMPLE[:3])
    table = data.read_policies(versions.store, versions.clean("v1").table)
    frame = table.to_pandas()
    assert data.check_contract(frame) == []
    for name, value in cells.items():
        frame.loc[1, name] = value
    found = data.check_contract(frame)
    assert any(violation.rule.startswith(rule) for violation in found), found
    manifest, published = find_cleaned(versions.engine, versions.store, data.SYSTEM, "v1")
    with pytest.raises(DatasetError, match="breaks the contract"):
        history.apply(
            versions.engine, manifest, published, pa.Table.from_pandas(frame, table.schema, preserve_index=False), max_loss_share=0.2
        )
    assert versions.table() == []


# --- the table and its history --------------------------------------------------------------------------------------------------


def test_only_what_is_new_changed_or_gone_is_written(versions: Versions) -> None:
    assert versions.run("v1", SAMPLE).sentence == "40 new, 0 changed, 0 gone, 0 as they were"
    before = versions.table()
    assert versions.apply("v1").written == 0 and versions.table() == before, "the same version again"
    assert versions.run("v2", SAMPLE).written == 0 and versions.table() == before, "the same sheet again"
    later = [changed(SAMPLE[0], general_start="17:00"), *SAMPLE[2:], changed(SAMPLE[0], place="새 곳")]
    assert versions.run("v3", later).sentence == "1 new, 1 changed, 1 gone, 38 as they were"
    after = {row[2]: row for row in versions.table()}
    assert len(after) == 42 and sum(after[row[2]] == row for row in before) == 38, "38 rows were not touched"
    closed = versions.rows("SELECT content->>'area', closed_by, valid_to FROM policy WHERE valid_to IS NOT NULL ORDER BY id")
    added = versions.rows("SELECT content->>'place', version, valid_from FROM policy WHERE version = 'v3' ORDER BY id")
    assert [(area, by) for area, by, _ in closed] == [("0통", "v3"), ("1통", "v3")] and len({at for _, _, at in closed + added}) == 1
    counts = "SELECT version, new, changed, gone, unchanged FROM policy_version ORDER BY arrived_at"
    assert versions.rows(counts) == [("v1", 40, 0, 0, 0), ("v2", 0, 0, 0, 40), ("v3", 1, 1, 1, 38)]


def test_a_policy_that_comes_back_has_two_times_of_holding(versions: Versions) -> None:
    versions.run("v1", SAMPLE)
    versions.run("v2", SAMPLE[1:])
    assert versions.run("v3", SAMPLE).sentence == "1 new, 0 changed, 0 gone, 39 as they were"
    held = versions.rows("SELECT version, closed_by, valid_from < valid_to FROM policy WHERE content->>'area' = '0통' ORDER BY id")
    assert held == [("v1", "v2", True), ("v3", None, None)]


def test_an_older_version_does_not_rewrite_what_a_newer_one_wrote(versions: Versions) -> None:
    versions.run("v1", SAMPLE)
    versions.arrive("v2", SAMPLE[1:])
    versions.run("v3", [changed(SAMPLE[0], general_start="17:00"), *SAMPLE[1:]])
    before = versions.table()
    versions.clean("v2")
    for version in ("v1", "v2"):
        done = versions.apply(version)
        assert done.superseded_by == "v3" and "older than v3" in done.sentence and done.written == 0
    assert versions.table() == before


def test_a_sheet_that_lost_rows_changes_nothing_unless_people_say_that_it_is_so(versions: Versions) -> None:
    versions.run("v1", SAMPLE)
    before = versions.table()
    with pytest.raises(NothingLeft, match=r"31 policies where 40 hold now: 22% are lost, 20% may be.*accept_loss: true.*9개 줄어"):
        versions.run("v2", SAMPLE[:31])
    assert versions.table() == before and versions.rows("SELECT version FROM policy_version") == [("v1",)]
    assert versions.rows("SELECT version, state FROM dataset_version ORDER BY 1") == [("v1", "frozen"), ("v2", "refused")]
    assert len(versions.rows("SELECT * FROM outbox WHERE payload::text LIKE '%v2%'")) == 1, "people are told, once"
    assert versions.apply("v2", accept_loss=True).gone == 9
    assert versions.run("v3", SAMPLE[:25]).gone == 6, "control: 20 % of what holds now may go"


# --- rows that are turned away --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        {"general_method": "#N/A"},
        {"general_method": "로드 중..."},
        {"general_days": "#SPILL!"},
        {"data_date": "########"},
        {"collection_type": "방문"},
        {"general_start": "일몰 후"},
        {"data_date": "2026-02-30"},
        {"phone": "\x00"},
        # The place itself cannot be read: it may be any that agrees in the rest, or any at all.
        {"place": "#REF!"},
        {"area": "Loading...", "zone": "Loading..."},
        {"sido": "#N/A"},
        {"sigungu": ""},
        dict.fromkeys(STANDARD_COLUMNS, "#N/A"),
    ],
)
def test_a_row_that_is_turned_away_ends_nothing_and_an_absent_one_does(versions: Versions, broken: dict[str, str]) -> None:
    """Naive: what the version does not accept is gone. Each of these ended five policies that still held."""
    places = [changed(row, zone=f"{number}권역") for number, row in enumerate(SAMPLE)]
    versions.run("v1", places)
    before = versions.table()
    done = versions.run("v2", [*(changed(row, **broken) for row in places[:5]), *places[5:]])
    assert done.gone == 0 and (done.changed, done.kept, done.unchanged) == (0, 5, 35) and "5 kept although not in it" in done.sentence
    assert versions.table() == before and versions.rows("SELECT kept FROM policy_version ORDER BY arrived_at") == [(0,), (5,)]
    assert versions.apply("v2").written == 0
    written = versions.store.get(data.report_key(versions.freeze("v2"))).decode("utf-8-sig")
    assert written.count("what held at its place before stays") == 5
    # The next version has them again, one changed; the last one is absent, and only it ends.
    mended = [changed(places[0], general_method="새 방법"), *places[1:-1]]
    assert versions.run("v3", mended).sentence == "0 new, 1 changed, 1 gone, 38 as they were"


def test_what_cannot_be_read_keeps_the_places_that_it_may_be_and_no_other(versions: Versions) -> None:
    base = SAMPLE[0]
    here = [changed(base, zone=zone, place=place) for zone, place in (("1권역", "앞"), ("1권역", "뒤"), ("2권역", "앞"), ("3권역", "앞"))]
    versions.run("v1", [*here, *SAMPLE[1:]])
    done = versions.run("v2", [changed(base, zone="1권역", place="#N/A"), *SAMPLE[1:]])
    assert (done.kept, done.gone) == (2, 2), "both places of 1권역 may be it; 2권역 and 3권역 are absent"
    torn = [*SAMPLE[1:-1], [*SAMPLE[-1], "넘침"]]
    done = versions.run("v3", torn)
    assert (done.kept, done.gone) == (3, 0), "of a row with more cells than columns nobody knows which place it is"


def test_a_file_that_cannot_be_read_ends_nothing(versions: Versions) -> None:
    versions.run("v1", SAMPLE)
    folder = versions.folder / "v2"
    folder.mkdir()
    (folder / "a.csv").write_bytes(sheet.csv_bytes(HEADER, SAMPLE[:35]))
    (folder / "b.csv").write_bytes(sheet.csv_bytes([*HEADER[:-1], HEADER[0]], SAMPLE[35:]))
    objects.land(versions.settings, versions.store, data.SYSTEM, folder, "v2", engine=versions.engine)
    objects.tick(versions.engine, versions.store, data.SYSTEM, settle_seconds=3600)
    assert versions.clean("v2").refused_files == {"b.csv": "unreadable"}
    assert (versions.apply("v2").kept, versions.apply("v2").written) == (5, 0)


def test_of_several_rules_of_a_place_only_the_broken_one_stays_as_it_was(versions: Versions) -> None:
    monday, tuesday = (changed(SAMPLE[0], zone="홀로", general_days=days) for days in ("월", "화"))
    versions.run("v1", [monday, tuesday, *SAMPLE[1:]])
    done = versions.run("v2", [changed(monday, general_method="#REF!"), changed(tuesday, general_method="새 방법"), *SAMPLE[1:]])
    assert (done.changed, done.kept, done.gone, done.new) == (1, 1, 0, 0)
    query = (
        "SELECT content->>'general_days', content->>'general_method' = '새 방법' FROM policy "
        "WHERE valid_to IS NULL AND content->>'zone' = '홀로' ORDER BY 1"
    )
    assert versions.rows(query) == [("월", False), ("화", True)]
    # The broken row's policy holds on 월; a row that says 월+화 now could be either: the place waits for the row to be mended.
    done = versions.run("v3", [changed(monday, general_method="#REF!"), changed(tuesday, general_days="월+화"), *SAMPLE[1:]])
    assert (done.changed, done.kept, done.gone, done.new) == (0, 2, 0, 0)
    assert versions.rows(query) == [("월", False), ("화", True)]
    # One for other days is new.
    done = versions.run("v4", [changed(monday, general_method="#REF!"), changed(tuesday, general_days="수"), *SAMPLE[1:]])
    assert (done.changed, done.kept, done.gone, done.new) == (0, 2, 0, 1)
    done = versions.run("v5", [changed(tuesday, general_days="수"), *SAMPLE[1:]])
    assert done.gone == 2 and done.kept == 0
    assert [days for days, _ in versions.rows(query)] == ["수"]


def test_a_row_that_another_provider_contradicts_ends_nothing_for_other_days(versions: Versions) -> None:
    versions.run("v1", [changed(SAMPLE[0], general_days="월"), changed(SAMPLE[0], general_days="화"), *SAMPLE[1:]])
    other = changed(SAMPLE[0], general_days="수", provider_code="other")
    done = versions.run("v2", [other, changed(SAMPLE[0], general_days="월"), changed(SAMPLE[0], general_days="화"), *SAMPLE[1:]])
    assert (done.new, done.kept, done.gone) == (1, 2, 0) and set(versions.quarantined("v2").values()) == {"conflicting_rule"}


def test_a_sheet_of_which_a_quarter_is_computing_has_lost_no_row(versions: Versions) -> None:
    versions.run("v1", SAMPLE)
    done = versions.run("v2", [*(changed(row, place="Loading...", general_method="Loading...") for row in SAMPLE[:10]), *SAMPLE[10:]])
    assert (done.kept, done.gone) == (10, 0)


def test_a_table_of_an_older_cleaning_is_not_applied_when_it_left_rows_out(versions: Versions) -> None:
    versions.arrive("v1", [changed(SAMPLE[0], general_method="#N/A"), *SAMPLE[1:]])
    versions.clean("v1")
    manifest, table = find_cleaned(versions.engine, versions.store, data.SYSTEM, "v1")
    older = data.read_policies(versions.store, table).replace_schema_metadata(None)
    with pytest.raises(DatasetError, match="materialize `disposal_policy/cleaned` again"):
        history.apply(versions.engine, manifest, table, older, max_loss_share=0.2)
    assert versions.apply("v1").new == 39


def test_rows_that_a_quote_swallowed_are_no_cell(versions: Versions) -> None:
    versions.run("v1", SAMPLE)
    rows_ = sheet.csv_bytes(HEADER, SAMPLE).decode("utf-8-sig").splitlines()
    # A quote that was forgotten in row 4 is closed by another one in row 6.
    swallowed = [
        *rows_[:3],
        rows_[3].replace(SAMPLE[2][AT["zone"]], '"권역', 1),
        rows_[4],
        rows_[5].replace(SAMPLE[4][AT["zone"]], '권역"', 1),
    ]
    versions.arrive("v2", "\n".join([*swallowed, *rows_[6:]]).encode())
    versions.clean("v2")
    assert versions.quarantined("v2") == {4: "malformed_row"}
    assert (versions.apply("v2").gone, versions.apply("v2").kept) == (0, 3)


# --- one transaction ------------------------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_table_as_it_was(versions: Versions) -> None:
    versions.run("v1", SAMPLE)
    before = versions.table()
    with pytest.raises(Exception, match="duplicate key"), versions.engine.begin() as connection:
        two: list[history.Row] = [("k-1", content_hash, "서울특별시", "중구", "{}") for content_hash in ("one", "other")]
        history.upsert(connection, "v2", [row[:2] for row in two], lambda wanted: two)
    assert versions.table() == before


@pytest.mark.parametrize("point", crash.POLICY_POINTS)
def test_applying_killed_anywhere_is_whole_or_not_at_all(versions: Versions, point: str) -> None:
    versions.run("v1", SAMPLE)
    versions.arrive("v2", [changed(SAMPLE[0], general_start="17:00"), *SAMPLE[1:]])
    versions.clean("v2")
    before = versions.table()
    code = (
        "from mlops_assets.settings import load_settings; from mlops_assets import database; from mlops_assets.store import ObjectStore\n"
        "from mlops_assets.ingest.rows import find_cleaned; from mlops_assets.systems.disposal_policy import data, history\n"
        "settings = load_settings(); store = ObjectStore.of(settings); engine = database.connect(settings.database_url)\n"
        "manifest, table = find_cleaned(engine, store, data.SYSTEM, 'v2')\n"
        "history.apply(engine, manifest, table, data.read_policies(store, table), max_loss_share=0.2)"
    )
    environment = {**process_environment(), **versions.settings.environment(), "MLOPS_CRASH_AT": point}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    written = point == "policy.after_commit"
    assert (versions.table() != before) == written
    assert versions.apply("v2").written == (0 if written else 1)
    assert versions.rows("SELECT count(*) FROM policy WHERE valid_to IS NULL") == [(40,)]


# --- the nightly reading --------------------------------------------------------------------------------------------------------


def test_a_reading_lands_only_what_differs(versions: Versions) -> None:
    from datetime import UTC, datetime

    def reading(hour: int) -> collect.Collected:
        now = datetime(2026, 11, 20, hour, tzinfo=UTC)
        return collect.collect(versions.engine, versions.store, versions.settings, cfg, versions.folder / str(hour), now=now)

    path = versions.folder / "export.csv"
    cfg = versions.config.model_copy(update={"sheet": versions.config.sheet.model_copy(update={"csv": str(path)})})
    assert collect.collect(versions.engine, versions.store, versions.settings, versions.config, versions.folder).version is None
    path.write_bytes(sheet.csv_bytes(HEADER, SAMPLE))
    assert reading(15).version == "20261121-000000", "named by the time in Seoul"
    assert reading(16).why == "the sheet is as in 20261121-000000", "also before it is frozen"
    versions.clean("20261121-000000")
    assert reading(17).version is None
    path.write_bytes(b"half a sh")
    with pytest.raises(sheet.SheetError):
        reading(18)
    path.write_bytes(sheet.csv_bytes(HEADER, [*SAMPLE, changed(SAMPLE[0], place="새 곳")]))
    assert reading(19).version == "20261121-040000"
    objects.tick(versions.engine, versions.store, data.SYSTEM, settle_seconds=3600)
    versions.clean("20261121-040000")
    assert versions.apply("20261121-040000").new == 41
    assert versions.rows("SELECT count(*) FROM dataset_version") == [(2,)], "a failed reading lands nothing"


# --- real data ------------------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_the_real_sheet_with_every_dirty_row_named_and_twelve_changed_rows(versions: Versions, real_data: Path) -> None:
    source = next((real_data / "waste_policy").glob("*.csv"))
    versions.arrive("real-1", source.read_bytes(), name="waste.csv")
    done = versions.clean("real-1")
    quarantined = {"duplicate_row": 1, "superseded": 20}
    assert (done.rows_in, done.accepted, done.quarantined) == (2725, 2704, quarantined)
    assert data.account(versions.engine, versions.store, "real-1").adds_up
    assert data.contract(versions.store, versions.engine, "real-1", versions.folder) == (2704, [])

    # Every dirty cell, found again by other means than the cleaning's own.
    header, *content = csv.reader(io.StringIO(source.read_bytes().decode("cp949"), newline=""))
    at = {name: header.index(column) for name, column in STANDARD_COLUMNS.items()}
    away = set(versions.quarantined("real-1"))
    named = {(line, field) for line, field, _ in versions.findings("real-1")}
    dirty: set[tuple[int, str]] = set()
    for line, row in enumerate(content, start=2):
        cells = {field: row[column] for field, column in at.items()}
        for field, cell in cells.items():
            days, kind = cell.split("+"), field.rpartition("_")[0]
            if (
                cell in ("24:00", "1899-12-30", "-", "해당없음", "해당 없음")
                or (field.endswith("_end") and cell == "00:00")
                or (field.endswith("_end") and cell == cells[f"{kind}_start"] != "")
                or (field.endswith(("_end", "_start")) and not cell and cells[f"{kind}_start"] + cells[f"{kind}_end"])
                or (field.endswith("_days") and len(set(days)) < len(days))
                or (field == "sigungu" and "(" in cell)
                or (field == "collection_type" and cell not in ("거점수거", "문전수거", "기타", "거점수거+문전수거"))
                or cell != cell.strip()
                or "  " in cell
                or "하?" in cell
                or "?빛" in cell
            ):
                dirty.add((line, field))
    assert {(line, field) for line, field in dirty if line not in away} == named
    print(Counter(rule for _, _, rule in versions.findings("real-1")))

    assert versions.apply("real-1").sentence == "2704 new, 0 changed, 0 gone, 0 as they were"
    before = {row[2]: row for row in versions.table()}
    kept = [number for number in range(len(content)) if number + 2 not in away]
    for number in kept[:: len(kept) // 11][:12]:
        content[number][at["general_method"]] += " (개정)"
    versions.arrive("real-2", sheet.csv_bytes(header, content))
    versions.clean("real-2")
    applied = versions.apply("real-2")
    assert (applied.changed, applied.written, applied.unchanged) == (12, 12, 2692)
    after = {row[2]: row for row in versions.table()}
    assert sum(after[number] == row for number, row in before.items()) == 2692 and len(after) == 2704 + 12
    assert versions.apply("real-2").written == 0
