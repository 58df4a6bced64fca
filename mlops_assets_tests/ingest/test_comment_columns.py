"""Columns as applications really have them, in a real MariaDB: each is read rightly, or refused with column, type and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine, text

from mlops_assets import doctor
from mlops_assets.ingest import comments
from mlops_assets.ingest.comment_source import CommentsError, CommentsSection
from mlops_assets.settings import Settings
from mlops_assets_tests.ingest.commented import Application, ask, holes, look_again, look_far_back, section, stored

MARCH = 1772323200  # 2026-03-01 00:00:00 UTC


def table(app: Application, *columns: str, after: str = "") -> None:
    """The table `comments` with these columns instead of those of a well-made application."""
    given = {column.split()[0].strip("`"): column for column in columns}
    usual = {
        "id": "id bigint AUTO_INCREMENT PRIMARY KEY",
        "text": "text text",
        "created_at": "created_at datetime",
        "updated_at": "updated_at datetime",
        "status": "status varchar(20)",
        "flags": "flags varchar(20)",
        "KEY": "KEY (updated_at)",
    }
    app.run("DROP TABLE comments", f"CREATE TABLE comments ({', '.join((usual | given).values())}) {after or 'CHARACTER SET utf8mb4'}")


def row(app: Application, **values: str) -> None:
    """One comment; values are SQL."""
    given = {"text": "'첫 댓글'", "created_at": "'2026-03-01 10:00:00'", "updated_at": "'2026-03-01 10:00:00'", "status": "'ok'"} | values
    app.run(f"INSERT INTO comments ({', '.join(given)}) VALUES ({', '.join(given.values())})")


def read(engine: Engine, settings: Settings, **changes: Any) -> comments.Tick:
    return comments.tick(engine, settings, section(**changes))


def refused(engine: Engine, settings: Settings, **changes: Any) -> str:
    """The one sentence; nothing was stored."""
    with pytest.raises(CommentsError) as caught:
        read(engine, settings, **changes)
    assert stored(engine, changes.get("source", "app")) == {}
    return str(caught.value)


# --- times --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "value", "unit"),
    [
        ("int", MARCH, "seconds"),
        ("int unsigned", MARCH, "seconds"),
        ("bigint", MARCH, "seconds"),
        ("bigint", MARCH * 1000, "milliseconds"),
        ("bigint unsigned", MARCH * 1_000_000, "microseconds"),
        ("decimal(16,3)", MARCH, "seconds"),
    ],
)
def test_numbers_are_times_when_the_section_says_so(
    app: Application, engine: Engine, comment_settings: Settings, declared: str, value: int, unit: str
) -> None:
    table(app, f"updated_at {declared}", f"created_at {declared}")
    row(app, created_at=str(value), updated_at=str(value))
    said = refused(engine, comment_settings)
    for column in ("created_at", "updated_at"):
        assert f"comments.{column} is {declared.split('(')[0].split()[0]}" in said and f"`epochs: {{{column}: {unit}}}`" in said
    epochs = {"created_at": unit, "updated_at": unit}
    assert read(engine, comment_settings, epochs=epochs).new == 1
    assert ask(
        engine, "SELECT extract(epoch FROM created_at)::bigint, extract(epoch FROM updated_at)::bigint, quarantined FROM comment"
    ) == [(MARCH, MARCH, None)]
    # An edit far from the newest ids and within the overlap is found by its number.
    step = value // MARCH
    app.run(f"UPDATE comments SET text = '고침', updated_at = {value + 5 * step}")
    assert read(engine, comment_settings, epochs=epochs, window_rows=1, window_slice=1).changed == 1
    look_far_back(engine)
    assert read(engine, comment_settings, epochs=epochs).changed == 0 and list(stored(engine).values()) == ["고침"]


def test_a_unit_that_the_values_contradict_is_refused(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "updated_at bigint")
    row(app, updated_at=str(MARCH * 1000))
    assert "its values look like milliseconds" in refused(engine, comment_settings, epochs={"updated_at": "seconds"})


def test_numbers_that_are_no_moment_stop_nobody(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "created_at bigint", "updated_at bigint")
    for value in (MARCH, 0, -1, 2**62, MARCH + 1):
        row(app, created_at=str(value), updated_at=str(value))
    row(app, created_at="NULL", updated_at="NULL")
    epochs = {"created_at": "seconds", "updated_at": "seconds"}
    done = read(engine, comment_settings, epochs=epochs)
    assert (done.new, done.quarantined) == (6, 2), "2**62 and NULL are no time; 0 is one"
    assert read(engine, comment_settings, epochs=epochs).changed == 0


@pytest.mark.parametrize(
    ("declared", "value", "said"),
    [
        ("varchar(20)", "'2026-03-01'", "is varchar(20), not DATETIME or TIMESTAMP"),
        ("year", "2026", "is year(4), not DATETIME or TIMESTAMP"),
        ("date", "'2026-03-01'", "is date, which has no time of day"),
        ("time", "'10:00'", "is time, not DATETIME or TIMESTAMP"),
        ("double", str(MARCH), "is double, not DATETIME or TIMESTAMP"),
        ("int", "20260301", "such as 20260301, are no time since 1970"),
        ("bigint", "20260301100000", "are no time since 1970"),
    ],
)
def test_times_of_types_that_cannot_work(
    app: Application, engine: Engine, comment_settings: Settings, declared: str, value: str, said: str
) -> None:
    table(app, f"updated_at {declared}")
    row(app, updated_at=value)
    told = refused(engine, comment_settings)
    assert "comments.updated_at" in told and said in told and "updated_at: null" in told
    assert read(engine, comment_settings, updated_at=None).new == 1, "the fix that is named works"
    if declared not in ("date",):
        table(app, f"created_at {declared}")
        row(app, created_at=value)
        told = refused(engine, comment_settings, source="created")
        assert "comments.created_at" in told and said in told and "`created_at` in the section" in told


def test_a_number_without_any_row_is_asked_about(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "updated_at int")
    assert "write what its numbers count, such as `epochs: {updated_at: seconds}`" in refused(engine, comment_settings)
    assert read(engine, comment_settings, epochs={"updated_at": "seconds"}).new == 0


def test_a_date_is_good_enough_for_when_it_was_written(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "created_at date")
    row(app, created_at="'2026-03-02'")
    assert read(engine, comment_settings).new == 1
    ((at,),) = ask(engine, "SELECT created_at FROM comment")
    assert at.isoformat() == "2026-03-01T15:00:00+00:00", "midnight in Seoul"


def test_a_day_that_does_not_exist_stops_no_look_for_edits(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app)
    app.run(
        "SET sql_mode = 'ALLOW_INVALID_DATES'",
        "INSERT INTO comments (text, created_at, updated_at) VALUES "
        "('하나', '2026-03-01', '2037-02-31'), ('둘', '2026-03-01', '2037-00-00')"
        ", ('셋', '2026-03-01', '2026-03-01')",
    )
    assert read(engine, comment_settings).new == 3
    assert read(engine, comment_settings).problems == []


# --- texts --------------------------------------------------------------------------------------------------------------------------------

GOOD = "좋은 댓글입니다"


def hexed(value: str, encoding: str = "utf-8") -> str:
    return f"UNHEX('{value.encode(encoding).hex()}')"


@pytest.mark.parametrize(
    ("declared", "encoding", "says"),
    [
        ("text CHARACTER SET latin1", "utf-8", "latin1"),
        ("varchar(200) CHARACTER SET latin1", "utf-8", "latin1"),
        ("text CHARACTER SET latin1", "cp949", "latin1"),
        ("text CHARACTER SET latin2", "utf-8", "latin2"),
        ("blob", "utf-8", "no character set"),
        ("varbinary(200)", "cp949", "no character set"),
    ],
)
def test_bytes_that_are_not_what_the_column_says(
    app: Application, engine: Engine, comment_settings: Settings, declared: str, encoding: str, says: str
) -> None:
    table(app, f"text {declared}")
    charset = declared.split()[-1] if "SET" in declared else "binary"
    app.run(
        "ALTER TABLE comments MODIFY text blob",
        f"INSERT INTO comments (text, created_at, updated_at, status) VALUES ({hexed(GOOD, encoding)}, '2026-03-01', '2026-03-01', 'ok'), "
        "('plain ascii', '2026-03-01', '2026-03-01', 'ok')",
    )
    if charset != "binary":
        app.run(f"ALTER TABLE comments MODIFY text {declared}")
    told = refused(engine, comment_settings)
    assert "comments.text is" in told and says in told and f"`encodings: {{text: {encoding}}}`" in told and "댓글" not in told
    done = read(engine, comment_settings, encodings={"text": encoding})
    assert done.new == 2 and list(stored(engine).values()) == [GOOD, "plain ascii"]
    app.run("UPDATE comments SET text = 'other', updated_at = now() WHERE id = 1")
    assert read(engine, comment_settings, encodings={"text": encoding}).changed == 1


def test_what_a_column_says_truly_is_read(app: Application, engine: Engine, comment_settings: Settings) -> None:
    for number, (charset, words) in enumerate(
        {"euckr": "좋은 댓글", "utf8mb3": "좋은 댓글", "latin1": "café déjà vu naïve", "utf16": "좋은 😀", "ucs2": "좋은"}.items()
    ):
        table(app, f"text text CHARACTER SET {charset}")
        row(app, text=f"'{words}'")
        done = read(engine, comment_settings, source=f"s{number}")
        assert done.problems == [] and list(stored(engine, f"s{number}").values()) == [words], charset


def test_one_odd_text_stops_nobody(app: Application, engine: Engine, comment_settings: Settings) -> None:
    twice = "".join(bytes([one]).decode("latin-1" if one in b"\x81\x8d\x8f\x90\x9d" else "cp1252") for one in GOOD.encode())
    for words in (twice, "좋은", "댓글", "글"):
        app.add(words)
    assert read(engine, comment_settings).new == 4
    app.run("DELETE FROM comments WHERE id > 1")
    assert "encoded twice" in refused(engine, comment_settings, source="other")


def test_undecodable_bytes_are_in_quarantine(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "text blob")
    for _ in range(3):
        row(app, text=hexed(GOOD))
    row(app, text="UNHEX('ff00ff')")
    done = read(engine, comment_settings, encodings={"text": "utf-8"})
    assert (done.new, done.quarantined) == (4, 1)
    assert ask(engine, "SELECT text, quarantined FROM comment WHERE id = 4") == [("", "undecodable")]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("json", "JSON documents"),
        ("int", "is int(11), not a text"),
        ("datetime", "is datetime, not a text"),
        ("point", "is point, not a text"),
    ],
)
def test_texts_of_types_that_cannot_work(app: Application, engine: Engine, comment_settings: Settings, declared: str, said: str) -> None:
    table(app, f"text {declared}")
    assert said in refused(engine, comment_settings)


def test_documents_in_a_text_column_are_noticed(app: Application, engine: Engine, comment_settings: Settings) -> None:
    for words in ('{"text": "하나"}', '{"text": "둘"}', '{"text": "셋"}'):
        app.add(words)
    assert "JSON documents" in refused(engine, comment_settings)
    app.add("사람의 글")
    assert read(engine, comment_settings).new == 4


# --- moderation ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "yes", "no"),
    [
        ("bit(1)", "b'1'", "b'0'"),
        ("bool", "TRUE", "FALSE"),
        ("tinyint(1)", "1", "0"),
        ("int(4) zerofill", "1", "0"),
        ("char(1)", "'1'", "'0'"),
    ]
    + [("enum('0','1')", "'1'", "'0'"), ("binary(1)", "'1'", "'0'"), ("varchar(3) CHARACTER SET latin1", "'1'", "'0'")],
)
def test_a_boolean_is_one_or_zero(app: Application, engine: Engine, comment_settings: Settings, declared: str, yes: str, no: str) -> None:
    table(app, f"is_clean {declared}")
    row(app, is_clean=yes)
    row(app, is_clean=no)
    row(app, is_clean="NULL")
    moderation = {"column": "is_clean", "decisions": {1: ["clean"], 0: ["악플/욕설"]}}
    done = read(engine, comment_settings, moderation=moderation)
    assert done.labels == 2 and done.problems == []
    assert ask(engine, "SELECT labels FROM comment_label ORDER BY id") == [(["clean"],), (["악플/욕설"],)]


def test_moderation_in_bytes_that_are_no_text_is_refused(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "flag binary(1)")
    row(app, flag="UNHEX('01')")
    moderation = {"column": "flag", "decisions": {1: ["clean"]}}
    assert "comments.flag is binary(1), which has no character set" in refused(engine, comment_settings, moderation=moderation)
    table(app, "spot point")
    assert "comments.spot is point" in refused(engine, comment_settings, kept=["spot"])


def test_a_decision_in_misread_bytes_can_be_mapped(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "status varchar(60) CHARACTER SET latin1")
    row(app, status=f"CONVERT({hexed('승인')} USING latin1)")
    moderation = {"column": "status", "decisions": {"승인": ["clean"]}}
    assert "comments.status is varchar(60)" in refused(engine, comment_settings, moderation=moderation)
    assert read(engine, comment_settings, moderation=moderation, encodings={"status": "utf-8"}).labels == 1


@pytest.mark.parametrize("key", [True, False, None])
def test_a_word_that_yaml_reads_as_a_boolean_is_told(key: object) -> None:
    with pytest.raises(ValueError, match="need quotes"):
        section(moderation={"column": "status", "decisions": {key: ["clean"]}})
    with pytest.raises(ValueError, match="need quotes"):
        section(deleted={"column": "status", "values": [key]})


# --- ids ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("char(36)", "is char(36), not an integer that grows"),
        ("uuid", "is uuid, not an integer"),
        ("binary(16)", "is binary(16), not an integer"),
        ("double", "is double, not an integer"),
        ("decimal(20,2)", "is decimal(20,2), not an integer"),
        ("datetime(6)", "is datetime(6), not an integer"),
    ],
)
def test_ids_that_cannot_work(app: Application, engine: Engine, comment_settings: Settings, declared: str, said: str) -> None:
    table(app, f"id {declared} PRIMARY KEY")
    told = refused(engine, comment_settings)
    assert f"comments.id {said}" in told and "AUTO_INCREMENT UNIQUE" in told


@pytest.mark.parametrize("declared", ["int unsigned", "bigint unsigned", "mediumint", "decimal(20,0)", "int(8) zerofill"])
def test_ids_that_work(app: Application, engine: Engine, comment_settings: Settings, declared: str) -> None:
    table(app, f"id {declared} PRIMARY KEY")
    for number in (1, 2, 5, 9):
        row(app, id=str(number))
    assert read(engine, comment_settings).new == 4
    row(app, id="7")
    look_again(engine)
    done = read(engine, comment_settings)
    assert (done.new, sorted(stored(engine))) == (1, [1, 2, 5, 7, 9])
    before = holes(engine)
    look_again(engine)
    assert read(engine, comment_settings).holes_filled == 0 and holes(engine) == before
    assert comments.reconcile(engine, comment_settings, section()).changed == 0


def test_rows_without_an_id_are_told(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "id bigint UNIQUE")
    row(app, id="1")
    row(app, id="NULL")
    done = read(engine, comment_settings)
    assert done.new == 1 and "whose id is NULL" in done.problems[0]


@pytest.mark.parametrize("counts_up", [True, False])
def test_a_partitioned_table(app: Application, engine: Engine, comment_settings: Settings, counts_up: bool) -> None:
    table(
        app,
        f"id bigint NOT NULL {'AUTO_INCREMENT' if counts_up else ''}",
        "created_at datetime NOT NULL",
        "PRIMARY KEY (id, created_at)",
        after="CHARACTER SET utf8mb4 PARTITION BY RANGE COLUMNS (created_at) (PARTITION a VALUES LESS THAN ('2026-02-01'), "
        "PARTITION b VALUES LESS THAN (MAXVALUE))",
    )
    for number in range(1, 60):
        row(app, id=str(number), created_at=f"'2026-0{1 + number % 2}-20'")
    assert read(engine, comment_settings, batch_rows=7).new == 59
    app.run("UPDATE comments SET text = '고침', updated_at = now() WHERE id = 3", "DELETE FROM comments WHERE id = 4")
    done = read(engine, comment_settings)
    assert (done.changed, done.deleted) == (1, 1) and stored(engine) == app.comments()


def test_two_rows_with_one_id_are_refused_wherever_a_page_ends(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "id bigint NOT NULL", "created_at datetime NOT NULL", "PRIMARY KEY (id, created_at)")
    for number in range(1, 10):
        row(app, id=str(number))
    row(app, id="5", created_at="'2026-04-01'")
    for rows in range(1, 12):
        with pytest.raises(CommentsError, match=r"two rows with one id \(5\)"):
            read(engine, comment_settings, source=f"s{rows}", batch_rows=rows)
        assert set(stored(engine, f"s{rows}")) <= {1, 2, 3, 4}
    app.run("DELETE FROM comments WHERE created_at = '2026-04-01'")
    read(engine, comment_settings)
    row(app, id="2", created_at="'2026-04-01'", updated_at="'2020-01-01'")
    with pytest.raises(CommentsError, match="two rows with one id"):
        comments.reconcile(engine, comment_settings, section())


def test_a_view_is_refused_with_what_to_do(app: Application, engine: Engine, comment_settings: Settings) -> None:
    app.run("CREATE VIEW shown AS SELECT * FROM comments")
    told = refused(engine, comment_settings, table="shown")
    assert "shown is a view" in told and "GRANT SELECT (id, text, created_at" in told


def test_generated_columns_are_columns(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(
        app,
        "document json",
        "seconds int",
        "text text AS (JSON_UNQUOTE(JSON_EXTRACT(document, '$.text'))) STORED",
        "created_at datetime AS ('1970-01-01' + INTERVAL seconds SECOND) VIRTUAL",
        "updated_at datetime AS ('1970-01-01' + INTERVAL seconds SECOND) VIRTUAL",
    )
    app.run(f"""INSERT INTO comments (document, seconds, status) VALUES ('{{"text": "하나"}}', {MARCH}, 'ok')""")
    assert read(engine, comment_settings, time_zone="UTC").new == 1 and list(stored(engine).values()) == ["하나"]


@pytest.mark.parametrize("index", ["KEY (updated_at)", "KEY (updated_at) IGNORED", "KEY (status, updated_at)"])
def test_only_an_index_that_can_be_walked_is_one(app: Application, engine: Engine, comment_settings: Settings, index: str) -> None:
    table(app, index)
    if index == "KEY (updated_at)":
        assert read(engine, comment_settings).new == 0
    else:
        assert "no index that begins with updated_at" in refused(engine, comment_settings)


# --- marked as deleted --------------------------------------------------------------------------------------------------------------------

MARKS = [
    ("deleted_at datetime NULL", {}, "NOW()", "NULL"),
    ("deleted_at datetime NOT NULL DEFAULT '9999-12-31'", {"alive": ["9999-12-31 00:00:00"]}, "NOW()", "'9999-12-31'"),
    ("deleted_at int NOT NULL DEFAULT 0", {"alive": [0]}, str(MARCH), "0"),
    ("deleted_at bit(1) NOT NULL DEFAULT b'0'", {"values": [1]}, "b'1'", "b'0'"),
    ("deleted_at char(1) DEFAULT 'N'", {"values": ["Y"]}, "'Y'", "'N'"),
    ("deleted_at enum('live','hidden','gone') DEFAULT 'live'", {"values": ["hidden", "gone"]}, "'gone'", "'live'"),
]


@pytest.mark.parametrize(("declared", "setting", "on", "off"), MARKS)
@pytest.mark.parametrize("updated_at", ["updated_at", None])
def test_what_is_marked_deleted_is_deleted_and_comes_back(
    app: Application,
    engine: Engine,
    comment_settings: Settings,
    declared: str,
    setting: dict[str, Any],
    on: str,
    off: str,
    updated_at: str | None,
) -> None:
    table(app, declared)
    marked = {"deleted": {"column": "deleted_at", **setting}, "updated_at": updated_at}
    for words in ("'지울 댓글'", "'남을 댓글'"):
        row(app, text=words)
    row(app, text="'처음부터 지운 댓글'", deleted_at=on)
    done = read(engine, comment_settings, **marked)
    assert (done.new, done.labels) == (2, 2) and set(stored(engine)) == {1, 2}, "what was deleted before is never read"
    assert "처음부터" not in str(ask(engine, "SELECT * FROM comment")) and holes(engine)[-1][1] < 3, "it is no hole"
    app.run(f"UPDATE comments SET deleted_at = {on}, updated_at = NOW() WHERE id = 1")
    done = read(engine, comment_settings, **marked)
    assert (done.deleted, done.changed) == (1, 0) and stored(engine) == {2: "남을 댓글"}
    assert "지울" not in str(ask(engine, "SELECT * FROM comment")), "the text is gone"
    assert read(engine, comment_settings, **marked).sentence() == "app: nothing new"
    assert comments.reconcile(engine, comment_settings, section(**marked)).sentence() == "app: nothing new"
    app.run(f"UPDATE comments SET deleted_at = {off}, updated_at = NOW() WHERE id IN (1, 3)")
    done = read(engine, comment_settings, **marked)
    assert set(stored(engine)) == {1, 2, 3} and stored(engine)[1] == "지울 댓글"
    assert ask(engine, "SELECT id, labels FROM comment_standing ORDER BY id") == [(n, ["clean"]) for n in (1, 2, 3)]


def test_control_without_the_setting_what_is_marked_stays(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "deleted_at datetime NULL")
    row(app)
    read(engine, comment_settings)
    app.run("UPDATE comments SET deleted_at = NOW(), updated_at = NOW()")
    assert read(engine, comment_settings).deleted == 0 and len(stored(engine)) == 1


def test_many_that_are_marked_are_no_other_database(app: Application, engine: Engine, comment_settings: Settings) -> None:
    """Rows that are gone may be another database; rows that say that they are deleted are believed."""
    table(app, "deleted_at datetime NULL")
    for number in range(60):
        row(app, text=f"'{number}'")
    marked = section(deleted={"column": "deleted_at"}, updated_at=None, window_rows=20, window_slice=20, max_deleted_rows=2)
    comments.tick(engine, comment_settings, marked)
    app.run("UPDATE comments SET deleted_at = NOW() WHERE id > 5 AND id < 55")
    comments.tick(engine, comment_settings, marked)
    assert set(stored(engine)) == {*range(1, 41), *range(55, 61)}
    assert comments.reconcile(engine, comment_settings, marked).deleted == 35 and set(stored(engine)) == {*range(1, 6), *range(55, 61)}


def test_the_setting_comes_later_than_the_comments(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "deleted_at datetime NULL")
    row(app)
    row(app, deleted_at="NOW()", updated_at="'2020-01-01'")
    read(engine, comment_settings)
    assert len(stored(engine)) == 2
    done = comments.reconcile(engine, comment_settings, section(deleted={"column": "deleted_at"}))
    assert done.deleted == 1 and done.changed == 0 and set(stored(engine)) == {1}


def test_a_late_commit_that_is_marked_fills_its_hole(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "deleted_at datetime NULL")
    slow = app.begin()
    with slow.cursor() as cursor:
        cursor.execute("INSERT INTO comments (text, created_at, updated_at, deleted_at) VALUES ('늦게', NOW(), NOW(), NOW())")
    row(app)
    marked = {"deleted": {"column": "deleted_at"}}
    read(engine, comment_settings, **marked)
    slow.commit()
    look_again(engine)
    read(engine, comment_settings, **marked)
    assert set(stored(engine)) == {2} and all(last < 1 for _, last in holes(engine))


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("deleted_at int NULL", "is int(11): that it is not NULL does not say"),
        ("deleted_at bit(1)", "is bit(1): that it is not NULL does not say"),
        ("deleted_at datetime NOT NULL", "is datetime NOT NULL: that it is not NULL does not say"),
    ],
)
def test_a_mark_that_says_nothing_is_asked_about(
    app: Application, engine: Engine, comment_settings: Settings, declared: str, said: str
) -> None:
    table(app, declared)
    told = refused(engine, comment_settings, deleted={"column": "deleted_at"})
    assert said in told and "values: [...]" in told and "alive: [...]" in told


def test_a_mark_that_says_it_of_everybody_is_not_believed(app: Application, engine: Engine, comment_settings: Settings) -> None:
    table(app, "del_yn char(1) DEFAULT 'N'")
    for _ in range(60):
        row(app)
    told = refused(engine, comment_settings, deleted={"column": "del_yn", "values": ["N"]})
    assert "deleted as `deleted`" in told and "`alive`" in told
    assert read(engine, comment_settings, deleted={"column": "del_yn", "alive": ["N"]}).new == 60


def test_a_hard_deletion_leaves_no_text_either(app: Application, engine: Engine, comment_settings: Settings) -> None:
    app.add("지울 댓글", "남을 댓글")
    read(engine, comment_settings)
    app.run("DELETE FROM comments WHERE id = 1")
    assert read(engine, comment_settings).deleted == 1
    assert ask(engine, "SELECT id, text FROM comment ORDER BY id") == [(1, ""), (2, "남을 댓글")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deleted": {"column": "x", "values": ["a"], "alive": ["b"]}}, "both `values` and `alive`"),
        ({"epochs": {"status": "seconds"}}, "`epochs` names status"),
        ({"epochs": {"updated_at": "minutes"}}, "seconds"),
        ({"encodings": {"created_at": "utf-8"}}, "`encodings` names created_at"),
        ({"encodings": {"text": "latin1"}}, "utf-8"),
    ],
)
def test_a_wrong_section_is_said(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        section(**changes)


def test_doctor_says_the_same(app: Application, comment_settings: Settings, tmp_path: Path) -> None:
    configured = section().model_dump(mode="json", exclude_unset=True)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({"comments": configured}, allow_unicode=True))
    settings = comment_settings.model_copy(update={"configs": tmp_path})
    assert [line.state for line in doctor._comments(settings)] == ["ok"]
    table(app, "updated_at int")
    row(app, updated_at=str(MARCH))
    (line,) = doctor._comments(settings)
    assert line.state == "fail" and "`epochs: {updated_at: seconds}`" in line.found and "toy.yaml" in line.fix
    assert not (settings.home / "keys").exists(), "it changes nothing"
    assert list(doctor._comments(settings.model_copy(update={"comments_url": None}))) == []


# --- strides ------------------------------------------------------------------------------------------------------------------------------


def stride(app: Application, first: int, step: int, count: int) -> None:
    app.run(f"INSERT INTO comments (id, text) SELECT {first} + {step} * seq, CONCAT('댓글 ', seq) FROM seq_0_to_{count - 1}")


def test_a_stride_leaves_few_holes_and_a_late_commit_within_is_found(app: Application, engine: Engine, comment_settings: Settings) -> None:
    """As clusters count: one writer's ids are 1, 3, 5; another's, which commit late, 2, 4, 6; later there are three writers."""
    alone = {"updated_at": None, "window_rows": 1, "window_slice": 1, "batch_rows": 200}
    stride(app, 1, 2, 1000)
    slow = app.begin()
    with slow.cursor() as cursor:
        cursor.execute("INSERT INTO comments (id, text) VALUES (4, '늦게'), (1000, '늦게'), (1998, '늦게')")
    stride(app, 3000, 3, 1000)
    read(engine, comment_settings, **alone)
    assert len(stored(engine)) == 2000 and len(holes(engine)) <= 11 * comments.HOLES_PER_PAGE
    look_again(engine)
    before = holes(engine)
    assert read(engine, comment_settings, **alone).holes_filled == 0 and holes(engine) == before, "nothing is read anew"
    slow.commit()
    look_again(engine)
    done = read(engine, comment_settings, **alone)
    assert done.holes_filled == 3 and stored(engine) == app.comments()
    stride(app, 3001, 3, 1000)  # an offset that was silent wakes up
    look_again(engine)
    read(engine, comment_settings, **alone)
    assert stored(engine) == app.comments() and len(stored(engine)) == 3003


def test_a_look_at_a_stride_asks_for_no_row(
    app: Application, engine: Engine, comment_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_assets.ingest.comment_source import Table

    stride(app, 1, 2, 2000)
    read(engine, comment_settings)
    asked: list[tuple[str, int]] = []
    ask_source = Table._ask

    def record(self: Table, sql: str, values: dict[str, object] | None = None) -> Any:
        found = ask_source(self, sql, values)
        asked.append((sql, len(found)))
        return found

    monkeypatch.setattr(Table, "_ask", record)
    for _ in range(3):
        look_again(engine)
        read(engine, comment_settings, window_rows=1, window_slice=1, updated_at=None)
    rows = [count for sql, count in asked if "`text`" in sql and "SHA2" in sql]
    assert sum(rows) <= 3 * 3, "pages after the last id and the one newest comment"
    assert max(count for sql, count in asked if "CRC32" in sql) <= comments.MAX_RANGES


def test_a_deletion_that_balances_a_late_commit_hides_nothing(app: Application, engine: Engine, comment_settings: Settings) -> None:
    """Two go and two come in one hole, with the same number and sum of ids."""
    alone = {"updated_at": None, "window_rows": 1, "window_slice": 1, "batch_rows": 5000}
    stride(app, 10, 2, 200)
    read(engine, comment_settings, **alone)
    app.run("DELETE FROM comments WHERE id IN (12, 22)", "INSERT INTO comments (id, text) VALUES (13, '셋'), (21, '둘')")
    look_again(engine)
    assert read(engine, comment_settings, **alone).holes_filled == 2
    assert {13, 21} <= set(stored(engine))


def test_holes_of_before_are_looked_at_as_ever(app: Application, engine: Engine, comment_settings: Settings) -> None:
    """The migration gives them no signature: there was nothing in them."""
    stride(app, 1, 2, 5)
    read(engine, comment_settings)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM comment_hole"))
        connection.execute(text("INSERT INTO comment_hole (source, first_id, last_id) VALUES ('app', 2, 2), ('app', 4, 4)"))
    app.run("INSERT INTO comments (id, text) VALUES (4, '늦게')")
    look_again(engine)
    assert read(engine, comment_settings).new == 1 and holes(engine) == [(2, 2)]


def test_a_section_of_before_reads_as_it_did() -> None:
    given = CommentsSection(source="app", table="comments")
    assert (given.deleted, given.epochs, given.encodings) == (None, {}, {})
