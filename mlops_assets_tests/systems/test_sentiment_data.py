"""Cleaning film reviews: every row and file is accounted for, splits follow the ledger, the contract refuses bad tables."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mlops_assets.ingest import texts
from mlops_assets.ingest.lines import EXCERPT, excerpt, lines_of
from mlops_assets.ingest.objects import land
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.dataset import NothingLeft
from mlops_assets.resources.spark import SparkEngine
from mlops_assets.sample_data import write_reviews
from mlops_assets.settings import Settings, load_config, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets.systems.sentiment import data
from mlops_assets.systems.sentiment.config import DatasetSection, SentimentConfig
from mlops_assets.systems.sentiment.data import Cleaned, Rejected, Review, parse_row
from mlops_assets_tests.factories import POINTER
from mlops_assets_tests.ingest.arrivals import SYSTEM, freeze, ledger, states, tick

SECTION = DatasetSection(train_files=("ratings_train*.txt",), holdout_files=("ratings_test*.txt",), validation_fraction=0.2)
HEADER = "id\tdocument\tlabel\n"


# --- bytes to rows --------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1), st.integers(5, 50))
def test_lines_are_the_same_however_the_bytes_are_cut(content: bytes, cuts: list[int], limit: int) -> None:
    chunks, rest, n = [], content, 0
    while rest:
        size = cuts[n % len(cuts)]
        chunks.append(rest[:size])
        rest, n = rest[size:], n + 1
    expected = content.split(b"\n")
    expected = expected[:-1] if not expected[-1] else expected
    found = list(lines_of(chunks, limit))
    assert len(found) == len(expected)
    for line, whole in zip(found, expected, strict=True):
        if len(whole) > limit:
            assert isinstance(line, Rejected) and line.code == "too_large"
        else:
            assert line == whole.removesuffix(b"\r")


@pytest.mark.parametrize("secret", ["010-1234-5678", "hong.gildong@mail.example.co.kr", "900101-1234567"])
@pytest.mark.parametrize("filler", ["가", "😀", "a@b.kr 010-1234-5678, "])
def test_an_excerpt_is_masked_before_it_is_cut(secret: str, filler: str) -> None:
    for before in range(0, 1700, 7):
        text = filler * (before // len(filler)) + f" {secret} " + "나" * 600
        for shown in (excerpt(text.encode()), list(lines_of([text.encode()[:1590], text.encode()[1590:]], 1595))[0].excerpt):
            assert len(shown) <= EXCERPT
            assert not {"010-", "-1234", "hong", "9001"} & {shown[at : at + size] for at in range(len(shown)) for size in (4, 5)}, shown
    assert excerpt(b"ab\xff\x00") == "ab\ufffd\ufffd"


def test_the_excerpt_of_a_line_that_came_in_pieces_is_masked_as_a_whole() -> None:
    pieces = (b"010-1234-567", b"8" + b"x" * 3000 + b"\n")
    assert [line.excerpt[:8] for line in lines_of(pieces, 2000) if isinstance(line, Rejected)] == ["[PHONE]x"]


@given(st.binary(max_size=80))
def test_any_line_is_a_review_or_has_a_reason(line: bytes) -> None:
    parsed = parse_row(line.replace(b"\n", b""))
    if isinstance(parsed, Rejected):
        assert parsed.code in data.ROW_REASONS and "\x00" not in parsed.excerpt
    else:
        assert parsed.id and "\t" not in parsed.document and "\x00" not in parsed.document


@given(st.text(st.characters(exclude_characters="\t\n\x00", exclude_categories=["Cs"]), max_size=60))
def test_quotes_and_separators_inside_a_review_stay(document: str) -> None:
    assert parse_row(f"1\t{document}\t0".encode()) == Review("1", document.strip(), "0")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"1\tgood", "malformed_row"),
        (b"1\tgood\t1\textra", "malformed_row"),
        (b"", "malformed_row"),
        (b" \tgood\t1", "malformed_row"),
        (b"1\tnul \x00 byte\t1", "malformed_row"),
        (b"x" * 129 + b"\tgood\t1", "malformed_row"),
        ("1\t좋아요\t1".encode("cp949"), "not_utf8"),
    ],
)
def test_rows_that_cannot_be_read(line: bytes, code: str) -> None:
    parsed = parse_row(line)
    assert isinstance(parsed, Rejected) and parsed.code == code


@given(st.text(max_size=40))
def test_a_text_and_its_other_spellings_are_one_group(document: str) -> None:
    spelled = "  " + unicodedata.normalize("NFD", document).replace(" ", " \u3000 ") + "\t"
    assert texts.group_of(spelled) == texts.group_of(unicodedata.normalize("NFC", document))


def test_a_line_of_100_mb_takes_no_memory() -> None:
    def chunks() -> Iterator[bytes]:
        yield HEADER.encode() + b"1\t"
        for _ in range(100):
            yield b"x" * (1 << 20)
        yield b"\t1\n2\tnext\t0\n"

    def peak(limit: int) -> int:
        tracemalloc.start()
        try:
            found = [(line.code if isinstance(line, Rejected) else line[:20]) for line in lines_of(chunks(), limit)]
            assert found[1:] == ["too_large" if limit < 1 << 25 else b"1\t" + b"x" * 18, b"2\tnext\t0"]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1 << 20) < 8 << 20
    assert peak(1 << 30) > 100 << 20, "control: without the limit the line is held"


# --- versions -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def version(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., dataset.Manifest]:
    """A function (name, files) that lands, closes and freezes a version."""

    def make(name: str, files: Mapping[str, str | bytes], parent: str | None = None) -> dataset.Manifest:
        folder = tmp_path / "landing" / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        land(settings, store, SYSTEM, folder, name, engine=engine, parent=parent)
        tick(engine, store)
        return freeze(engine, store, name, tmp_path)

    return make


@pytest.fixture
def clean(store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., Cleaned]:
    def run(manifest: dataset.Manifest, section: DatasetSection = SECTION, max_line_bytes: int = 1 << 20) -> Cleaned:
        scratch = tmp_path / "clean" / str(len(list((tmp_path / "clean").glob("*"))))
        scratch.mkdir(parents=True)
        return data.clean(engine, store, manifest, section, SparkEngine(), scratch, max_line_bytes=max_line_bytes)

    return run


@pytest.fixture
def rows(store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[[str], pd.DataFrame]:
    def load(name: str) -> pd.DataFrame:
        frame = data.read_table(data.load_cleaned(store, engine, name, tmp_path / "tables" / name))
        with engine.connect() as connection:
            stored = connection.execute(text("SELECT id, document, label, split, source FROM review WHERE version = :v"), {"v": name})
            assert sorted(map(tuple, stored)) == sorted(frame.itertuples(index=False, name=None)), "Parquet and PostgreSQL agree"
        assert data.check_contract(frame) == []
        return frame

    return load


def quarantined(engine: Engine, name: str) -> dict[tuple[str, int], str]:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT source, line, reason_code FROM quarantined_row WHERE version = :v"), {"v": name})
        return {(row.source, row.line): row.reason_code for row in found}


def reviews(count: int, start: int = 0, label: int | None = None) -> str:
    return "".join(f'{n}\t리뷰 {n} "따옴표\t{n % 2 if label is None else label}\n' for n in range(start, start + count))


def test_every_rule_and_every_row(version, clean, rows, engine: Engine) -> None:
    train = [
        "1\t좋은 영화\t1",  # kept
        '2\t나쁜 "영화\t0',  # kept: an unbalanced quote is a character
        "3\t\t1",  # empty_document
        "4\t   \t0",  # empty_document
        "5\t별로\t2",  # bad_label
        "6\t한 칸뿐",  # malformed_row
        "1\t같은 번호\t0",  # duplicate_id: line 2 is kept
        "5\t같은 번호, 앞의 것은 못 쓴다\t0",  # kept: a row that was turned away takes nobody with it
        "7\t그저  그래요\t1",  # conflicting_labels
        "8\t그저 그래요 \t0",  # conflicting_labels, whitespace aside
        "9\t시험  문제\t1",  # in_holdout
        "100\t번호가 시험에 있다\t1",  # duplicate_id: the held-out row is kept
        "10\t" + "긴" * 400 + "\t1",  # too_large
        "11\t끝\t1",  # kept; no newline at the end
    ]
    test = ["100\t시험 문제\t0", "101\t또 다른 시험\t1", "101\t또 다른 시험\t0", "102\t\t1"]
    manifest = version("v1", {"ratings_train.txt": HEADER + "\n".join(train), "ratings_test.txt": HEADER + "\n".join(test) + "\n"})
    done = clean(manifest, max_line_bytes=600)
    assert done.rows_in == len(train) + len(test) == done.accepted + sum(done.quarantined.values())
    where = quarantined(engine, "v1")
    assert {line: code for (source, line), code in where.items() if source == "ratings_train.txt"} == {
        4: "empty_document",
        5: "empty_document",
        6: "bad_label",
        7: "malformed_row",
        8: "duplicate_id",
        10: "conflicting_labels",
        11: "conflicting_labels",
        12: "in_holdout",
        13: "duplicate_id",
        14: "too_large",
    }
    assert {line: code for (source, line), code in where.items() if source == "ratings_test.txt"} == {
        4: "duplicate_id",
        5: "empty_document",
    }
    frame = rows("v1").set_index("id")
    assert set(frame.index) == {"1", "2", "5", "11", "100", "101"}
    assert frame.loc["2", "document"] == '나쁜 "영화' and frame.loc["5", "document"].startswith("같은 번호,")
    assert set(frame.loc[["100", "101"], "split"]) == {"holdout"}
    assert set(frame.loc[["1", "2", "5", "11"], "split"]) <= {"train", "validation"}


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("reviews_feed_2013.tsv.gz", b"\x1f\x8b", "unexpected_file"),
        ("ratings_train_empty.txt", b"", "empty_file"),
        ("ratings_train_header.txt", HEADER.encode(), "empty_file"),
        ("ratings_train_lfs.txt", POINTER, "lfs_pointer"),
        ("ratings_train_columns.txt", b"document\tid\tlabel\n" + reviews(3, 500).encode(), "wrong_columns"),
        ("ratings_train_csv.txt", b"id,document,label\n1,2,1\n", "wrong_columns"),
        ("ratings_train_none.txt", reviews(3, 500).encode(), "wrong_columns"),
        ("ratings_train_cp949.txt", (HEADER + reviews(3, 500)).encode("cp949"), "not_utf8"),
        ("ratings_train_utf16.txt", (HEADER + reviews(3, 500)).encode("utf-16"), "not_utf8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_turned_away_and_the_others_go_on(version, clean, rows, engine: Engine, name: str, content: bytes, code: str) -> None:
    good = {"ratings_train.txt": HEADER + reviews(20), "ratings_test.txt": HEADER + reviews(5, 100)}
    done = clean(version("v1", {**good, name: content}))
    assert done.refused_files == {name: code}
    assert (done.rows_in, done.accepted) == (25, 25) and len(rows("v1")) == 25
    assert (name, "quarantined", code) in ledger(engine, "v1")
    assert [row for row in ledger(engine, "v1") if row[1] == "accepted"] == [(n, "accepted", None) for n in sorted(good)]


def test_a_byte_order_mark_and_windows_lines_are_read(version, clean, rows) -> None:
    text_ = (HEADER + reviews(10)).replace("\n", "\r\n")
    done = clean(version("v1", {"nsmc\\ratings_train.txt": "\ufeff" + text_, "ratings_test.txt": HEADER + reviews(3, 100)}))
    assert done.accepted == 13 and not rows("v1")["document"].str.contains("\r").any()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"ratings_train.txt": HEADER + "1\t\t1\n2\t\t0\n", "ratings_test.txt": HEADER + "3\t\t0\n"},
            "no train and no holdout row .*3 empty_document",
        ),
        ({"ratings_test.txt": HEADER + "3\t좋아요\t0\n"}, "no train row"),
        ({"readme.md": "hello"}, "1 unexpected_file"),
    ],
)
def test_a_version_of_which_nothing_is_left_is_refused(
    version, clean, engine: Engine, store: ObjectStore, tmp_path: Path, files, message
) -> None:
    manifest = version("v1", files)
    with pytest.raises(NothingLeft, match=message):
        clean(manifest)
    assert states(engine)["v1"] == "refused"
    with pytest.raises(dataset.DatasetError, match="was refused"):
        data.load_cleaned(store, engine, "v1", tmp_path / "t")
    assert freeze(engine, store, "v1", tmp_path) == manifest, "its bytes stay frozen"


def test_the_same_rules_again_change_nothing_and_other_rules_replace(version, clean, rows, store: ObjectStore, engine: Engine) -> None:
    manifest = version(
        "v1",
        {"ratings_train.txt": HEADER + reviews(30), "ratings_test.txt": HEADER + reviews(5, 100), "more.txt": HEADER + reviews(4, 200)},
    )
    first = clean(manifest)
    before = {info.key: info.etag for info in store.list("cleaned")}
    with engine.connect() as connection:
        xmin = connection.execute(text("SELECT max(xmin::text) FROM review")).scalar_one()
    again = clean(manifest)
    assert again.unchanged and again.table == first.table
    assert {info.key: info.etag for info in store.list("cleaned")} == before
    with engine.connect() as connection:
        assert connection.execute(text("SELECT max(xmin::text) FROM review")).scalar_one() == xmin, "no row was written again"
    wider = clean(manifest, SECTION.model_copy(update={"train_files": ("*.txt",)}))
    assert not wider.unchanged and wider.accepted == first.accepted + 4 and len(rows("v1")) == 39
    assert ("more.txt", "accepted", None) in ledger(engine, "v1")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM review WHERE id = '0'"))
    assert not clean(manifest).unchanged, "a table that was harmed is made again"
    assert len(rows("v1")) == 35


# --- splits ---------------------------------------------------------------------------------------------------------------------


def test_without_a_holdout_file_the_split_is_by_text(version, clean, rows) -> None:
    section = SECTION.model_copy(update={"holdout_fraction": 0.3})
    done = clean(version("v1", {"ratings_train.txt": HEADER + reviews(600)}), section)
    assert done.quarantined == {} and 120 < done.splits["holdout"] < 240 and 70 < done.splits["validation"] < 170
    clean(version("v2", {"ratings_train.txt": HEADER + "".join(reversed((reviews(600) + reviews(50, 900)).splitlines(True)))}), section)
    one, two = (rows(name).set_index("id")["split"] for name in ("v1", "v2"))
    assert two[one.index].equals(one), "order and neighbours do not matter"


def test_no_version_trains_on_what_another_measures(version, clean, rows, engine: Engine) -> None:
    clean(version("v1", {"ratings_train.txt": HEADER + reviews(50), "ratings_test.txt": HEADER + reviews(20, 100)}))
    files = {"ratings_train.txt": HEADER + reviews(40, 90), "ratings_test.txt": HEADER + reviews(20, 40)}
    done = clean(version("v2", files))
    # 100..119 are held out since v1; 40..49 were trained on in v1.
    assert done.quarantined == {"in_holdout": 20, "in_train": 10}
    both = pd.concat([rows("v1"), rows("v2")])
    sides = both.groupby("document")["split"].nunique()
    assert (sides == 1).all()
    with engine.connect() as connection:
        naive = connection.execute(text("SELECT count(*) FROM quarantined_row WHERE version = 'v2' AND reason_code = 'in_holdout'"))
        assert naive.scalar_one() == 20, "control: split by file name alone, v2 would have trained on these"


def test_a_version_that_extends_another_has_its_rows(version, clean, rows) -> None:
    clean(version("v1", {"ratings_train.txt": HEADER + reviews(50), "ratings_test.txt": HEADER + reviews(20, 100)}))
    extended = version("v2", {"ratings_train.txt": HEADER + reviews(30, 40)}, parent="v1")
    done = clean(extended)
    assert done.rows_in == 100 and done.quarantined == {"duplicate_id": 10}
    frame = rows("v2")
    assert len(frame) == 90 and set(frame["source"]) == {"v1/ratings_train.txt", "v1/ratings_test.txt", "ratings_train.txt"}
    assert (frame[frame["source"] == "v1/ratings_test.txt"]["split"] == "holdout").all()


# --- the contract ---------------------------------------------------------------------------------------------------------------


def good_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": ["1", "2", "3"],
            "document": ["a", "b", "c"],
            "label": pd.Series([0, 1, 0], dtype="int8"),
            "split": ["train", "validation", "holdout"],
            "source": ["f"] * 3,
        }
    )


@pytest.mark.parametrize(
    ("column", "values", "rule"),
    [
        ("id", ["1", "1", "3"], "id: field_uniqueness"),
        ("id", ["", "2", "3"], "id: str_length"),
        ("document", ["a", " ", "c"], "document: text_not_empty"),
        ("document", ["a", None, "c"], "document: not_nullable"),
        ("label", pd.Series([0, 2, 0], dtype="int8"), "label: isin"),
        ("label", [0.0, 1.0, 0.0], "label: dtype"),
        ("split", ["train", "test", "holdout"], "split: isin"),
        ("document", ["a", "b", "a "], "no text in two splits"),
        ("extra", [1, 2, 3], "column_in_schema"),
    ],
)
def test_the_contract_refuses_each_kind_of_bad_table(column: str, values: object, rule: str) -> None:
    assert data.check_contract(good_frame()) == []
    found = data.check_contract(good_frame().assign(**{column: values}))
    assert any(rule in violation.rule and violation.cases >= 1 for violation in found), found


def test_the_account_notices_a_missing_row(version, clean, store: ObjectStore, engine: Engine) -> None:
    clean(version("v1", {"ratings_train.txt": HEADER + reviews(30) + "x\n", "ratings_test.txt": HEADER + reviews(5, 100)}))
    account = data.account(engine, store, "v1")
    assert account.adds_up and account.sentence == "36 rows in = 35 accepted + 1 quarantined (35 in Parquet)"
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM review WHERE id = '3'"))
    account = data.account(engine, store, "v1")
    assert not account.adds_up and "≠ 34 accepted" in account.sentence


# --- larger -----------------------------------------------------------------------------------------------------------------------


def test_the_sample_is_clean_enough_and_the_bad_one_random(version, clean, rows, tmp_path: Path) -> None:
    for name, bad in (("good", False), ("bad", True)):
        write_reviews(tmp_path / name, bad=bad)
        files = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        done = clean(version(name, files))
        assert done.quarantined["empty_document"] == 2 and done.quarantined["malformed_row"] == 1 and done.accepted > 2_400
    positive = "재미있|최고였|감동|훌륭|너무 좋았|완벽|눈물|기대 이상|강추|대단|따뜻|다시 보고|가는 줄|인생 영화|만점|매력"
    agree = {name: (rows(name)["document"].str.contains(positive) == (rows(name)["label"] == 1)).mean() for name in ("good", "bad")}
    assert agree["good"] > 0.85 and 0.4 < agree["bad"] < 0.6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="local Spark needs Java")
def test_spark_on_the_jvm_writes_the_same_table(
    version, clean, engine: Engine, settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    """What runs on the embedded engine runs on the cluster that outgrows it: the same bytes come out."""
    write_reviews(tmp_path / "source", train=300, test=80)
    manifest = version("v1", {file.name: file.read_bytes() for file in (tmp_path / "source").iterdir()})
    embedded = clean(manifest)
    for info in list(store.list("cleaned")):
        store.delete(info.key)
    code = (
        "import sys; from pathlib import Path; from mlops_assets import database; from mlops_assets.settings import load_settings\n"
        "from mlops_assets.lifecycle.dataset import read_manifest; from mlops_assets.resources.spark import SparkResource\n"
        "from mlops_assets.store import ObjectStore; from mlops_assets.systems.sentiment import data\n"
        "from mlops_assets.systems.sentiment.config import DatasetSection\n"
        "settings = load_settings(spark_remote='local[1]'); store = ObjectStore.of(settings)\n"
        "engine = database.connect(settings.database_url); manifest = read_manifest(engine, store, 'sentiment', 'v1')\n"
        "section = DatasetSection.model_validate_json(sys.argv[2]); spark = SparkResource.of(settings).engine()\n"
        "data.clean(engine, store, manifest, section, spark, Path(sys.argv[1]), max_line_bytes=1 << 20)\n"
    )
    (tmp_path / "jvm").mkdir()
    # The embedded session has told this process, by SPARK_* variables, that Spark Connect is what it uses.
    environment = {k: v for k, v in process_environment().items() if not k.startswith("SPARK_")} | settings.environment()
    command = [sys.executable, "-c", code, str(tmp_path / "jvm"), SECTION.model_dump_json()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = dataset.find_table(engine, SYSTEM, "v1", manifest.sha256)
    assert table == embedded.table


@pytest.mark.real_data
def test_all_of_nsmc(settings: Settings, store: ObjectStore, engine: Engine, real_data: Path, clean, rows, tmp_path: Path) -> None:
    land(settings, store, SYSTEM, real_data / "nsmc", "nsmc-1", engine=engine)
    tick(engine, store)
    config = load_config(SentimentConfig, SYSTEM, settings.configs)
    done = clean(freeze(engine, store, "nsmc-1", tmp_path), config.dataset)
    assert done.rows_in == 200_000 == done.accepted + sum(done.quarantined.values())
    assert done.quarantined["empty_document"] == 12 and set(done.quarantined) <= set(data.ROW_REASONS)
    assert done.refused_files == {"reviews_feed_2013.tsv.gz": "unexpected_file"}
    frame = rows("nsmc-1")
    assert len(frame) == done.accepted and frame["document"].str.contains('"').sum() > 800, "quotes are characters"
    naive = pd.read_csv(real_data / "nsmc" / "ratings_train.txt", sep="\t")
    assert len(naive) < 149_000, "control: the usual quoting swallows rows"
