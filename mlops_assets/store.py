"""The object store: one small class over `file://` (a folder) and `s3://` (obstore). Keys are relative to the store's URL.

Belongs here: bytes in, bytes out, listing, conditional put, and what of a listing is no object that we can address. Does not belong here:
what a key means (see `ingest/`, `lifecycle/`), Dagster.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from obstore.store import S3Store

    from mlops_assets.settings import Settings

CHUNK = 8 * 1024 * 1024
PIECE = 64 * 1024
#: As S3 has it; an index of PostgreSQL has an end, too.
MAX_KEY_BYTES: Final = 1024
#: How the keys of empty objects end that stand for folders: those of consoles, and of Hadoop.
PLACEHOLDER: Final = ("/", "_$folder$")
#: Where a file store writes what is not whole yet; nothing of it is listed.
STAGING: Final = ".staging"
STAGING_SECONDS: Final = 86_400

#: Why something in a listing is no object of ours -> what that means and what to do.
ODD: Final = {
    "odd_name": "its name cannot be used ({what}): remove it, or rename it and land it again",
    "link": "it is a link, and links are never followed: remove it, and land the file itself (`cp -L` copies it)",
    "not_a_file": "it is neither a file nor a folder (a pipe, a socket or a device): remove it",
    "unreadable": "it may not be read: give the platform's user the right to read it",
}


@dataclass(frozen=True)
class Odd:
    """Why something in a listing cannot be used: a code of ODD and the sentence with the fix."""

    code: str
    reason: str


@dataclass(frozen=True)
class ObjectInfo:
    """One object as a listing shows it.

    Attributes:
        etag: the store's own identity of these bytes.
        last_modified: aware UTC.
        odd: it cannot be used, and why; `key` is then only printable. None: an object like any other.
        arrived: when it came to lie here, aware UTC; on a file system later than `last_modified`, which copies keep.
    """

    key: str
    size: int
    etag: str
    last_modified: datetime
    version: str | None = None
    odd: Odd | None = None
    arrived: datetime | None = None


class NotAFile(OSError):
    """What lies at the key is a link, a pipe or a device: it is not opened."""


def odd(code: str, what: str = "") -> Odd:
    return Odd(code, ODD[code].format(what=what))


def odd_name(key: str) -> Odd | None:
    """Why no object can have this key (a file's name where bytes that are not UTF-8 are surrogates); None: it can."""
    parts = key.split("/")
    if "" in parts:
        return odd("odd_name", "a folder without a name: two slashes, or one at an end")
    if "." in parts or ".." in parts:
        return odd("odd_name", "a folder called . or ..")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in key):
        return odd("odd_name", "a control character, such as the end of a line")
    if any(0xD800 <= ord(c) <= 0xDFFF for c in key):
        return odd("odd_name", "bytes that are not UTF-8")
    if len(key.encode()) > MAX_KEY_BYTES:
        return odd("odd_name", f"longer than {MAX_KEY_BYTES} bytes")
    return None


def printable(key: str) -> str:
    """A key as it is stored and shown: one of which `odd_name` has something to say on one line, in UTF-8, and of bounded length."""
    if odd_name(key) is None:
        return key
    shown = "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in key)
    if len(shown.encode()) <= MAX_KEY_BYTES:
        return shown
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{shown.encode()[: MAX_KEY_BYTES // 2].decode('utf-8', 'ignore')}...{digest[:16]}"


def _escaped(c: str) -> str:
    if 0xDC80 <= ord(c) <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()


class ObjectStore:
    """Objects under one URL.

    Raises (every method): FileNotFoundError for a missing key; NotAFile for a link or a device; OSError for what the store answers
    otherwise. A listing that fails raises, it never looks empty.
    """

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._endpoint_url = endpoint_url
        self.local_root: Path | None = None
        self._files: _Files | None = None
        if url.startswith("file://"):
            self.local_root = Path(url.removeprefix("file://"))
            self._files = _Files(self.local_root)

    @cached_property
    def _store(self) -> S3Store:
        """Made on first use: a server that finds its bundles on disk never needs it."""
        from obstore.store import S3Store

        endpoint = self._endpoint_url
        options: dict[str, Any] = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
        if endpoint and endpoint.startswith("http://"):
            options["client_options"] = {"allow_http": True}
        return S3Store.from_url(self.url, **options)

    @classmethod
    def of(cls, settings: Settings) -> ObjectStore:
        return cls(settings.store_url, settings.s3_endpoint_url)

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Everything under `prefix` (folder semantics), streamed; after key `after` where given. What is `odd` is among it: one key that
        cannot be used must not hide the others. An empty object whose key ends in a slash is a folder that a console drew, no object."""
        if self._files is not None:
            found = self._files.list(prefix)
            yield from found if after is None else (info for info in sorted(found, key=lambda info: info.key) if info.key > after)
            return
        for page in self._pages(prefix, after=after):
            for entry in page.entries:
                key = entry[0]
                if entry[1] or not key.endswith(PLACEHOLDER):
                    yield _listed(*entry)

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders directly under `prefix`, sorted: one request per 1,000, whatever they hold. Odd ones are among them."""
        return self.level(prefix)[0]

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """The names of the folders directly under `prefix`, sorted, and the objects there."""
        if self._files is not None:
            return self._files.level(prefix)
        pages = list(self._pages(prefix, delimiter="/"))
        loose = [_listed(*entry) for page in pages for entry in page.entries if entry[1] or not entry[0].endswith(PLACEHOLDER)]
        return sorted(name for page in pages for name in page.folders), loose

    def _pages(self, prefix: str, *, after: str | None = None, delimiter: str | None = None) -> Iterator[_Page]:
        """Every page of a listing, with keys as they are: obstore refuses a page for one odd key in it, and loses the slash at the end."""
        bucket, _, base = self.url.removeprefix("s3://").partition("/")
        base = f"{base}/" if base else ""
        asked: dict[str, str] = {"Bucket": bucket, "Prefix": f"{base}{prefix}/" if prefix else base, "EncodingType": "url"}
        asked |= {"StartAfter": base + after} if after else {}
        asked |= {"Delimiter": delimiter} if delimiter else {}
        while True:
            page = _list_page(self._endpoint_url, asked, len(base))
            yield page
            if page.next is None:
                return
            asked["ContinuationToken"] = page.next

    def head(self, key: str) -> ObjectInfo:
        import obstore

        return self._files.head(key) if self._files is not None else _info(obstore.head(self._store, key))

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except (FileNotFoundError, NotAFile):
            return False
        return True

    def get(self, key: str) -> bytes:
        """The whole object; only for what is small by contract (reports, receipts)."""
        import obstore

        if self._files is not None:
            with self._files.open(key) as file:
                return file.read()
        return bytes(obstore.get(self._store, key).bytes())

    def stream(self, key: str, *, etag: str | None = None) -> Iterator[bytes]:
        """The object's bytes in chunks. With `etag`: FileNotFoundError/OSError when the object is no longer that one."""
        import obstore

        if self._files is not None:
            with self._files.open(key) as file:
                while chunk := file.read(CHUNK):
                    yield chunk
            return
        options: Any = {"if_match": etag} if etag else None
        for chunk in obstore.get(self._store, key, options=options).stream(min_chunk_size=CHUNK):
            yield bytes(chunk)

    def digest(self, key: str) -> str:
        """SHA-256 (hex) of the object's bytes."""
        digest = hashlib.sha256()
        for chunk in self.stream(key):
            digest.update(chunk)
        return digest.hexdigest()

    def holds(self, key: str, sha256: str) -> bool:
        """Whether the object is there with these very bytes: its name and size are anybody's who can write here."""
        try:
            return self.digest(key) == sha256
        except FileNotFoundError:
            return False

    def put(self, key: str, data: bytes | Path) -> None:
        import obstore

        if self._files is not None:
            self._files.put(key, data)
        elif isinstance(data, Path):
            with open_file(data) as source:
                obstore.put(self._store, key, source)
        else:
            obstore.put(self._store, key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Atomic create. False when the key exists already (nothing is written)."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            if self._files is not None:
                self._files.put(key, data, create=True)
            else:
                obstore.put(self._store, key, data, mode="create")
        except (AlreadyExistsError, FileExistsError):
            return False
        return True

    def delete(self, key: str) -> None:
        """Missing is fine."""
        import obstore

        with suppress(FileNotFoundError):
            if self._files is not None:
                self._files.delete(key)
            else:
                obstore.delete(self._store, key)

    def tighten(self, *, landing: bool) -> int:
        """Take from others what they could read of a file store, and remove what killed writers left; how many files and folders changed.

        Args:
            landing: also of the landing zone and of the way there. Not where others are to put files into it.
        """
        return self._files.tighten(landing) if self._files is not None else 0

    def download(self, key: str, target: Path, *, limit: int | None = None) -> str:
        """Stream to `target`; returns the SHA-256 (hex). ValueError when longer than `limit` bytes (nothing is left behind)."""
        digest = hashlib.sha256()
        size = 0
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as file:
                for chunk in self.stream(key):
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise ValueError(f"{key} is longer than {limit} bytes")
                    digest.update(chunk)
                    # In small pieces: what is written at once is cached in huge pages, which a server that maps a row of it holds whole.
                    for start in range(0, len(chunk), PIECE):
                        file.write(memoryview(chunk)[start : start + PIECE])
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return digest.hexdigest()


def _info(meta: Any) -> ObjectInfo:
    modified: datetime = meta["last_modified"]
    arrived = modified.replace(microsecond=0)  # a head has seconds, whatever a listing has
    return ObjectInfo(meta["path"], meta["size"], (meta["e_tag"] or "").strip('"'), modified, meta["version"], arrived=arrived)


# --- S3 as it is ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    """A page of a listing. `entries`: (key, size, etag, last modified)."""

    entries: list[tuple[str, int, str, datetime]]
    folders: list[str]
    next: str | None


def _listed(key: str, size: int, etag: str, modified: datetime) -> ObjectInfo:
    found = odd_name(key)
    return ObjectInfo(printable(key), size, etag, modified, odd=found, arrived=modified.replace(microsecond=0))


@lru_cache(maxsize=4)
def _s3_client(endpoint: str | None) -> Any:
    """A client whose listings come unparsed: botocore's own parser takes four times as long as ours."""
    import boto3
    from botocore.config import Config

    from mlops_assets.settings import process_environment

    environment = process_environment()
    style: dict[str, Any] = {"s3": {"addressing_style": "path"}} if endpoint else {}
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
        config=Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 4}, **style),
    )

    def unparsed(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] == 200:
            customized_response_dict["Body"], response_dict["body"] = response_dict["body"], b"<ListBucketResult/>"

    client.meta.events.register("before-parse.s3.ListObjectsV2", unparsed)
    return client


def _list_page(endpoint: str | None, asked: Mapping[str, str], base: int) -> _Page:
    """Raises OSError."""
    from urllib.parse import unquote_plus
    from xml.etree import ElementTree

    from botocore.exceptions import BotoCoreError, ClientError

    try:
        root = ElementTree.fromstring(_s3_client(endpoint).list_objects_v2(**asked)["Body"])
    except (BotoCoreError, ClientError, ElementTree.ParseError) as error:
        raise OSError(f"s3://{asked['Bucket']}/{asked['Prefix']} cannot be listed: {error}") from error
    name = root.tag[: root.tag.index("}") + 1] if root.tag.startswith("{") else ""
    encoded = root.findtext(f"{name}EncodingType") == "url"

    def key_of(element: ElementTree.Element, tag: str) -> str:
        text = element.findtext(name + tag) or ""
        return (unquote_plus(text, errors="surrogateescape") if encoded else text)[base:]

    entries = []
    for found in root.iterfind(f"{name}Contents"):
        modified = datetime.fromisoformat(found.findtext(f"{name}LastModified") or "")
        etag = (found.findtext(f"{name}ETag") or "").strip('"')
        entries.append((key_of(found, "Key"), int(found.findtext(f"{name}Size") or 0), etag, modified))
    folders = [key_of(found, "Prefix").removesuffix("/").rsplit("/", 1)[-1] for found in root.iterfind(f"{name}CommonPrefixes")]
    more = root.findtext(f"{name}IsTruncated") == "true"
    return _Page(entries, folders, root.findtext(f"{name}NextContinuationToken") if more else None)


# --- a folder as a store --------------------------------------------------------------------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)


class _Files:
    """Objects as files below a folder that its owner alone may read. Links are not followed below the folders of the first level."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        base = self._checked(prefix, listing=True)
        for info in files_below(base if "/" in prefix else base.resolve(), prefix):
            if not info.key.startswith(f"{STAGING}/"):
                yield info

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Links to folders are among the folders: listing one shows what it is."""
        base = self._checked(f"{prefix}/x", listing=True).parent
        folders, loose = [], []
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(base) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found, key = entry.stat(follow_symlinks=False), f"{prefix}/{entry.name}"
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif stat.S_ISREG(found.st_mode):
                        loose.append(_file_info(key, found, odd_name(key)))
                    else:
                        loose.append(_file_info(key, found, odd_name(key) or _no_file(found)))
        return sorted(folders), loose

    def head(self, key: str) -> ObjectInfo:
        path = self._checked(key)
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "is a folder", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise NotAFile(errno.ELOOP, "is no file", str(path))
        return _file_info(key, found, None)

    def open(self, key: str) -> IO[bytes]:
        """The file, for reading, opened without waiting for a pipe and without following a link."""
        path = self._checked(key)
        try:
            return open_file(path)
        except IsADirectoryError as error:  # a file where a folder was is another thing: a store that is broken is not empty
            raise FileNotFoundError(*error.args) from None

    def put(self, key: str, data: bytes | Path, *, create: bool = False) -> None:
        target = self._checked(key)
        self._folder(target.parent)
        self._folder(self.root / STAGING)
        staged = self.root / STAGING / secrets.token_hex(16)
        try:
            with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                if isinstance(data, Path):
                    with open_file(data) as source:
                        shutil.copyfileobj(source, file, 1024 * 1024)
                else:
                    file.write(data)
            if create:
                os.link(staged, target)
            else:
                os.replace(staged, target)
        finally:
            with suppress(FileNotFoundError):
                staged.unlink()

    def delete(self, key: str) -> None:
        try:
            self._checked(key).unlink()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def tighten(self, landing: bool) -> int:
        root = self.root.resolve()
        changed = _close_to_others(root) if landing else 0
        for folder, folders, files in os.walk(root):
            if not landing and Path(folder) == root:
                folders[:] = [name for name in folders if name != "landing"]
            changed += sum(_close_to_others(Path(folder, name)) for name in (*folders, *files))
        for left in (self.root / STAGING).glob("*"):
            with suppress(OSError):
                if left.lstat().st_mtime < time.time() - STAGING_SECONDS:
                    left.unlink()
        return changed

    def _folder(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)

    def _checked(self, key: str, *, listing: bool = False) -> Path:
        """The path of a key; to list, it may be an odd one. ValueError: no object can have it; NotAFile: the way there is a link."""
        key = key.strip("/")
        path = self.root
        if not key and listing:
            return path
        if (found := odd_name(key)) is not None and not (listing and not {"", ".", ".."} & set(key.split("/"))):
            raise ValueError(f"{printable(key)!r}: {found.reason}")
        for depth, part in enumerate(key.split("/")):
            if depth > 1 and path.is_symlink():
                raise NotAFile(errno.ELOOP, "is a link", str(path))
            path = path / part
        return path


def _close_to_others(path: Path) -> bool:
    """Whether somebody but the owner could use it until now. What is another user's stays as it is."""
    with suppress(OSError):
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077:
            path.chmod(found.st_mode & 0o700)
            return True
    return False


def _no_file(found: os.stat_result) -> Odd:
    return odd("link" if stat.S_ISLNK(found.st_mode) else "not_a_file")


def _file_info(key: str, found: os.stat_result, why: Odd | None) -> ObjectInfo:
    key = printable(key)
    # The identity that obstore gives a file, too: ledgers of before know it.
    etag = f"{found.st_ino:x}-{found.st_mtime_ns // 1000:x}-{found.st_size:x}"
    return ObjectInfo(key, found.st_size, etag, _time(found.st_mtime_ns), odd=why, arrived=_time(found.st_ctime_ns))


def _time(nanoseconds: int) -> datetime:
    try:
        return min(_EPOCH + timedelta(microseconds=nanoseconds // 1000), _LATEST)
    except OverflowError:  # a file may say that it is of the year 30,000
        return _LATEST if nanoseconds > 0 else _EPOCH


def open_file(path: Path) -> IO[bytes]:
    """A file for reading. NotAFile: it is a link, a pipe or a device, and is not opened."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise NotAFile(errno.ELOOP, "is no file", str(path)) from None
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        raise NotAFile(errno.ELOOP, "is no file", str(path))
    return os.fdopen(handle, "rb")


def files_below(base: Path, prefix: str, name: str | None = None) -> Iterator[ObjectInfo]:
    """What lies below a folder, under keys that begin with `prefix`; with a `name`: that one file, `base`."""
    found = walk(base) if name is None else iter([(name, base.stat(), None)])
    for below, status, why in found:
        key = f"{prefix}/{below}".strip("/") if below else prefix
        yield _file_info(key, status, odd_name(key) or why)


def walk(base: Path) -> Iterator[tuple[str, os.stat_result, Odd | None]]:
    """Every file below a folder, and what is no file: its name from there (bytes that are not UTF-8 are surrogates), and why it is odd.

    A link is not followed, and a folder that may not be read is itself in the answer. What vanishes meanwhile is not.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        path = os.path.join(base, folder) if folder else os.fspath(base)  # a slash at its end would follow a link
        try:
            here = os.lstat(path)
            if stat.S_ISLNK(here.st_mode):
                yield folder, here, odd("link")
                continue
            entries = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            yield folder, here, odd("unreadable")
            continue
        with entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISDIR(found.st_mode):
                    yield name, found, None if stat.S_ISREG(found.st_mode) else _no_file(found)
                elif len(os.fsencode(name)) > MAX_KEY_BYTES:
                    yield name, found, odd_name("x" * (MAX_KEY_BYTES + 1))
                else:
                    waiting.append(name)


def sha256_file(path: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1024**2))  # large pieces: the interpreter's lock is fought over once per piece
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()
