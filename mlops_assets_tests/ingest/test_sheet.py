"""Reading a sheet: real `gspread` against a local Sheets API, CSV exports, and cells that look like formulas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.ingest import sheet
from mlops_assets.ingest.sheet import GoogleSheet, SheetError, Table
from mlops_assets_tests.ingest.sheets_api import EMAIL, Sheets, running_sheets

BOOK = "1a-book"
GRID = [["시도명", "배출장소"], ["서울특별시", "집 앞"], [], ["대구광역시", "=1+1"], ["경기도"]]
ROWS = ((2, ("서울특별시", "집 앞")), (4, ("대구광역시", "=1+1")), (5, ("경기도", "")))


@pytest.fixture
def sheets() -> Iterator[Sheets]:
    with running_sheets() as service:
        service.books[BOOK] = {"배출 '정책'": [list(row) for row in GRID]}
        yield service


@pytest.fixture
def google(sheets: Sheets, tmp_path: Path) -> GoogleSheet:
    return GoogleSheet(BOOK, None, sheets.credentials(tmp_path / "account.json"), url=sheets.url)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def read(google: GoogleSheet, clock: Clock | None = None, **changes: Any) -> Table:
    from dataclasses import replace

    clock = clock or Clock()
    return sheet.read_google(replace(google, **changes), ("시도명",), sleep=clock.sleep, clock=lambda: clock.now)


# --- Google Sheets --------------------------------------------------------------------------------------------------------------


def test_a_sheet_is_read_as_people_see_it(google: GoogleSheet) -> None:
    assert read(google) == Table(("시도명", "배출장소"), ROWS)
    assert read(google, worksheet="배출 '정책'").rows == ROWS


@pytest.mark.parametrize("page_rows", [1, 2, 3, 1000])
def test_pages_make_the_same_sheet_whatever_their_size(sheets: Sheets, google: GoogleSheet, page_rows: int) -> None:
    """Empty rows inside and at the end of a page are left out by the service: a short page is not the last one."""
    sheets.grid_rows = 9
    assert read(google, page_rows=page_rows).rows == ROWS
    pages = sum("/values/" in path for path in sheets.asked)
    assert pages == {1: 18, 2: 10, 3: 6, 1000: 1}[page_rows], "bounded reads; of several pages, two readings that agree"


@pytest.mark.parametrize(
    ("grid_rows", "page_rows", "at"),
    [(8, 2, 3), (0, 2, 1), (0, 1000, 1)],
    ids=["between two pages", "in a full sheet", "in a full sheet of one page"],
)
def test_a_row_inserted_while_it_is_read_is_neither_lost_nor_read_twice(
    sheets: Sheets, google: GoogleSheet, grid_rows: int, page_rows: int, at: int
) -> None:
    """In a full sheet it pushes the last row beyond the size that was read to."""
    sheets.grid_rows = grid_rows
    grid = sheets.books[BOOK]["배출 '정책'"]

    def insert(first: int) -> None:
        if first == at and len(grid) == len(GRID):
            grid.insert(1, ["부산광역시", "새 줄"])

    sheets.before_page = insert
    assert [cells[0] for _, cells in read(google, page_rows=page_rows).rows] == ["부산광역시", "서울특별시", "대구광역시", "경기도"]


def test_a_sheet_that_never_rests_is_given_up(sheets: Sheets, google: GoogleSheet) -> None:
    grid = sheets.books[BOOK]["배출 '정책'"]
    sheets.grid_rows = 100
    sheets.before_page = lambda first: grid[1].__setitem__(1, str(len(sheets.asked)))
    with pytest.raises(SheetError, match="changes while it is read"):
        read(google, page_rows=50)


def test_over_the_quota_it_waits_and_asks_again(sheets: Sheets, google: GoogleSheet) -> None:
    sheets.faults = [(429, {"Retry-After": "7"}), (503, {}), (500, {})]
    clock = Clock()
    assert read(google, clock).rows == ROWS
    assert clock.slept == [7.0, 2.0, 4.0], "as long as the service asks for, else twice as long each time"


def test_a_used_up_quota_is_given_up_in_time(sheets: Sheets, google: GoogleSheet) -> None:
    sheets.faults = [(429, {})] * 100
    clock = Clock()
    with pytest.raises(SheetError, match="quota is used up .429.*after 60 s"):
        read(google, clock, seconds=60.0)
    assert clock.now <= 60 and len(sheets.asked) < 8


@pytest.mark.parametrize("shown", ["Loading...", "로드 중...", "#GETTING_DATA"])
def test_a_sheet_that_is_still_computing_is_read_again(sheets: Sheets, google: GoogleSheet, shown: str) -> None:
    """Naive: what the first reading shows is the sheet."""
    grid = sheets.books[BOOK]["배출 '정책'"]
    grid[1][1] = shown
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.slept) == 3:
            grid[1][1] = "집 앞"

    table = sheet.read_google(google, ("시도명",), sleep=sleep, clock=lambda: clock.now)
    assert table.rows == ROWS and clock.slept == [1.0, 2.0, 4.0]


def test_a_header_that_is_still_computing_is_read_again(sheets: Sheets, google: GoogleSheet) -> None:
    grid = sheets.books[BOOK]["배출 '정책'"]
    grid[0][0], clock = "Loading...", Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        grid[0][0] = "시도명"

    assert sheet.read_google(google, ("시도명",), sleep=sleep, clock=lambda: clock.now).rows == ROWS
    grid[0][0] = "#REF!"
    with pytest.raises(SheetError, match="row 1 shows '#REF!'"):
        read(google)


def test_a_formula_that_hangs_keeps_the_sheet_away_for_a_bounded_time(sheets: Sheets, google: GoogleSheet) -> None:
    sheets.books[BOOK]["배출 '정책'"][1][1] = "Loading..."
    clock = Clock()
    table = read(google, clock, seconds=20.0)
    assert clock.slept == [1.0, 2.0, 4.0, 8.0] and table.rows[0] == (2, ("서울특별시", "Loading..."))
    sheets.books[BOOK]["배출 '정책'"][1][1] = "#N/A"
    again = Clock()
    assert read(google, again).rows[0][1][1] == "#N/A" and again.slept == [], "an error is no computation: it stays"


@pytest.mark.parametrize("where", ["book", "values"])
def test_a_sheet_that_is_not_shared_says_with_whom_to_share_it(sheets: Sheets, google: GoogleSheet, where: str) -> None:
    if where == "book":
        sheets.forbidden.add(BOOK)
    else:
        sheets.before_page = lambda first: sheets.faults.append((403, {}))
        sheets.grid_rows = 100
    with pytest.raises(SheetError, match=f"403.*share it.*{EMAIL} 계정과 공유") as caught:
        read(google, page_rows=50)
    assert EMAIL in str(caught.value) and len(sheets.asked) < 6, "asking again does not help"


def test_what_is_not_there_is_said(sheets: Sheets, google: GoogleSheet, tmp_path: Path) -> None:
    with pytest.raises(SheetError, match="no sheet another.*404"):
        read(google, spreadsheet="another")
    with pytest.raises(SheetError, match="no worksheet '없는 탭'"):
        read(google, worksheet="없는 탭")
    with pytest.raises(SheetError, match="cannot be read.*MLOPS_SHEETS_CREDENTIALS"):
        read(google, credentials=tmp_path / "none.json")
    (tmp_path / "wrong.json").write_text("[]")
    with pytest.raises(SheetError, match="not the JSON file of a service account"):
        read(google, credentials=tmp_path / "wrong.json")
    sheets.token_fault = True
    with pytest.raises(SheetError, match="could not sign in.*key still valid"):
        read(google)


def test_a_service_that_is_away_is_a_sentence(google: GoogleSheet) -> None:
    clock = Clock()
    with pytest.raises(SheetError, match="does not answer|could not sign in"):
        read(google, clock, url="http://127.0.0.1:9", seconds=10.0)


@pytest.mark.parametrize(
    ("grid", "why"),
    [
        ([], "is empty"),
        ([[], []], "is empty"),
        ([["시도명", "배출장소"]], "no row below"),
        ([["시도명", "", "배출장소"], ["a", "b", "c"]], "column 2 has no name"),
        ([[], ["a"]], "column 1 has no name"),
        ([["시도명", "시도명"], ["a", "b"]], "columns 1 and 2 have one name: '시도명'"),
        ([["배출장소"], ["a"]], "no column 시도명"),
    ],
)
def test_a_sheet_that_is_no_table_is_refused(sheets: Sheets, google: GoogleSheet, grid: list[list[str]], why: str) -> None:
    sheets.books[BOOK] = {"탭": grid}
    with pytest.raises(SheetError, match=why):
        read(google)


def test_an_answer_of_another_shape_is_one_sentence(sheets: Sheets, google: GoogleSheet) -> None:
    """A proxy, or another service at that address: the library would let out a KeyError."""
    sheets.faults = [(200, {})]
    with pytest.raises(SheetError, match=r"not as the Sheets API does \(KeyError\): nothing was read"):
        read(google)
    assert read(google).rows == ROWS


def test_a_service_account_of_brackets_is_none(google: GoogleSheet) -> None:
    google.credentials.write_text("[" * 100_000)
    with pytest.raises(SheetError, match="is not the JSON file of a service account"):
        read(google)


# --- CSV ------------------------------------------------------------------------------------------------------------------------

TEXT = '시도명,배출장소\r\n서울특별시,"집 앞\n골목, 오른쪽"\r\n\r\n대구광역시,=1+1\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
def test_exports_are_read_in_every_encoding_that_spreadsheets_write(encoding: str) -> None:
    table = sheet.read_csv(TEXT.encode(encoding), "x.csv", ("시도명",))
    assert table == Table(("시도명", "배출장소"), ((2, ("서울특별시", "집 앞\n골목, 오른쪽")), (4, ("대구광역시", "=1+1"))))


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_an_export_with_other_marks_between_its_cells_is_read_where_only_they_make_the_columns(mark: str) -> None:
    content = f"시도명{mark}배출장소\n서울특별시{mark}집 앞, 왼쪽\n".encode()
    assert sheet.read_csv(content, "x.csv", ("시도명", "배출장소")).rows == ((2, ("서울특별시", "집 앞, 왼쪽")),)
    with pytest.raises(SheetError, match="has no column 시도"):
        sheet.read_csv(content, "x.csv", ("시도",))
    with pytest.raises(SheetError, match=r"whether commas or (tabs|semicolons) separate them"):
        sheet.read_csv(f"a{mark}x,a,{mark}a{mark}\n".encode(), "x.csv", ("a",))


def test_a_file_of_utf8_with_a_broken_byte_is_not_taken_for_cp949() -> None:
    content = TEXT.encode().replace("골".encode(), b"\xea\xb3", 1)
    with pytest.raises(SheetError, match="is UTF-8 with 1 broken characters, the first at byte"):
        sheet.read_csv(content, "x.csv", ("시도명",))


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(SheetError, match="neither utf-8 nor cp949.*byte"):
        sheet.read_csv(b"a,b\n\xff\xff,1\n", "x.csv")
    with pytest.raises(SheetError, match="neither utf-8 .byte 0"):
        sheet.read_csv(TEXT.encode("cp949"), "x.csv", encoding="utf-8")
    with pytest.raises(SheetError, match="not CSV .line"):
        sheet.read_csv(b'a,b\n"never closed,1\n', "x.csv")
    with pytest.raises(SheetError, match="more than 2 rows"):
        sheet.read_csv(b"a\n1\n2\n3\n4\n", "x.csv", max_rows=2)
    with pytest.raises(SheetError, match="cannot be read"):
        sheet.fetch_csv("/nonexistent/x.csv")


def test_a_published_export_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        httpx.Response(429, headers={"retry-after": "3"}),
        httpx.Response(200, content=TEXT.encode(), headers={"content-type": "text/csv"}),
    ]
    real = httpx.Client

    def client(**options: Any) -> httpx.Client:
        options.pop("transport", None)
        return real(**options, transport=httpx.MockTransport(lambda request: answers.pop(0)))

    monkeypatch.setattr("httpx._api.Client", client)
    clock = Clock()
    done = sheet.fetch_csv("https://sheet.test/export?format=csv", sleep=clock.sleep, clock=lambda: clock.now)
    assert len(done.rows) == 2 and clock.slept == [3.0]
    computing = httpx.Response(200, content=TEXT.replace("=1+1", "Loading...").encode(), headers={"content-type": "text/csv"})
    answers += [computing, computing, httpx.Response(200, content=TEXT.encode(), headers={"content-type": "text/csv"})]
    clock = Clock()
    assert sheet.fetch_csv("https://sheet.test/export?format=csv", sleep=clock.sleep, clock=lambda: clock.now) == done
    assert clock.slept == [1.0, 2.0] and answers == [], "read again while it is computing"
    answers.append(httpx.Response(200, content=b"<html>sign in", headers={"content-type": "text/html; charset=utf-8"}))
    with pytest.raises(SheetError, match="a page, not with CSV"):
        sheet.fetch_csv("https://sheet.test/export?format=csv")
    answers.append(httpx.Response(404))
    with pytest.raises(SheetError, match="answers 404"):
        sheet.fetch_csv("https://sheet.test/export?format=csv")
    (tmp_path / "x.csv").write_text(TEXT)
    assert sheet.fetch_csv(str(tmp_path / "x.csv")) == done
    with pytest.raises(SheetError, match="more than 10 bytes"):
        sheet.fetch_csv(str(tmp_path / "x.csv"), max_bytes=10)


# --- formulas -------------------------------------------------------------------------------------------------------------------

cells = st.one_of(
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12),
    st.builds("".join, st.lists(st.sampled_from("'=+-@\t\r\n1,\""), max_size=6)),
)


@given(cells)
def test_no_cell_that_we_write_begins_a_formula_and_none_is_changed(cell: str) -> None:
    written = sheet.escape(cell)
    assert written[:1] not in {"=", "+", "-", "@", "\t", "\r"}
    assert sheet.unescape(written) == cell


@given(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=5))
def test_a_csv_goes_out_and_comes_back_as_it_was(rows: list[list[str]]) -> None:
    data = sheet.csv_bytes(("a", "b"), rows)
    seen = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in seen for cell in row)
    kept = tuple((n, tuple(row)) for n, row in enumerate(rows, start=2) if any(cell.strip() for cell in row))
    if kept:
        assert [tuple(_plain(c) for c in row) for _, row in sheet.read_csv(data, "x").rows] == [
            tuple(_plain(c) for c in row) for _, row in kept
        ]


def _plain(cell: str) -> str:
    """Blank cells at a row's end are empty ones."""
    return cell if cell.strip() else ""


def test_control_plain_csv_would_be_evaluated() -> None:
    out = io.StringIO()
    csv.writer(out).writerow(['=HYPERLINK("http://bad.test")'])
    assert next(csv.reader(io.StringIO(out.getvalue())))[0].startswith("=")


#: A row that is too short, row numbers that are none or go back, half of a character, nesting without end.
NOT_OURS = [
    b'["a","b"]\n[2,["x"]]\n',
    b'["a"]\n{"2":1,"3":["x"]}\n',
    b'["a"]\n["2",["x"]]\n',
    b'["a"]\n[true,["x"]]\n',
    b'["a"]\n[3,["x"]]\n[2,["x"]]\n',
    b'["a"]\n[99999999999,["x"]]\n',
    b'["a"]\n[2,["\\ud800"]]\n',
    b'["a"]\n' + b"[" * 100_000 + b"\n",
]


def test_what_lands_is_read_back_as_it_was() -> None:
    table = Table(("a", "b"), ((2, ("=1", "\u2028줄")), (7, ("'-", "😀"))))
    assert sheet.load(sheet.dump(table), "x") == table
    for wrong in (b"", b"{}\n", b'["a"]\n[2,[1]]\n', b'["a"]\n[2]\n', json.dumps(["a"]).encode(), *NOT_OURS):
        with pytest.raises(SheetError):
            sheet.load(wrong, "x")
