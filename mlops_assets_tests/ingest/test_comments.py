"""Comments of a real MariaDB in a real PostgreSQL: each once, however late it commits, edited, deleted, odd, or many ticks at a time."""

from __future__ import annotations

import dataclasses
import logging
import stat
import subprocess
import sys
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mlops_assets import database
from mlops_assets.crash import COMMENT_POINTS
from mlops_assets.ingest import comment_source, comments
from mlops_assets.ingest.comment_source import MIN_ID, SAMPLED, CommentsError, Signature, Table, labels_of
from mlops_assets.settings import Settings, SettingsError, process_environment
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.ingest.commented import (
    MODERATION,
    Application,
    Cursor,
    ask,
    holes,
    look_again,
    look_far_back,
    reader,
    section,
    stored,
)
from mlops_assets_tests.proxy import Proxy

SIGKILLED = -9


# --- what is read -----------------------------------------------------------------------------------------------------------------------


def test_new_comments_arrive_masked_with_their_times_and_labels(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings)
    ids = app.add("연락은 010-1234-5678로 🙏🏽", status="ok")
    ids += app.add("메일 a.b@c.co.kr", status="removed", flags="women, region")
    ids += app.add(unicodedata.normalize("NFD", "가나다"), "널\x00문자", "", status=None)
    done = tick()
    assert (done.new, done.changed, done.deleted, done.problems) == (5, 0, 0, [])
    assert list(stored(engine).values()) == ["연락은 [PHONE]로 🙏🏽", "메일 [EMAIL]", "가나다", "널\ufffd문자", ""]
    labels = ask(engine, "SELECT id, labels, origin FROM comment_label ORDER BY id")
    assert labels == [(ids[0], ["clean"], "moderation"), (ids[1], ["여성/가족", "지역"], "moderation")]
    ((created, updated, now),) = ask(engine, "SELECT created_at, updated_at, now() FROM comment WHERE id = :i", i=ids[0])
    assert created.isoformat() == "2026-03-01T00:00:00+00:00", "DATETIME is in the declared zone"
    assert abs((now - updated).total_seconds()) < 60, "TIMESTAMP needs none"
    again = tick()
    assert (again.new, again.changed, again.labels) == (0, 0, 0)
    assert ask(engine, "SELECT count(*) FROM comment_ledger") == [(5,)]


def test_what_cannot_be_kept_is_in_quarantine_with_its_reason(app: Application, engine: Engine, comment_settings: Settings) -> None:
    settings = comment_settings.model_copy(update={"max_line_bytes": 100})
    tick = reader(engine, settings)
    app.add("가" * 33)
    long, none, timeless = app.add("가" * 34, status="ok") + app.add(None) + app.add("언제", created_at=None)  # type: ignore[arg-type]
    done = tick()
    assert (done.new, done.quarantined, done.labels) == (4, 3, 0)
    rows = ask(engine, "SELECT id, text, quarantined FROM comment WHERE quarantined IS NOT NULL ORDER BY id")
    assert rows == [(long, "", "too_large"), (none, "", "no_text"), (timeless, "", "no_time")]
    app.run(f"UPDATE comments SET text = '짧게' WHERE id = {long}")
    assert tick().changed == 1 and stored(engine)[long] == "짧게"
    assert comments.reconcile(engine, settings, section()).changed == 0


def test_a_comment_of_which_nothing_is_seen_has_no_text(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings)
    unseen = app.add("\u200b\u3164", " \ufeff", "", status="ok")
    (seen,) = app.add("보\u200b인다", status="ok")
    done = tick()
    assert (done.new, done.quarantined, done.labels) == (4, 3, 1)
    kept = ask(engine, "SELECT id, quarantined FROM comment ORDER BY id")
    assert kept == [*((number, "no_text") for number in unseen), (seen, None)]


def test_the_text_itself_is_nowhere_else(
    app: Application, engine: Engine, comment_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hong.gildong@example.com"
    app.add(f"{secret} 로", status=f"odd {secret}")
    done = reader(engine, comment_settings)()
    assert done.unmapped == {"status=odd [EMAIL]": 1}
    with engine.connect() as connection:
        dump = [str(connection.execute(text(f"SELECT * FROM {t}")).all()) for t in ("comment", "comment_ledger", "comment_label")]
    assert secret not in "".join([*dump, caplog.text, str(done)]), "nor in what is logged"


def test_a_decision_that_is_not_mapped_is_told_and_labelled_later(app: Application, engine: Engine, comment_settings: Settings) -> None:
    (odd, half) = app.add("새 값", status="spam") + app.add("반쯤", status="removed", flags="women,aliens")
    done = reader(engine, comment_settings)()
    assert done.labels == 0 and done.unmapped == {"status=spam": 1, "flags=aliens": 1}
    assert "status=spam (1)" in done.problems[0] and "moderation.decisions" in done.problems[0]
    mapped = MODERATION | {"decisions": {**MODERATION["decisions"], "spam": ["악플/욕설"]}}  # type: ignore[dict-item]
    again = comments.reconcile(engine, comment_settings, section(moderation=mapped))
    assert again.labels == 1 and again.unmapped == {"flags=aliens": 1}
    assert ask(engine, "SELECT id, labels FROM comment_label") == [(odd, ["악플/욕설"])] and half in stored(engine)
    assert comments.reconcile(engine, comment_settings, section(moderation=mapped)).labels == 0


def test_labels_of_a_decision() -> None:
    mapping = section().moderation
    assert mapping is not None
    assert labels_of(mapping, {"status": None, "flags": "women"}) == (None, None)
    assert labels_of(mapping, {"status": "pending", "flags": None}) == (None, None)
    assert labels_of(mapping, {"status": "7", "flags": None}) == (("악플/욕설",), None)
    assert labels_of(mapping, {"status": "removed", "flags": " region,women "}) == (("여성/가족", "지역"), None)
    assert labels_of(mapping, {"status": "removed", "flags": None}) == (None, "flags="), "removed for no reason is not clean"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time_zone": "Seoul"}, "time_zone 'Seoul' is unknown"),
        ({"time_zone": "Europe/Berlin"}, "overlap_minutes must be 75"),
        ({"id": "id; DROP"}, "cannot be the name"),
        ({"moderation": {"column": "s", "decisions": {"x": "listed"}}}, "`listed`"),
        ({"moderation": {"column": "s", "decisions": {"x": []}}}, "empty list"),
    ],
)
def test_a_wrong_section_is_said(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        section(**changes)


@pytest.mark.parametrize(
    ("mend", "changes", "said"),
    [
        ("DROP INDEX updated_at ON comments", {}, "no index that begins with updated_at"),
        ("ALTER TABLE comments MODIFY id bigint, DROP PRIMARY KEY", {}, "no unique index on id alone"),
        ("SELECT 1", {"text": "body"}, "has no column body"),
        ("RENAME TABLE comments TO others", {}, "there is no table comments"),
    ],
)
def test_a_table_that_is_not_as_configured(
    app: Application, engine: Engine, comment_settings: Settings, mend: str, changes: dict[str, object], said: str
) -> None:
    app.run(mend)
    with pytest.raises(CommentsError, match=said):
        reader(engine, comment_settings, **changes)()


# --- late commits, holes ----------------------------------------------------------------------------------------------------------------


def test_what_commits_late_is_not_lost_and_the_control_loses_it(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick, control = reader(engine, comment_settings), Cursor(app)
    slow = app.begin()
    (late,) = app.add("늦게", connection=slow)
    gone = app.begin()
    (rolled_back,) = app.add("취소", connection=gone)
    (early,) = app.add("먼저")
    tick(), control()
    assert stored(engine) == {early: "먼저"} and holes(engine) == [(MIN_ID + 1, rolled_back)]
    slow.commit(), gone.rollback()
    look_again(engine)
    done = tick()
    control()
    assert stored(engine) == app.comments() == {late: "늦게", early: "먼저"}
    assert done.holes_filled == 1 and holes(engine)[-1] == (rolled_back, rolled_back)
    assert late not in control.found, "the control must lose"
    slow.close(), gone.close()


def test_holes_expire_after_a_last_look_and_the_night_finds_what_came_later(
    app: Application, engine: Engine, comment_settings: Settings
) -> None:
    tick = reader(engine, comment_settings, hole_expiry_hours=0.0)
    slow = app.begin()
    (late,) = app.add("아주 늦게", connection=slow)
    app.add("먼저")
    tick()
    assert len(holes(engine)) == 1 and tick().holes_expired == 1 and holes(engine) == []
    slow.commit()
    tick_far = reader(engine, comment_settings, updated_at=None, window_rows=1, window_slice=1)
    tick_far(), tick_far()
    done = comments.reconcile(engine, comment_settings, section())
    assert stored(engine) == app.comments() and late in stored(engine) and done.new <= 1
    slow.close()


def test_looks_at_a_hole_become_rarer(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings)
    app.add("하나")
    app.run("INSERT INTO comments (id, text) VALUES (10, '열')")
    tick()
    with engine.begin() as connection:
        connection.execute(text("UPDATE comment_hole SET since = now() - interval '10 minutes', next_look_at = now()"))
    tick()
    waits = ask(engine, "SELECT DISTINCT round(extract(epoch FROM next_look_at - now()) / 100) FROM comment_hole")
    assert waits == [(3,)]


def test_odd_ids(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings, batch_rows=3)
    app.run("SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'", "INSERT INTO comments (id, text) VALUES (-5, 'a'), (0, 'b'), (4000000000000, 'c')")
    tick()
    assert stored(engine) == {-5: "a", 0: "b", 4000000000000: "c"}
    assert holes(engine) == [(MIN_ID + 1, -6), (-4, -1), (1, 3999999999999)], "a huge range is one row"
    app.run("INSERT INTO comments (id, text) VALUES " + ", ".join(f"({n}, '{n}')" for n in range(10, 40, 2)))
    look_again(engine)
    assert tick().holes_filled == 15, "more than a page in one hole, in one tick"
    app.run("INSERT INTO comments (id, text) VALUES (-4, 'x'), (-9, 'y'), (3999999999999, 'z')")
    look_again(engine)
    tick()
    assert stored(engine) == app.comments()
    assert holes(engine)[-1] == (39, 3999999999998)


def test_an_id_that_cannot_be_kept_is_said_and_stops_nothing(app: Application, engine: Engine, comment_settings: Settings) -> None:
    app.run(
        "ALTER TABLE comments MODIFY id bigint unsigned", "INSERT INTO comments (id, text) VALUES (1, 'a'), (18446744073709551615, 'b')"
    )
    done = reader(engine, comment_settings)()
    assert stored(engine) == {1: "a"} and "cannot be kept" in done.problems[0]


@given(st.integers(-20, 20), st.sets(st.integers(-20, 80)), st.none() | st.integers(-20, 90), st.integers(1, 5))
def test_holes_hold_every_id_that_is_missing(after: int, ids: set[int], last: int | None, most: int) -> None:
    known = sorted(id_ for id_ in ids if id_ > after and (last is None or id_ <= last))
    end = (known[-1] if known else after) if last is None else last
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comments, "HOLES_PER_PAGE", most)
        found = comments.holes_of(after, known, last)
    missing = set(range(after + 1, end + 1)) - set(known)
    within = [n for hole in found for n in range(hole.first, hole.last + 1)]
    assert missing <= set(within) <= set(range(after + 1, end + 1)) and len(within) == len(set(within))
    assert len(found) <= most and all(b.first > a.last + 1 for a, b in pairwise(found)), "no two touch"
    assert all({hole.first, hole.last} <= missing for hole in found), "each ends where something is missing"
    assert all(hole.there == Signature.of([id_ for id_ in known if hole.first <= id_ <= hole.last]) for hole in found)
    if len(comments.gaps(after, known if last is None else [*known, last + 1])) <= most:
        assert missing == set(within), "few gaps are kept exactly"


# --- edits and deletions ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updated_at", ["updated_at", None])
def test_edits_and_deletions(app: Application, engine: Engine, comment_settings: Settings, updated_at: str | None) -> None:
    tick = reader(engine, comment_settings, updated_at=updated_at)
    first, second, third = app.add("하나", "둘", "셋", status="pending")
    tick()
    app.run(f"UPDATE comments SET text = '고침' WHERE id = {first}", f"DELETE FROM comments WHERE id = {second}")
    app.run(f"UPDATE comments SET status = 'ok' WHERE id = {third}")
    done = tick()
    assert (done.changed, done.deleted, done.labels) == (2, 1, 1)
    assert stored(engine) == {first: "고침", third: "셋"}
    assert ask(engine, "SELECT count(DISTINCT content_hash) FROM comment_ledger WHERE id = :i", i=third) == [(1,)], "its text is the same"
    app.run(f"INSERT INTO comments (id, text) VALUES ({second}, '둘')")
    tick()
    assert stored(engine) == app.comments(), "what comes back is alive again"
    assert ask(engine, "SELECT id, count(*) FROM comment_ledger GROUP BY id ORDER BY id") == [(first, 2), (second, 1), (third, 1)]


def test_a_decision_that_is_taken_back_leaves_no_label(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings)
    (number,) = app.add("하나", status="ok")
    tick()
    standing = "SELECT labels, origin FROM comment_standing WHERE id = :i AND labels IS NOT NULL"
    assert ask(engine, standing, i=number) == [(["clean"], "moderation")]
    app.run(f"UPDATE comments SET status = 'pending' WHERE id = {number}")
    tick()
    assert ask(engine, standing, i=number) == []
    app.run(f"UPDATE comments SET status = 'ok' WHERE id = {number}")
    tick()
    assert ask(engine, standing, i=number) == [(["clean"], "moderation")]


def test_an_edit_that_commits_late_is_found(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings, window_rows=1, window_slice=1)
    (old, *_, last) = app.add(*"abcdef")
    app.run("UPDATE comments SET updated_at = updated_at - interval 10 minute")
    tick()
    app.run(f"UPDATE comments SET text = 'late', updated_at = now() - interval 5 minute WHERE id = {old}")
    app.run(f"UPDATE comments SET text = 'soon' WHERE id = {last}")
    tick()
    look_far_back(engine)
    tick()
    assert stored(engine) == app.comments()


def test_a_moment_in_the_future_hides_no_edit(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings, window_rows=1, window_slice=1)
    first, *_ = app.add(*"abcd")
    app.run("INSERT INTO comments (text, updated_at) VALUES ('future', '2037-01-01')")
    tick()
    app.run(f"UPDATE comments SET text = 'edited' WHERE id = {first}")
    tick()
    assert stored(engine)[first] == "edited"


def test_many_edits_of_one_moment_are_more_than_a_page_and_more_than_a_tick(
    app: Application, engine: Engine, comment_settings: Settings
) -> None:
    tick = reader(engine, comment_settings, batch_rows=10, seconds_per_tick=1e-9, window_rows=1, window_slice=1)
    app.add(*map(str, range(35)))
    wait_for(lambda: not tick().behind, "all read")
    app.run("UPDATE comments SET text = concat(text, '!'), updated_at = now()")
    wait_for(lambda: (tick(), stored(engine) == app.comments())[1], "all edits read", 20)


def test_the_newest_are_compared_slice_by_slice(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings, updated_at=None, window_rows=20, window_slice=7)
    ids = app.add(*map(str, range(40)))
    tick()
    app.run(f"DELETE FROM comments WHERE id IN ({ids[5]}, {ids[-1]}, {ids[-12]})", f"UPDATE comments SET text = 'x' WHERE id = {ids[-20]}")
    for _ in range(8):
        tick()
    assert stored(engine) == app.comments() | {ids[5]: "5"}, "what is older waits for the night"
    done = comments.reconcile(engine, comment_settings, section())
    assert done.deleted == 1 and done.compared == 37 and stored(engine) == app.comments()


# --- the night --------------------------------------------------------------------------------------------------------------------------


def test_reconciliation_sees_equal_texts_that_change_alike(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings, updated_at=None, window_rows=1, window_slice=1)
    ids = app.add("ㅋㅋ", "ㅋㅋ", "가", "나", "다", "라")
    tick()
    app.run(f"UPDATE comments SET text = 'ㅎㅎ' WHERE id IN ({ids[0]}, {ids[1]})")
    app.run(f"UPDATE comments SET text = IF(text = '가', '나', '가') WHERE id IN ({ids[2]}, {ids[3]})")
    done = comments.reconcile(engine, comment_settings, section())
    assert done.changed == 4 and stored(engine) == app.comments()


def test_another_database_changes_nothing(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings)
    app.add(*map(str, range(100)))
    tick()
    before = stored(engine)
    for mend in ("DELETE FROM comments WHERE id <= 60", "TRUNCATE comments"):
        app.run(mend)
        done = tick()
        assert stored(engine) == before and "None is marked deleted" in done.problems[0]
        with pytest.raises(CommentsError, match="is MLOPS_COMMENTS_URL another database"):
            comments.reconcile(engine, comment_settings, section())
        assert stored(engine) == before
    done = comments.reconcile(engine, comment_settings, section(), accept_deletions=True)
    assert done.deleted == 100 and stored(engine) == {}
    app.run("ALTER TABLE comments AUTO_INCREMENT = 1")
    app.add("처음부터")
    comments.reconcile(engine, comment_settings, section())
    assert stored(engine) == app.comments()


def test_another_key_is_noticed(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings)
    app.add("하나")
    tick()
    key = comment_settings.home / "keys" / "comments.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and comment_source.hash_key(comment_settings) == key.read_text()
    key.unlink()
    with pytest.raises(CommentsError, match="keys/comments.key is not the key"):
        tick()


def test_one_key_is_made_by_many_at_once(settings: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: comment_source.hash_key(settings), range(32)))
    assert len(keys) == 1 and len(keys.pop()) == 64


# --- the source is only read ------------------------------------------------------------------------------------------------------------


def test_the_source_is_never_written_nor_locked_and_never_read_whole(
    app: Application, engine: Engine, comment_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.add(*map(str, range(400)))
    app.run("DELETE FROM comments WHERE id % 10 = 0", "ANALYZE TABLE comments")
    asked: list[tuple[str, dict[str, object]]] = []
    ask_source = Table._ask

    def record(self: Table, sql: str, values: dict[str, object] | None = None) -> object:
        asked.append((sql, {"key": "0", **(values or {})}))
        return ask_source(self, sql, values)

    monkeypatch.setattr(Table, "_ask", record)
    writer = app.begin()
    with writer.cursor() as cursor:
        cursor.execute("SELECT * FROM comments FOR UPDATE")  # every row is locked: a reader that locks would wait
    tick = reader(engine, comment_settings)
    app.run("SET GLOBAL log_output = 'TABLE'", "SET GLOBAL general_log = 1")
    try:
        tick()
        look_again(engine)
        assert tick().new == 0
        comments.reconcile(engine, comment_settings, section())
    finally:
        app.run("SET GLOBAL general_log = 0")
        log = app.run(
            "SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log WHERE user_host LIKE 'reader%' AND command_type = 'Query'"
        )
        app.run("TRUNCATE mysql.general_log")
    writer.rollback(), writer.close()
    verbs = {row[0].lstrip("(").split()[0].upper() for row in log}
    assert len(log) > 20 and verbs <= {"SELECT", "SET", "ROLLBACK"} and not any("FOR UPDATE" in row[0].upper() for row in log)
    plans = {}
    connection = app.server.connect(app.name)
    with connection.cursor() as cursor:
        for sql, values in asked:
            if "`comments`" in sql:
                cursor.execute(f"EXPLAIN {sql}", values)
                plans[sql] = [row for row in cursor.fetchall() if row[2] == "comments"]
    connection.close()
    assert len(plans) > 6
    for sql, rows in plans.items():
        for row in rows:
            few = any(f"LIMIT {most}" in sql for most in (1, SAMPLED)) and "filesort" not in str(row[9])
            assert row[3] in ("range", "const", "index_subquery") or (row[3] == "index" and few), (row, sql)
    assert stored(engine) == app.comments()


def test_the_controls_of_that(app: Application) -> None:
    reading = app.server.connect(app.name, user="reader")
    with reading.cursor() as cursor, pytest.raises(Exception, match="denied"):
        cursor.execute("INSERT INTO comments (text) VALUES ('x')")
    with reading.cursor() as cursor:
        cursor.execute("EXPLAIN SELECT id FROM comments WHERE text > 'a' ORDER BY text")
        assert cursor.fetchone()[3] == "ALL"
    reading.close()


# --- two at a time, killed, cut ---------------------------------------------------------------------------------------------------------


def test_ticks_at_the_same_time_store_once(app: Application, engine: Engine, comment_settings: Settings) -> None:
    app.add(*map(str, range(300)), status="ok")
    start = threading.Barrier(4)

    def run(_: int) -> int:
        own = database.connect(comment_settings.database_url or "", pool_size=0)
        start.wait()
        try:
            return reader(own, comment_settings)().new
        finally:
            own.dispose()

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(run, range(4)))
    assert sum(counts) == 300 and stored(engine) == app.comments()
    assert ask(engine, "SELECT count(*), count(DISTINCT id) FROM comment_ledger") == [(300, 300)]
    assert ask(engine, "SELECT count(*), count(DISTINCT id) FROM comment_label") == [(300, 300)]


TICK = """
from mlops_assets import database
from mlops_assets.ingest import comments
from mlops_assets.settings import load_settings
from mlops_assets_tests.ingest.commented import section
settings = load_settings()
comments.tick(database.connect(settings.database_url), settings, section())
"""


@pytest.mark.parametrize("point", COMMENT_POINTS)
@pytest.mark.parametrize("stage", ["page", "hole"])
def test_killed_anywhere_the_next_tick_completes_it(
    app: Application, engine: Engine, comment_settings: Settings, point: str, stage: str
) -> None:
    slow = app.begin()
    (late,) = app.add("늦게", connection=slow, status="ok")
    app.add(*map(str, range(120)), status="ok")
    tick = reader(engine, comment_settings)
    if stage == "hole":
        tick()
    slow.commit(), slow.close()
    look_again(engine)
    environment = {**process_environment(), **comment_settings.environment(), "MLOPS_CRASH_AT": point}
    done = subprocess.run([sys.executable, "-c", TICK], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == SIGKILLED, done.stderr
    with engine.connect() as connection:
        ((marked,),) = connection.execute(text("SELECT read_to FROM comment_source")).all()
    held = {n for first, last in holes(engine) for n in range(max(first, 0), last + 1)}
    assert {id_ for id_ in app.comments() if id_ <= marked} == set(stored(engine)) | (held & set(app.comments())), (
        "every id is accounted for"
    )
    look_again(engine)
    tick(), tick()
    assert stored(engine) == app.comments()
    counts = {ask(engine, f"SELECT count(*), count(DISTINCT id) FROM {t}")[0] for t in ("comment_ledger", "comment_label", "comment")}
    assert counts == {(121, 121)}


@pytest.mark.parametrize("bytes_", [0, 50, 3_000, 20_000, 60_000])
def test_mysql_is_cut_in_the_middle(app: Application, engine: Engine, comment_settings: Settings, bytes_: int) -> None:
    app.add(*("글" * 100 + str(n) for n in range(200)))
    with Proxy(app.server.port) as proxy:
        settings = comment_settings.model_copy(update={"comments_url": app.server.url(app.name, port=proxy.port)})
        proxy.cut_after(bytes_) if bytes_ else proxy.cut()
        with pytest.raises(CommentsError, match="did not answer.*Nothing is lost") as caught:
            reader(engine, settings)()
        assert "글" not in str(caught.value)
        assert set(stored(engine)) <= set(app.comments())
        with pytest.raises(CommentsError):
            comments.reconcile(engine, settings, section())
        proxy.restore()
        app.add("그 사이")
        reader(engine, settings)()
    assert stored(engine) == app.comments()


@pytest.mark.parametrize("bytes_", [0, 2_000, 5_000])
def test_postgresql_is_cut_in_the_middle(app: Application, engine: Engine, comment_settings: Settings, bytes_: int) -> None:
    url = database.connect(comment_settings.database_url or "", pool_size=0).url
    app.add(*map(str, range(300)))
    with Proxy(f"{url.query['host']}/.s.PGSQL.{url.query.get('port', 5432)}") as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).difference_update_query(["host", "port"])
        cut = database.connect(through.render_as_string(hide_password=False), pool_size=0)
        proxy.cut_after(bytes_) if bytes_ else proxy.cut()
        with pytest.raises(Exception, match=r"server closed|connection|Connection|consuming"):
            reader(cut, comment_settings)()
        proxy.restore()
        app.add("그 사이")
        reader(cut, comment_settings)()
        cut.dispose()
    assert stored(engine) == app.comments()
    assert ask(engine, "SELECT count(*), count(DISTINCT id) FROM comment_ledger") == [(301, 301)]


def test_the_database_restarts_between_two_ticks(app: Application, engine: Engine, comment_settings: Settings) -> None:
    tick = reader(engine, comment_settings)
    app.add("하나")
    tick()
    app.server.stop()
    with pytest.raises(CommentsError, match="did not answer"):
        tick()
    app.server.start()
    app.add("둘")
    tick()
    assert stored(engine) == app.comments()


# --- without an address; the type -------------------------------------------------------------------------------------------------------


def test_without_an_address_the_command_to_set_it_is_said(engine: Engine, settings: Settings) -> None:
    with pytest.raises(SettingsError, match="MLOPS_COMMENTS_URL"):
        reader(engine, settings)()


def test_a_tick_can_be_shown_as_json() -> None:
    shown = comments.Tick("app", new=2, labels=1).as_json()
    assert shown["new"] == 2 and set(shown) == {f.name for f in dataclasses.fields(comments.Tick)}
