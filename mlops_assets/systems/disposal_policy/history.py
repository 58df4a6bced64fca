"""The table `policy`: what holds now, and what held when. Only what is new, changed or gone is written, all of it in one transaction.

`valid_from` and `valid_to` are when the platform began and ceased to answer so. Belongs here: which version may be applied, and the upsert.
Does not belong here: what a policy is (`data.py`), who asks for it (`serving/policies.py`), Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from mlops_assets import crash
from mlops_assets.database import copy_rows, lock
from mlops_assets.lifecycle import dataset
from mlops_assets.settings import canonical
from mlops_assets.systems.disposal_policy.data import FIELDS, SYSTEM, check_contract, turned_away
from mlops_assets.systems.disposal_policy.rows import PLACE, REPLACED, Place, place_key, place_of

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.dataset import Manifest, PublishedTable

#: key, content hash, 시도, 시군구, content as JSON.
Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Applied:
    """What applying a version wrote. `kept`: policies that the version says nothing of, but for rows that were turned away.
    `superseded_by`: nothing, because that newer version is in the table already."""

    version: str
    new: int = 0
    changed: int = 0
    gone: int = 0
    unchanged: int = 0
    kept: int = 0
    superseded_by: str | None = None

    @property
    def written(self) -> int:
        """Policies that were touched."""
        return self.new + self.changed + self.gone

    @property
    def sentence(self) -> str:
        if self.superseded_by:
            return (
                f"{self.version} is older than {self.superseded_by}, which is in the table: nothing is written, history is not rewritten. "
                "To return to it, land its sheet again under a new name."
            )
        said = f"{self.new} new, {self.changed} changed, {self.gone} gone, {self.unchanged} as they were"
        if not self.kept:
            return said
        return (
            f"{said}, {self.kept} kept although not in it: rows that were turned away may be theirs "
            f"/ 오류가 있는 행의 정책 {self.kept}개는 이전 내용을 유지합니다."
        )


def apply(
    engine: Engine, manifest: Manifest, table: PublishedTable, policies: pa.Table, *, max_loss_share: float, accept_loss: bool = False
) -> Applied:
    """Make the policies of a cleaned version the current ones. The same version again writes nothing.

    Args:
        policies: its rows, at least `key`, `content_hash` and the fields.
        accept_loss: the sheet really is that much smaller.

    Raises:
        DatasetError: they break the contract: the check of `cleaned` stops only its own run, this stops every way here.
        NothingLeft: it has so many fewer policies than now that the sheet must be broken; the version is refused, the table is as before.
    """
    if broken := check_contract(policies.to_pandas()):
        rules = "; ".join(f"{found.rule}: {found.cases}" for found in broken)
        raise dataset.DatasetError(
            f"{manifest.system} {manifest.version} breaks the contract ({rules}): materialize `{SYSTEM}/cleaned` again"
        )
    places = turned_away(policies)
    if places is None and set(table.body["quarantined"]) - REPLACED:
        raise dataset.DatasetError(
            f"{manifest.system} {manifest.version} was cleaned before rows that are turned away kept their policies: "
            f"materialize `{SYSTEM}/cleaned` again"
        )
    with engine.begin() as connection, lock(connection, f"{SYSTEM}.policy"):
        arrived_at, newest = _order(connection, manifest.version)
        if newest is not None:
            return Applied(manifest.version, superseded_by=newest)
        policies, kept = _with_what_stays(connection, policies, places)
        problem = None if accept_loss else _lost(connection, policies.num_rows + len(kept), max_loss_share)
        dataset.refuse(connection, manifest.system, manifest.version, problem)
        done = Applied(manifest.version)
        if problem is None:
            keys = zip(policies["key"].to_pylist(), policies["content_hash"].to_pylist(), strict=True)
            done = upsert(connection, manifest.version, chain(keys, kept.items()), partial(_rows, policies))
            done = replace(done, unchanged=done.unchanged - len(kept), kept=len(kept))
            _record(connection, done, arrived_at, table)
        crash.reach("policy.before_commit")
    crash.reach("policy.after_commit")
    if problem is not None:
        raise dataset.NothingLeft(f"{manifest.system} {manifest.version} is refused: {problem}")
    return done


def _order(connection: Connection, version: str) -> tuple[Any, str | None]:
    """When the version was complete, and the newest applied one if that came later."""
    from sqlalchemy import text

    key = {"s": SYSTEM, "v": version}
    arrived_at = connection.execute(text("SELECT closed_at FROM dataset_version WHERE system = :s AND version = :v"), key).scalar_one()
    later = text(
        "SELECT version FROM policy_version WHERE (arrived_at, version) > (:at, :v) ORDER BY arrived_at DESC, version DESC LIMIT 1"
    )
    return arrived_at, connection.execute(later, {"at": arrived_at, "v": version}).scalar_one_or_none()


def _lost(connection: Connection, rows: int, max_loss_share: float) -> str | None:
    from sqlalchemy import text

    current = connection.execute(text("SELECT count(*) FROM policy WHERE valid_to IS NULL")).scalar_one()
    if rows >= (1 - max_loss_share) * current:
        return None
    return (
        f"{rows} policies where {current} hold now: {1 - rows / current:.0%} are lost, {max_loss_share:.0%} may be. "
        f"The table is as before. Put the rows back into the sheet; if they really are gone, materialize "
        f"`{SYSTEM}/policy` alone with accept_loss: true. "
        f"/ 시트의 행이 {current - rows}개 줄어 반영하지 않았습니다."
    )


def _with_what_stays(connection: Connection, policies: pa.Table, places: Collection[Place] | None) -> tuple[pa.Table, dict[str, str]]:
    """`policies` under the keys that they have in the table, without those that have to wait, and what stays: key -> content hash.

    At a place whose row was turned away nothing ends. A row for the same days as a policy that holds there is that policy, changed or not;
    one for other days is new. Where such days overlap those of a policy that stays, nobody can say what the place has now: all of it stays.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    held = _held(connection, places) if places else {}
    if not held:
        return policies, {}
    arrived: dict[str, dict[str | None, str]] = {place: {} for place in held}
    for key, days in zip(policies["key"].to_pylist(), policies["general_days"].to_pylist(), strict=True):
        if (place := key.rsplit("-", 1)[0]) in held:
            arrived[place][days] = key
    kept: dict[str, str] = {}
    keys: dict[str, str | None] = {}
    for place, before in held.items():
        new = [days for days in arrived[place] if days not in before]
        if any(_overlap(days, others) for days in new for others in before):
            keys |= dict.fromkeys(arrived[place].values())
            kept |= dict(before.values())
            continue
        used = {key for key, _ in before.values()}
        free = (key for number in count(1) if (key := f"{place}-{number}") not in used)
        keys |= {key: before[days][0] if days in before else next(free) for days, key in arrived[place].items()}
        kept |= dict(of for days, of in before.items() if days not in arrived[place])
    now = [keys.get(key, key) for key in policies["key"].to_pylist()]
    place_of_key = policies.schema.get_field_index("key")
    policies = policies.set_column(place_of_key, "key", pa.array(now, pa.string()))
    return policies.filter(pc.is_valid(policies["key"])), kept


def _held(connection: Connection, places: Collection[Place]) -> dict[str, dict[str | None, tuple[str, str]]]:
    """What holds at the places that a turned-away row may be for: place's key -> days of general waste -> (key, content hash)."""
    from sqlalchemy import text

    whole = {place_key(place) for place in places if None not in place}
    # Of the others, by which parts can be read: the places that agree in those.
    partly: dict[tuple[int, ...], set[Place]] = {}
    for place in places:
        if None in place:
            read = tuple(number for number, part in enumerate(place) if part is not None)
            partly.setdefault(read, set()).add(tuple(place[number] for number in read))
    sql = "SELECT key, content_hash, content FROM policy WHERE valid_to IS NULL"
    if not partly:
        sql += " AND split_part(key, '-', 1) = ANY(:places)"
    held: dict[str, dict[str | None, tuple[str, str]]] = {}
    for key, content_hash, content in connection.execute(text(sql), {} if partly else {"places": list(whole)}):
        own = key.rsplit("-", 1)[0]
        if own not in whole:
            parts = place_of({name: content[name] or "" for name in PLACE})
            if not any(tuple(parts[number] for number in read) in found for read, found in partly.items()):
                continue
        held.setdefault(own, {})[content["general_days"]] = (key, content_hash)
    return held


def _overlap(days: str | None, others: str | None) -> bool:
    return bool(days and others and set(days.split("+")) & set(others.split("+")))


def _rows(policies: pa.Table, wanted: Collection[str]) -> Iterator[Row]:
    """The policies whose keys are wanted. The others' content is not even made."""
    names = ("key", "content_hash", *FIELDS)
    for batch in policies.select(list(names)).to_batches(max_chunksize=10_000):
        for key, content_hash, *values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if key in wanted:
                content = dict(zip(FIELDS, values, strict=True))
                yield key, content_hash, content["sido"], content["sigungu"], canonical(content)


def upsert(
    connection: Connection, version: str, keys: Iterable[tuple[str, str]], rows: Callable[[Collection[str]], Iterable[Row]]
) -> Applied:
    """Make what `keys` names (key, content hash) the current policies, in the connection's transaction.

    COPY of the keys into a staging table; what changed or is gone is closed; of what changed or is new, and of nothing else, `rows` is
    asked for the content, which COPY adds.
    """
    from sqlalchemy import text

    connection.execute(text('CREATE TEMPORARY TABLE arrived (key text COLLATE "C", content_hash text COLLATE "C") ON COMMIT DROP'))
    count = copy_rows(connection, "arrived", ("key", "content_hash"), keys)
    connection.execute(text("ANALYZE arrived"))
    at = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    close = (
        "UPDATE policy p SET valid_to = :at, closed_by = :v WHERE valid_to IS NULL "
        "AND NOT EXISTS (SELECT FROM arrived a WHERE (a.key, a.content_hash) = (p.key, p.content_hash))"
    )
    closed = connection.execute(text(close), {"at": at, "v": version}).rowcount
    missing = "SELECT key FROM arrived a WHERE NOT EXISTS (SELECT FROM policy p WHERE p.key = a.key AND p.valid_to IS NULL)"
    wanted = set(connection.execute(text(missing)).scalars())
    columns = ("key", "content_hash", "sido", "sigungu", "content", "valid_from", "version")
    since = at.isoformat()  # as text, once: not 100,000 times
    added = copy_rows(connection, "policy", columns, ((*row, since, version) for row in rows(wanted))) if wanted else 0
    # Of what was closed, the keys that are there again were changed.
    changed = 0
    if closed and added:
        again = "SELECT count(*) FROM policy p JOIN arrived a USING (key) WHERE p.valid_to = :at AND p.closed_by = :v"
        changed = int(connection.execute(text(again), {"at": at, "v": version}).scalar_one())
    return Applied(version, new=added - changed, changed=changed, gone=closed - changed, unchanged=count - added)


def _record(connection: Connection, done: Applied, arrived_at: Any, table: PublishedTable) -> None:
    from sqlalchemy import text

    connection.execute(
        text(
            "INSERT INTO policy_version (version, arrived_at, table_sha256, applied_at, new, changed, gone, unchanged, kept) "
            "VALUES (:v, :arrived, :sha, clock_timestamp(), :new, :changed, :gone, :unchanged, :kept) ON CONFLICT (version) DO UPDATE SET "
            "table_sha256 = excluded.table_sha256, applied_at = excluded.applied_at, new = policy_version.new + excluded.new, "
            "changed = policy_version.changed + excluded.changed, gone = policy_version.gone + excluded.gone, "
            "unchanged = excluded.unchanged, kept = excluded.kept "
            "WHERE policy_version.table_sha256 <> excluded.table_sha256 OR excluded.new + excluded.changed + excluded.gone > 0"
        ),
        {
            "v": done.version,
            "arrived": arrived_at,
            "sha": table.sha256,
            "new": done.new,
            "changed": done.changed,
            "gone": done.gone,
            "unchanged": done.unchanged,
            "kept": done.kept,
        },
    )
