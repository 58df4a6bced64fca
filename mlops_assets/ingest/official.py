"""Data sets from their official sources: resumed when interrupted, checked, and put in place whole or not at all.

Belongs here: downloading named files over HTTP. Does not belong here: which files (the configurations), landing them (`objects.py`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ConfigDict, ValidationError

from mlops_assets.settings import Settings, Strict, read_yaml
from mlops_assets.store import sha256_file

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

#: Beside the files: what was downloaded from where, with its digest. A source without a published digest is held to its first one.
RECORD: Final = "official.json"
TRIES: Final = 3
TIMEOUT_SECONDS: Final = 30.0


class PullError(ValueError):
    """A file could not be had, or is not the one that was promised. The message says which, why and what to do."""


class OfficialFile(Strict):
    """One file at its official source. A source that publishes no digest is held to the first one that was seen."""

    name: str
    url: str
    sha256: str | None = None


class OfficialData(Strict):
    """A data set by name, as `datasets.<name>` of a system's configuration describes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    official: tuple[OfficialFile, ...] = ()
    licence: str = "not stated"
    attribution: str = ""


@dataclass(frozen=True)
class Pulled:
    """Where the data set is now. `fetched` names the files that were not there before."""

    name: str
    folder: Path
    files: Sequence[str]
    fetched: Sequence[str]
    licence: str
    attribution: str


def pull(settings: Settings, name: str, target: Path | None = None, *, say: Callable[[str], None] = logger.info) -> Pulled:
    """Download what is missing of the data set `name` into `target` (default: `<home>/data/<name>`).

    Args:
        say: told the licence, the attribution and what happens to each file.

    Raises:
        PullError: unknown name, a source that does not answer, or a wrong digest (such a file is not kept).
    """
    data = _find(settings, name)
    folder = target or settings.home / "data" / name
    say(f"{name}: licence {data.licence}; attribution: {data.attribution or 'none asked for'}")
    folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(folder)
    fetched = []
    for file in data.official:
        expected = file.sha256 or record.get(file.name, {}).get("sha256")
        path = folder / file.name
        if path.is_file() and expected is not None and sha256_file(path) == expected:
            say(f"{file.name}: there already")
            continue
        found = _download(file, path, expected, say)
        record[file.name] = {"url": file.url, "sha256": found, "licence": data.licence, "attribution": data.attribution}
        _write_record(folder, record)
        fetched.append(file.name)
    return Pulled(name, folder, [file.name for file in data.official], fetched, data.licence, data.attribution)


def _find(settings: Settings, name: str) -> OfficialData:
    """The data set among all systems' configurations; read as plain YAML, for this module knows no system."""
    known: dict[str, tuple[Path, Any]] = {}
    for path in sorted(settings.configs.glob("*.yaml")):
        for found, section in (read_yaml(path).get("datasets") or {}).items():
            if isinstance(section, dict) and section.get("official"):
                known[found] = (path, section)
    if name not in known:
        raise PullError(f"no official source is known for {name!r}: choose from {', '.join(sorted(known)) or 'none (see configs/)'}")
    path, section = known[name]
    try:
        return OfficialData.model_validate(section)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PullError(f"{path}: datasets.{name}: {problems}") from None


def _download(file: OfficialFile, path: Path, expected: str | None, say: Callable[[str], None]) -> str:
    import httpx

    part = path.with_name(path.name + ".part")
    problem = ""
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS) as client:
        for _ in range(TRIES):
            try:
                _continue(client, file.url, part, say)
            except httpx.HTTPStatusError as error:
                problem = f"the server answers {error.response.status_code}"
                if error.response.status_code < 500:
                    break
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                return _accept(file, path, part, expected)
    raise PullError(
        f"{file.name} could not be downloaded from {file.url}: {problem}. What has come so far is kept and resumed by the same command; "
        f"without a network, put the file into {path.parent} by hand."
    )


def _continue(client: httpx.Client, url: str, part: Path, say: Callable[[str], None]) -> None:
    """Append what is missing to `part`. The tag beside it makes sure that both halves are of one version of the file."""
    tag = part.with_name(part.name + ".etag")
    headers = {"Accept-Encoding": "identity"}  # a range of compressed bytes could not be appended
    have = part.stat().st_size if part.exists() else 0
    if have and tag.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="utf-8")}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:
            # Nothing is left to fetch, or the part is of another file: its digest will tell, from the beginning next time.
            part.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)
            response.raise_for_status()
        response.raise_for_status()
        resumed = response.status_code == 206
        if etag := response.headers.get("etag"):
            tag.write_text(etag, encoding="utf-8")
        else:
            tag.unlink(missing_ok=True)
        say(f"{part.stem}: {'resuming at ' + str(have) if resumed else 'downloading'} of {_total(response, have if resumed else 0)} bytes")
        with part.open("ab" if resumed else "wb") as output:
            for chunk in response.iter_raw():
                output.write(chunk)


def _total(response: httpx.Response, have: int) -> str:
    length = response.headers.get("content-length")
    return str(int(length) + have) if length else "unknown"


def _accept(file: OfficialFile, path: Path, part: Path, expected: str | None) -> str:
    found = sha256_file(part)
    part.with_name(part.name + ".etag").unlink(missing_ok=True)
    if expected is not None and found != expected:
        part.unlink()
        raise PullError(
            f"{file.name} from {file.url} has the digest {found}, expected {expected}: it is not kept. "
            f"The source may have changed: compare, then correct `sha256` in configs/ or delete {path.parent / RECORD}."
        )
    os.replace(part, path)
    return found


def _read_record(folder: Path) -> dict[str, Mapping[str, str]]:
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PullError(f"{folder / RECORD} is not JSON ({error}): delete it and pull again") from None
    return dict(content)


def _write_record(folder: Path, record: Mapping[str, Mapping[str, str]]) -> None:
    aside = folder / f"{RECORD}.part"
    aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, folder / RECORD)
