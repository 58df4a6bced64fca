"""A sheet of rows, as text: read from Google Sheets (`gspread`) or from a CSV export, kept as JSON lines, written as CSV for people.

Cells are text, in and out: what is read is what people see in the cell, and a CSV that we write is never evaluated by a spreadsheet.
Belongs here: reading whole or not at all, with a sentence why not. Does not belong here: what a cell means (the systems), where the sheet
lands (`ingest/objects.py`), Dagster.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.characters import same_name
from mlops_assets.files import LFS_REASON, is_lfs_pointer
from mlops_assets.unambiguous import loads, named_twice

if TYPE_CHECKING:
    import gspread

SHEETS_URL: Final = "https://sheets.googleapis.com"
#: What an answer of the service may be for it to be asked again: too slow, over the quota, or broken for a moment.
TRY_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 32.0
ANSWER_SECONDS: Final = 30.0
#: A sheet of several pages is read until two readings agree: an inserted row between two pages would be lost, or read twice.
READINGS: Final = 4
MAX_CELL: Final = 50_000
"""Characters: as many as a cell of Google Sheets can have."""
ENCODINGS: Final = ("utf-8", "cp949")
DELIMITERS: Final = {",": "commas", "\t": "tabs", ";": "semicolons"}
#: What a spreadsheet takes for the beginning of a formula, and what we have put before it already.
_EVALUATED: Final = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED: Final = re.compile(r"'+[=+\-@\t\r]")

#: What a spreadsheet shows in place of a value that it has not got yet, without the dots behind it: Sheets and Excel, in the languages that
#: their users see.
_COMPUTING_WORDS: Final = (
    "loading|loading data|calculating|computing|fetching|fetching data|working|connecting|importing|refreshing|"
    "requesting data|please wait|로드 중|로딩 중|로딩중|로딩|불러오는 중|불러오는 중입니다|데이터 로드 중|"
    "데이터를 불러오는 중|데이터를 로드하는 중|계산 중|계산하는 중|가져오는 중|연결 중|새로 고치는 중|새로고침 중|읽는 중|"
    "읽어오는 중|読み込み中|読み込み中です|読み込んでいます|ロード中|計算中|計算しています|正在加载|加载中|正在載入|載入中|"
    "正在计算|正在計算|计算中|wird geladen|laden|lade|ladevorgang läuft|chargement|chargement en cours|"
    "chargement des données|cargando|cargando datos|carregando|a carregar|caricamento|caricamento in corso|bezig met laden|"
    "загрузка|загружается|завантаження|ładowanie|wczytywanie|trwa ładowanie|načítání|načítava sa|yükleniyor|đang tải|memuat|"
    "memuatkan|กำลังโหลด|läser in|laddar|indlæser|laster inn|laster|ladataan|betöltés|φόρτωση|se încarcă|зареждане|"
    "učitavanje|nalaganje|טוען|בטעינה|جارٍ التحميل|جار التحميل|लोड हो रहा है"
)
_COMPUTING: Final = frozenset(map(same_name, _COMPUTING_WORDS.split("|")))
_LONGEST_NOTICE: Final = 80
_COMPUTING_ERROR: Final = re.compile(r"#(getting_data|busy!|n/a (n/a|requesting data|review).*)")
#: What it shows in place of one that it cannot have: `#REF!` in any language, an error of LibreOffice, a column too narrow for its number.
_ERROR: Final = re.compile(
    r"#+|#[¡¿]?[^\W\d_][\w/.]*[!?]|#[¡¿]?[^\W\d_]+/0[!?]?|#(n/a|n/v|n/d|nv|nd|nt)\b.{0,40}|(err|오류|fehler|erreur):\d{3}"
    r"|error:? ?#\w.{0,40}"
)

Row = tuple[int, tuple[str, ...]]
Grid = list[list[str]]


@lru_cache(maxsize=1 << 16)
def is_computing(cell: str) -> bool:
    """Whether a spreadsheet is still computing the value: a later reading will have it."""
    said = same_name(cell).rstrip(".…·。⋯ ") if len(cell) <= _LONGEST_NOTICE else ""
    return said.strip(" \"'[]()<>") in _COMPUTING or _COMPUTING_ERROR.fullmatch(said) is not None


@lru_cache(maxsize=1 << 16)
def is_error(cell: str) -> bool:
    """Whether a spreadsheet shows that it has no value: an error of a formula, or that it is still computing."""
    if len(cell) > _LONGEST_NOTICE:
        return not cell.strip("#")
    return _ERROR.fullmatch(same_name(cell)) is not None or is_computing(cell)


class SheetError(RuntimeError):
    """The sheet cannot be read. The message says what, why and what to do; nothing of it was used."""


@dataclass(frozen=True)
class Table:
    """A sheet: its header, and every row that has a cell, under its number in the sheet (the header is row 1).

    A row is as long as the header; longer only where there is text beyond it.
    """

    header: tuple[str, ...]
    rows: tuple[Row, ...]


def table_of(grid: Iterable[Sequence[Any]], name: str, required: Sequence[str] = ()) -> Table:
    """The table in `grid` (its first row is the header).

    Raises:
        SheetError: nothing in it, no row below the header, or a header with a name missing or there twice.
    """
    rows = iter(grid)
    header = _trimmed(next(rows, ()))
    found: list[Row] = []
    for number, cells in enumerate(rows, start=2):
        texts = _trimmed(cells, strip=False)
        if texts:
            found.append((number, (*texts, *[""] * (len(header) - len(texts)))))
    if not header and not found:
        raise SheetError(f"{name} is empty: is it the right worksheet? / 시트가 비어 있습니다.")
    if not header or not all(header):
        column = header.index("") + 1 if header else 1
        raise SheetError(
            f"{name}: column {column} has no name in row 1. The first row must name every column. / 첫 행은 열 이름이어야 합니다."
        )
    if twice := named_twice(header):
        raise SheetError(f"{name}: in row 1 {twice} / 중복된 열이 있습니다.")
    if (shown := next((cell for cell in header if is_error(cell)), None)) is not None:
        raise SheetError(f"{name}: row 1 shows {shown!r} where a column's name should be: the next reading may have it. Mend its formula.")
    if missing := [column for column in required if column not in header]:
        raise SheetError(
            f"{name} has no column {', '.join(missing)}; row 1 has {', '.join(header)[:300]}. Put the header back, or name the columns "
            "in `columns` of the configuration. / 필요한 열이 없습니다."
        )
    if not found:
        raise SheetError(f"{name} has a header and no row below it. / 시트에 데이터가 없습니다.")
    return Table(header, tuple(found))


def _trimmed(cells: Sequence[Any], *, strip: bool = True) -> tuple[str, ...]:
    """As text, without the empty cells at the end."""
    texts = [str(cell).strip() if strip else str(cell) for cell in cells]
    while texts and not texts[-1].strip():
        texts.pop()
    return tuple(texts)


# --- Google Sheets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoogleSheet:
    """Which sheet, and how it is read.

    Attributes:
        worksheet: its title; None: the first one.
        credentials: the service account's JSON file.
        url: another endpoint than Google's.
        page_rows: rows of one request.
        seconds: after so long reading is given up.
    """

    spreadsheet: str
    worksheet: str | None
    credentials: Path
    url: str = SHEETS_URL
    page_rows: int = 1000
    max_rows: int = 500_000
    seconds: float = 120.0


def read_google(
    sheet: GoogleSheet,
    required: Sequence[str] = (),
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Table:
    """The sheet as it is now, whole.

    Raises:
        SheetError
    """
    import gspread

    email = _service_account(sheet.credentials)
    deadline = clock() + sheet.seconds
    with _errors(sheet, email):
        client = gspread.service_account(
            sheet.credentials,
            scopes=["https://www.googleapis.com/auth/spreadsheets.readonly"],
            http_client=_patient_client(sheet.url, deadline, sleep, clock),
        )
        client.set_timeout(ANSWER_SECONDS)
        book = client.open_by_key(sheet.spreadsheet)
        title = _opened(book, sheet).title
        grid = _computed(lambda: _at_rest(book, sheet), deadline, sleep, clock)
    return table_of(grid, f"the worksheet {title!r}", required)


def _at_rest(book: gspread.Spreadsheet, sheet: GoogleSheet) -> Grid:
    """Every row, of one state of the worksheet. Raises SheetError: it changes all the time."""
    worksheet = _opened(book, sheet)
    grid = _grid(worksheet, sheet.page_rows)
    for _ in range(READINGS):
        # Its size is asked for anew: a row that was inserted meanwhile pushes the last one beyond the size that was read to.
        before, again = grid, _opened(book, sheet)
        if again.row_count == worksheet.row_count <= sheet.page_rows:
            return grid
        worksheet, grid = again, _grid(again, sheet.page_rows)
        if grid == before:
            return grid
    raise SheetError(f"{worksheet.title} changes while it is read: somebody works in it. The next reading will do.")


def _computed(read: Callable[[], Grid], deadline: float, sleep: Callable[[float], None], clock: Callable[[], float]) -> Grid:
    """What `read` gives, read again with growing pauses while a cell of it is still being computed and there is time.

    What is not done then is given as it is: one formula that hangs must not keep the others away. Cleaning turns its row away.
    """
    wait = FIRST_WAIT
    while True:
        grid = read()
        if not any(is_computing(cell) for row in grid for cell in row) or clock() + wait > deadline:
            return grid
        sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _opened(book: gspread.Spreadsheet, sheet: GoogleSheet) -> gspread.Worksheet:
    """The worksheet with its size now. Raises SheetError: it is too long."""
    worksheet = book.get_worksheet(0) if sheet.worksheet is None else book.worksheet(sheet.worksheet)
    if worksheet.row_count > sheet.max_rows:
        raise SheetError(
            f"{worksheet.title} has {worksheet.row_count} rows, the limit is {sheet.max_rows}: remove the empty ones, or raise `max_rows`"
        )
    return worksheet


def _grid(worksheet: gspread.Worksheet, page_rows: int) -> list[list[str]]:
    """Every row, in bounded reads. The service leaves empty rows at the end of a range out, so a short page is not the last one."""
    from gspread.utils import ValueRenderOption, rowcol_to_a1

    grid: list[list[str]] = []
    for first in range(1, worksheet.row_count + 1, page_rows):
        last = min(first + page_rows - 1, worksheet.row_count)
        # As formatted: what people see. Unformatted, a time is a fraction of a day; as formulas, a result is not there at all.
        page = worksheet.get(f"A{first}:{rowcol_to_a1(last, worksheet.col_count)}", value_render_option=ValueRenderOption.formatted)
        grid += [[] for _ in range(first - 1 - len(grid))]
        grid += [[str(cell) for cell in row] for row in page]
    return grid


def _service_account(path: Path) -> str:
    """The e-mail address of the service account, which the sheet must be shared with."""
    again = "Make one in the Google Cloud console (IAM, service accounts, keys, JSON) and set MLOPS_SHEETS_CREDENTIALS to it."
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["client_email"])
    except OSError as error:
        raise SheetError(f"the service account's file {path} cannot be read ({error.strerror}). {again}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SheetError(f"{path} is not the JSON file of a service account. {again}") from None


def _patient_client(url: str, deadline: float, sleep: Callable[[float], None], clock: Callable[[], float]) -> Any:
    """A gspread HTTPClient for `url` that asks again, with growing pauses, until `deadline`.

    gspread's own BackOffHTTPClient knows no deadline, and does not look at Retry-After.
    """
    import gspread
    from requests.exceptions import RequestException

    class Patient(gspread.HTTPClient):
        def request(self, method: str, endpoint: str, *args: Any, **kwargs: Any) -> Any:
            endpoint = endpoint.replace(SHEETS_URL, url.rstrip("/"), 1)
            wait = FIRST_WAIT
            while True:
                try:
                    return super().request(method, endpoint, *args, **kwargs)
                except gspread.exceptions.APIError as error:
                    if error.response.status_code not in TRY_AGAIN:
                        raise
                    wanted = _retry_after(error.response.headers.get("Retry-After"))
                    problem: Exception = error
                except RequestException as error:
                    wanted, problem = 0.0, error
                pause = max(wait, wanted)
                if clock() + pause > deadline:
                    raise problem
                sleep(pause)
                wait = min(2 * wait, LONGEST_WAIT)

    return Patient


def _retry_after(value: str | None) -> float:
    return float(value) if value is not None and value.isdecimal() else 0.0


@contextmanager
def _errors(sheet: GoogleSheet, email: str) -> Iterator[None]:
    """What the libraries raise, as sentences."""
    import gspread
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    forbidden = SheetError(
        f"the sheet {sheet.spreadsheet} may not be read by {email} (403): share it with that address (as viewer), and enable the "
        f"Google Sheets API in its project. / 시트를 {email} 계정과 공유하세요."
    )
    try:
        yield
    except PermissionError:
        raise forbidden from None
    except gspread.SpreadsheetNotFound:
        raise SheetError(
            f"there is no sheet {sheet.spreadsheet} (404): take the id between /d/ and /edit of its address. / 시트를 찾을 수 없습니다."
        ) from None
    except gspread.WorksheetNotFound:
        raise SheetError(
            f"the sheet {sheet.spreadsheet} has no worksheet {sheet.worksheet!r}: look at the tabs' names. / 워크시트를 찾을 수 없습니다."
        ) from None
    except gspread.exceptions.APIError as error:
        status, said = error.response.status_code, str(error.error.get("message", ""))[:200]
        if status == 403:
            raise forbidden from None
        problem = "the quota is used up" if status == 429 else "the service failed"
        tried = f", also after {sheet.seconds:.0f} s of trying" if status in TRY_AGAIN else ""
        raise SheetError(
            f"{problem} ({status} {said}){tried}: nothing was read, the next reading tries again. / 구글 시트를 읽지 못했습니다."
        ) from None
    except GoogleAuthError as error:
        raise SheetError(
            f"{email} could not sign in ({str(error)[:200]}): is its key still valid? Make a new one. / 서비스 계정 인증에 실패하였습니다."
        ) from None
    except RequestException as error:
        raise SheetError(
            f"{sheet.url} does not answer ({type(error).__name__}), also after {sheet.seconds:.0f} s of trying. "
            "/ 구글 시트에 연결할 수 없습니다."
        ) from None
    except (
        gspread.exceptions.GSpreadException,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        # The library trusts the shape of every answer: a proxy, or another service at that address, has its own.
        raise SheetError(
            f"{sheet.url} answers, but not as the Sheets API does ({type(error).__name__}): nothing was read. Is MLOPS_SHEETS_URL right, "
            "and no proxy in between? / 구글 시트의 응답이 아닙니다."
        ) from None


# --- CSV ------------------------------------------------------------------------------------------------------------------------


def decode(data: bytes, name: str, encoding: str | None = None) -> str:
    """Text of an export: by its byte order mark, as `encoding`, or else UTF-8 and then CP949 (what Excel writes in Korea).

    Raises:
        SheetError: it is none of them.
    """
    for mark, marked in ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if data.startswith(mark):
            encoding = marked
    if is_lfs_pointer(data):
        raise SheetError(f"{name} is {LFS_REASON}")
    problem: UnicodeDecodeError | None = None
    for candidate in (encoding,) if encoding else ENCODINGS:
        try:
            return data.decode(candidate)
        except UnicodeDecodeError as error:
            problem = problem or error
            if candidate == "utf-8" and (broken := _broken_utf8(data)):
                raise SheetError(
                    f"{name} is UTF-8 with {broken} broken characters, the first at byte {error.start}: save it as UTF-8 again. "
                    "/ UTF-8로 저장해 주세요."
                ) from None
    tried = encoding or " nor ".join(ENCODINGS)
    raise SheetError(f"{name} is neither {tried} (byte {problem.start if problem else 0}): save it as UTF-8. / UTF-8로 저장해 주세요.")


def _broken_utf8(data: bytes) -> int:
    """How many characters of a text in UTF-8 are broken; 0 when it is in another encoding as a whole: of that, few read as UTF-8."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(count for character, count in Counter(text).items() if character > "\x7f") - broken
    return broken if whole > 4 * broken else 0


def read_csv(data: bytes, name: str, required: Sequence[str] = (), *, encoding: str | None = None, max_rows: int = 500_000) -> Table:
    """The table of a CSV export; what `csv_bytes` escaped is what it was.

    Raises:
        SheetError
    """
    return table_of(_csv_grid(data, name, required, encoding, max_rows), name, required)


def _csv_grid(data: bytes, name: str, required: Sequence[str], encoding: str | None, max_rows: int) -> Grid:
    text = decode(data, name, encoding)
    csv.field_size_limit(MAX_CELL * 4)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(text, name, required))
    grid: Grid = []
    try:
        for cells in reader:
            grid.append([unescape(cell) for cell in cells])
            if len(grid) > max_rows + 1:
                raise SheetError(f"{name} has more than {max_rows} rows: raise `max_rows`, or split it")
    except csv.Error as error:
        raise SheetError(f"{name} is not CSV (line {reader.line_num}: {error}): export the sheet again. / CSV 형식이 아닙니다.") from None
    return grid


def _delimiter(text: str, name: str, required: Sequence[str]) -> str:
    """What stands between the cells: the one mark by which row 1 has the required columns. By default a comma."""
    found = {}
    for mark, called in DELIMITERS.items():
        with suppress(csv.Error, StopIteration):
            header = [cell.strip() for cell in next(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark))]
            if required and set(required) <= set(header):
                found[mark] = called
    if len(found) > 1:
        raise SheetError(f"{name}: row 1 has the columns whether {' or '.join(found.values())} separate them. Export it again as CSV.")
    return next(iter(found), ",")


def fetch_csv(
    location: str,
    required: Sequence[str] = (),
    *,
    encoding: str | None = None,
    max_bytes: int = 1024**3,
    max_rows: int = 500_000,
    seconds: float = 120.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Table:
    """The table behind an address (`https://`: a sheet's published export) or in a file.

    Raises:
        SheetError
    """
    deadline = clock() + seconds

    def read() -> Grid:
        data = _download(location, max_bytes, deadline, sleep, clock) if remote else _file(location, max_bytes)
        if len(data) > max_bytes:
            raise SheetError(f"{location} has more than {max_bytes} bytes: raise MLOPS_MAX_OBJECT_BYTES")
        return _csv_grid(data, location, required, encoding, max_rows)

    remote = re.match(r"https?://", location) is not None
    return table_of(_computed(read, deadline, sleep, clock) if remote else read(), location, required)


def _file(path: str, max_bytes: int) -> bytes:
    """Up to one byte more than `max_bytes`."""
    try:
        with Path(path).open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise SheetError(f"{path} cannot be read ({error.strerror}): correct `csv` in the configuration") from None


def _download(url: str, max_bytes: int, deadline: float, sleep: Callable[[float], None], clock: Callable[[], float]) -> bytes:
    import httpx

    wait = FIRST_WAIT
    while True:
        wanted = 0.0
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=ANSWER_SECONDS) as answer:
                if answer.is_success:
                    if "html" in answer.headers.get("content-type", ""):
                        raise SheetError(
                            f"{url} answers with a page, not with CSV: publish the sheet (File, Share, Publish to web, CSV), "
                            "or use a service account"
                        )
                    body = bytearray()
                    for chunk in answer.iter_bytes():
                        body += chunk
                        if len(body) > max_bytes:
                            break
                    return bytes(body)
                problem = f"answers {answer.status_code}"
                wanted = _retry_after(answer.headers.get("retry-after"))
                final = answer.status_code not in TRY_AGAIN
        except httpx.HTTPError as error:
            problem, final = f"does not answer ({type(error).__name__})", False
        pause = max(wait, wanted)
        if final or clock() + pause > deadline:
            raise SheetError(f"{url} {problem}: nothing was read. / 시트를 읽지 못했습니다.")
        sleep(pause)
        wait = min(2 * wait, LONGEST_WAIT)


def escape(cell: str) -> str:
    """`cell` so that no spreadsheet takes it for a formula: an apostrophe before what one would begin with. `unescape` takes it away."""
    return f"'{cell}" if _EVALUATED.match(cell) else cell


def unescape(cell: str) -> str:
    return cell[1:] if _ESCAPED.match(cell) else cell


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """CSV for people: UTF-8 with the mark that Excel wants, and no cell is a formula."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    for row in (header, *rows):
        writer.writerow([escape("" if cell is None else str(cell)) for cell in row])
    return out.getvalue().encode("utf-8-sig")


# --- as it lands ----------------------------------------------------------------------------------------------------------------


def dump(table: Table) -> bytes:
    """JSON lines: the header, then (number, cells). No spreadsheet opens it, so nothing in it needs escaping."""
    lines = [list(table.header), *([number, list(cells)] for number, cells in table.rows)]
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines).encode()


def load(data: bytes, name: str, required: Sequence[str] = ()) -> Table:
    """What `dump` wrote.

    Raises:
        SheetError: it is something else.
    """
    refused = SheetError(f"{name} is not a sheet as `mlops` keeps it: land it as CSV")
    try:
        header, *rows = [loads(line) for line in data.decode("utf-8").split("\n")[:-1]]
        table = Table(tuple(header), tuple((number, tuple(cells)) for number, cells in rows))
        "".join(cell for cells in (table.header, *(cells for _, cells in table.rows)) for cell in cells).encode()
    except (ValueError, TypeError, RecursionError):
        raise refused from None
    if any(len(cells) < len(table.header) for _, cells in table.rows):
        raise refused
    numbers = [number for number, _ in table.rows]
    if not all(isinstance(part, list) for part in (header, *rows)) or not all(type(number) is int for number in numbers):
        raise refused
    if not all(1 < number < 2**31 for number in numbers) or any(one >= other for one, other in pairwise(numbers)):
        raise refused
    table_of([table.header, *(cells for _, cells in table.rows)], name, required)
    return table
