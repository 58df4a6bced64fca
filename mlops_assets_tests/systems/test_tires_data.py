"""Cleaning photos of tires: every file and index item is accounted for, families never cross a split, the contract refuses bad tables."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from pydantic import ValidationError
from sqlalchemy import Engine, text

from mlops_assets.ingest import likeness, objects
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.dataset import NothingLeft
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.sample_data import write_tires
from mlops_assets.settings import Settings, load_config
from mlops_assets.store import ObjectStore
from mlops_assets.systems.tires import assets, data
from mlops_assets.systems.tires.config import DatasetSection, TiresConfig, TrainingSection
from mlops_assets.systems.tires.data import Cleaned
from mlops_assets_tests.factories import POINTER

SECTION = DatasetSection(
    labels={"good": ("good", "정상", "0"), "defective": ("defective", "MT_Crack", "결함", "1")},
    ignored_files=("*.png",),
    group_pattern=r"exp\d+_num_(\d+)",
    series_gap=150,
)


def photo(number: int, form: str = "JPEG", side: int = 48, **options: Any) -> bytes:
    """A photo unlike any other number's, in any format."""
    cells = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).save(out, form, **options)
    return out.getvalue()


def gif(frames: int) -> bytes:
    pages = [Image.fromarray(np.full((20, 20), 60 * n, np.uint8)) for n in range(frames)]
    out = io.BytesIO()
    pages[0].save(out, "PNG" if frames > 1 else "GIF", save_all=frames > 1, append_images=pages[1:])
    return out.getvalue()


def bomb() -> bytes:
    """A few hundred bytes that would be 10 GB of pixels."""
    png = photo(502, "PNG")
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def brighter(content: bytes, by: int, quality: int) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(content)).point(lambda v: min(255, int(v * 0.8) + by)).resize((60, 60)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def folders(count: int = 40, start: int = 0) -> dict[str, bytes]:
    """Photos of pieces that have nothing to do with each other, half of them defective."""
    return {f"{'MT_Crack' if n % 2 else 'good'}/Imgs/exp1_num_{1000 * n}.jpg": photo(n) for n in range(start, start + count)}


def index(items: Any) -> bytes:
    return json.dumps({"annotation": {"data": items}}, ensure_ascii=False).encode()


@pytest.fixture
def version(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., dataset.Manifest]:
    """A function (name, files) that lands, closes and freezes a version."""

    def make(name: str, files: Mapping[str, bytes], parent: str | None = None) -> dataset.Manifest:
        folder = tmp_path / "landing" / name
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        return freeze(settings, store, engine, folder, name, tmp_path, parent)

    return make


def freeze(settings, store, engine, folder: Path, name: str, tmp_path: Path, parent: str | None = None) -> dataset.Manifest:
    objects.land(settings, store, data.SYSTEM, folder, name, engine=engine, parent=parent)
    objects.tick(engine, store, data.SYSTEM, settle_seconds=3600)
    return dataset.freeze(engine, store, data.SYSTEM, name, max_object_bytes=10**9, scratch=tmp_path / "freeze")


@pytest.fixture
def clean(store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., Cleaned]:
    def run(manifest: dataset.Manifest, section: DatasetSection = SECTION) -> Cleaned:
        scratch = tmp_path / "clean" / str(len(list((tmp_path / "clean").glob("*"))))
        scratch.mkdir(parents=True)
        done = data.clean(engine, store, manifest, section, scratch, threads=1)
        account = data.account(engine, store, manifest.version)
        assert account.adds_up, account.sentence
        return done

    return run


@pytest.fixture
def rows(store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[[str], pd.DataFrame]:
    def load(name: str) -> pd.DataFrame:
        table = data.load_cleaned(store, engine, name, tmp_path / "tables" / name)
        frame = data.read_table(table)
        assert len(frame) == table.rows and data.check_contract(frame) == []
        return frame

    return load


def quarantined(engine: Engine, name: str) -> dict[tuple[str, int], str]:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT source, line, reason_code FROM quarantined_row WHERE version = :v"), {"v": name})
        return {(row.source, row.line): row.reason_code for row in found}


def ledger(engine: Engine, name: str) -> dict[str, str | None]:
    """Path -> reason code of each file; None: accepted."""
    with engine.connect() as connection:
        found = connection.execute(text("SELECT key, state, reason_code FROM landing_object WHERE version = :v"), {"v": name}).all()
        assert all((row.state == "accepted") == (row.reason_code is None) for row in found)
        return {row.key.split("/", 3)[3]: row.reason_code for row in found}


# --- folders per label ----------------------------------------------------------------------------------------------------------


def test_every_rule_and_every_file(version, clean, rows, engine: Engine) -> None:
    bad = {
        "good/empty.jpg": (b"", "empty_file"),
        "good/empty_too.jpg": (b"", "empty_file"),
        "good/text.jpg": (b"<html>not found</html>", "not_an_image"),
        "good/pointer.jpg": (POINTER, "lfs_pointer"),
        "good/half.jpg": (photo(500)[:300], "truncated"),
        "good/still.gif": (gif(1), "bad_format"),
        "good/moving.png": (gif(3), "animated"),
        "good/really_a_png.jpg": (photo(501, "PNG"), "wrong_extension"),
        "good/large.jpg": (b"\xff\xd8\xff" + bytes(20 * 1024**2), "too_large_file"),
        "good/bomb.png": (bomb(), "too_many_pixels"),
        "good/again.jpg": (photo(3000), "duplicate_image"),
        "good/both.jpg": (photo(504), "conflicting_labels"),
        "결함/both.jpg": (photo(504), "conflicting_labels"),
        "unsorted/which.jpg": (photo(505), "unknown_label"),
        "photo_at_the_root.jpg": (photo(506), "unknown_label"),
        "good/exp1_num_2000.png": (photo(507, "PNG"), "mask"),
        "README.md": (b"hello", "unexpected_file"),
    }
    good = folders() | {"good/a.jpg": photo(3000), "정상/한글 이름.webp": photo(508, "WEBP"), "GOOD/CAPITALS.JPG": photo(509)}
    good["good/exp1_num_2000.jpg"] = photo(510)
    manifest = version("v1", good | {name: content for name, (content, _) in bad.items()})
    expected = {name: code for name, (_, code) in bad.items()}
    done = clean(manifest)
    found = {name: code for (name, line), code in quarantined(engine, "v1").items() if line == 0}
    assert found == {name: code for name, code in expected.items() if name != "README.md"}
    assert done.refused_files == {"README.md": "unexpected_file"}
    assert done.rows_in == len(good) + len(bad) - 1 and done.accepted == len(good) == len(rows("v1"))
    states = ledger(engine, "v1")
    assert {name for name, code in states.items() if code is None} == set(good)
    assert {name: code for name, code in states.items() if code is not None} == expected
    assert set(done.quarantined) <= set(data.ROW_REASONS)
    frame = rows("v1").set_index("path")
    assert frame.loc["정상/한글 이름.webp", "label"] == 0 and (frame.filter(like="MT_Crack", axis=0)["label"] == 1).all()
    assert frame.loc["good/a.jpg", ["width", "height"]].tolist() == [48, 48]
    assert frame.loc["good/a.jpg", "id"] == hashlib.sha256(good["good/a.jpg"]).hexdigest()


def test_pngs_without_a_photo_beside_them_are_photos(version, clean) -> None:
    files = {name.replace(".jpg", ".png"): photo(n, "PNG") for n, name in enumerate(folders())}
    assert clean(version("v1", files)).accepted == 40


def test_the_same_rules_again_change_nothing_and_other_rules_replace(version, clean, rows, store: ObjectStore, engine: Engine) -> None:
    manifest = version("v1", folders() | {"unsorted/x.jpg": photo(600)})
    first = clean(manifest)
    before = {info.key: info.etag for info in store.list("cleaned")}
    again = clean(manifest)
    assert again.unchanged and again.table == first.table and again.quarantined == first.quarantined == {"unknown_label": 1}
    assert {info.key: info.etag for info in store.list("cleaned")} == before
    labels = SECTION.labels | {"good": ("good", "unsorted")}
    wider = clean(manifest, SECTION.model_copy(update={"labels": labels}))
    assert not wider.unchanged and wider.accepted == first.accepted + 1 == len(rows("v1"))
    assert ledger(engine, "v1")["unsorted/x.jpg"] is None, "a file may be used after all"
    store.delete(f"{wider.table.prefix}/{wider.table.parts[0].name}")
    assert not clean(manifest).unchanged and len(rows("v1")) == 40, "a table that was harmed is made again"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({f"good/{n}.jpg": photo(n) for n in range(40)}, "no train photo is defective, no holdout photo is defective of 40 rows"),
        ({"good/1.jpg": b"", "defective/2.jpg": b"x"}, r"2 rows \(1 not_an_image, 1 empty_file\)"),
        ({f"{'good' if n % 2 else 'defective'}/{n}.jpg": brighter(photo(1), n, 80) for n in range(20)}, "20 of them belong together"),
        ({"readme.md": b"hello"}, r"1 unexpected_file \(file\)"),
    ],
)
def test_a_version_of_which_nothing_is_left_is_refused(
    version, clean, engine: Engine, store: ObjectStore, tmp_path: Path, files, message
) -> None:
    manifest = version("v1", files)
    with pytest.raises(NothingLeft, match=message):
        clean(manifest)
    with pytest.raises(dataset.DatasetError, match="was refused"):
        data.load_cleaned(store, engine, "v1", tmp_path / "t")


# --- a JSON index ---------------------------------------------------------------------------------------------------------------


def test_an_index_labels_its_photos(version, clean, rows) -> None:
    photos = {f"photos/{n}.jpg": photo(n) for n in range(60)}
    values = {0: 1, 1: "결함", 2: "MT_Crack", 3: "1", 4: " Defective "}
    items = [{"FilePath": name, "label_value": values[n % 5] if n % 2 else 0, "extra": None} for n, name in enumerate(photos)]
    done = clean(version("v1", photos | {"annotations/labels.json": b"\xef\xbb\xbf" + index(items)}))
    assert (done.rows_in, done.accepted, done.quarantined, done.refused_files) == (60, 60, {}, {})
    frame = rows("v1").set_index("path")
    assert all(frame.loc[name, "label"] == n % 2 for n, name in enumerate(photos))


def test_hostile_items_are_refused_one_by_one(version, clean, rows, engine: Engine) -> None:
    hostile: list[tuple[Any, str]] = [
        ({"FilePath": "../v0/x.jpg", "label_value": 1}, "outside_dataset"),
        ({"FilePath": "photos/../../../etc/passwd", "label_value": 1}, "outside_dataset"),
        ({"FilePath": "/etc/passwd", "label_value": 1}, "outside_dataset"),
        ({"FilePath": "C:\\Users\\x.jpg", "label_value": 1}, "outside_dataset"),
        ({"FilePath": "s3://bucket/x.jpg", "label_value": 1}, "outside_dataset"),
        ({"FilePath": "photos/x\u0000.jpg", "label_value": 1}, "outside_dataset"),
        ({"FilePath": "", "label_value": 1}, "outside_dataset"),
        ({"FilePath": "photos/gone.jpg", "label_value": 1}, "missing_file"),
        ({"FilePath": "photos", "label_value": 1}, "missing_file"),
        ({"FilePath": "photos/x.jpg", "label_value": "maybe"}, "unknown_label"),
        ({"FilePath": "photos/x.jpg", "label_value": 2}, "unknown_label"),
        ({"FilePath": "photos/x.jpg", "label_value": True}, "unknown_label"),
        ({"FilePath": "photos/x.jpg", "label_value": [0]}, "unknown_label"),
        ({"FilePath": "photos/x.jpg"}, "malformed_row"),
        ({"FilePath": ["photos/x.jpg"], "label_value": 0}, "malformed_row"),
        ("photos/x.jpg", "malformed_row"),
        (None, "malformed_row"),
        ({"FilePath": "photos/twice.jpg", "label_value": 0}, "conflicting_labels"),
        ({"FilePath": "photos/./twice.jpg", "label_value": 1}, "conflicting_labels"),
        ({"FilePath": "good/Imgs/exp1_num_0.jpg", "label_value": 1}, "conflicting_labels"),
        ({"FilePath": "labels.json", "label_value": 1}, "not_an_image"),
        ({"FilePath": "photos/fine.jpg", "label_value": 1}, ""),
        ({"FilePath": "photos/fine.jpg", "label_value": "결함"}, "duplicate_image"),
    ]
    photos = {f"photos/{name}.jpg": photo(900 + n) for n, name in enumerate(("x", "twice", "fine"))}
    done = clean(version("v1", folders() | photos | {"labels.json": index([item for item, _ in hostile])}))
    assert {line: code for (source, line), code in quarantined(engine, "v1").items() if source == "labels.json"} == {
        line: code for line, (_, code) in enumerate(hostile, start=1) if code
    }
    frame = rows("v1")
    assert done.rows_in == 39 + len(hostile) and len(frame) == 40, "39 by their folders, and fine.jpg"
    states = ledger(engine, "v1")
    assert states["photos/fine.jpg"] is None and states["labels.json"] is None
    assert states["photos/x.jpg"] == "unknown_label" and states["photos/twice.jpg"] == "conflicting_labels"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (POINTER, "lfs_pointer"),
        (b"{", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"annotation": {"data": [{"FilePath": "x.jpg", "label_value": 1}]}, "annotation": {"data": []}}', "wrong_shape"),
        (b'{"annotation": {"data": [{"FilePath": "x.jpg", "label_value": 1}], "data": []}}', "wrong_shape"),
        ('{"annotation": "정상"}'.encode("cp949"), "not_json"),
        (b"[]", "wrong_shape"),
        (b"3", "wrong_shape"),
        (b'{"annotation": []}', "wrong_shape"),
        (b'{"annotation": {"data": {"FilePath": "x"}}}', "wrong_shape"),
        (index([]), "wrong_shape"),
        pytest.param(b'{"annotation": {"data": [' + b"0," * 4_000_000 + b"0]}}", "too_large_index", id="more values than memory"),
    ],
)
def test_a_bad_index_is_turned_away_and_the_others_go_on(version, clean, engine: Engine, content: bytes, code: str) -> None:
    done = clean(version("v1", folders() | {"labels/one.json": content}))
    assert done.refused_files == {"labels/one.json": code} and done.accepted == 40
    assert ledger(engine, "v1")["labels/one.json"] == code


@pytest.mark.parametrize("written", ["images\\{}.jpg", ".\\images\\{}.jpg", "images//{}.JPG", "Images\\{}.jpg"])
def test_an_index_that_a_tool_on_windows_wrote_means_its_files(version, clean, rows, written: str) -> None:
    photos = {f"images/{n}.jpg": photo(n) for n in range(40)}
    items = [{"FilePath": written.format(n), "label_value": n % 2} for n in range(40)]
    done = clean(version("v1", photos | {"annotation.json": index(items)}))
    assert (done.accepted, done.quarantined) == (40, {})
    assert all(row.label == int(row.path.split("/")[1].split(".")[0]) % 2 for row in rows("v1").itertuples())


def test_folders_that_an_archive_of_windows_wrote_into_names_are_folders(version, clean, rows) -> None:
    done = clean(version("v1", {name.replace("/", "\\"): content for name, content in folders().items()}))
    assert (done.accepted, done.quarantined) == (40, {}) and set(rows("v1")["label"]) == {0, 1}


# --- what can be read in two ways -----------------------------------------------------------------------------------------------


def pieces(where: Callable[[str, int], str], count: int = 40) -> dict[str, bytes]:
    """Photos of unlike pieces, good and defective in turns: `where` (label, number) says in which folder each lies."""
    return {f"{where('defective' if n % 2 else 'good', n)}/p{n:03d}.jpg": photo(n) for n in range(count)}


@pytest.mark.parametrize(
    "where",
    [
        lambda label, n: f"{label}/{n // 2 % 2}",  # two cameras
        lambda label, n: f"{n // 2 % 2}/{label}",
        lambda label, n: f"{label}/lot/ {n // 2 % 2}",
        lambda label, n: f"{label}/{label.upper()}/1",
    ],
)
def test_a_number_below_a_label_is_no_label(version, clean, rows, where) -> None:
    files = pieces(where)
    done = clean(version("v1", files))
    assert done.quarantined == {} and done.accepted == 40
    assert {name: label == 1 for name, label in rows("v1").set_index("path")["label"].items()} == {
        name: "defective" in name.lower() for name in files
    }
    naive = {name: next((part.strip() for part in reversed(name.split("/")[:-1]) if part.strip() in "01"), None) for name in files}
    assert any(("defective" in name.lower()) != (naive[name] == "1") for name in files), "control: the nearest folder says otherwise"


def test_numbers_alone_are_labels_where_nothing_in_the_version_speaks_against_it(version, clean, rows, engine: Engine) -> None:
    clean(version("v1", pieces(lambda label, n: "1" if label == "defective" else "0")))
    assert set(rows("v1").groupby("label").size()) == {20}
    mixed = pieces(lambda label, n: f"{label}/{n // 2 % 2}") | {"test/0/x.jpg": photo(700), "test/1/y.jpg": photo(701)}
    assert clean(version("v2", mixed)).quarantined == {"unknown_label": 2}, "they count cameras there: why not here too?"


def test_two_labels_on_one_path_are_named_and_nobody_chooses(version, clean, engine: Engine) -> None:
    two = {"good/defective/a.jpg": photo(700), "결함/shift/정상/b.jpg": photo(701), "0/1/c.jpg": photo(702)}
    done = clean(version("v1", folders() | two))
    assert done.quarantined == {"conflicting_labels": 3} and done.accepted == 40
    assert excerpts(engine, "v1")["good/defective/a.jpg", 0] == "good/defective/a.jpg: good by good and defective by defective"
    assert excerpts(engine, "v1")["결함/shift/정상/b.jpg", 0] == "결함/shift/정상/b.jpg: good by 정상 and defective by 결함"


def excerpts(engine: Engine, name: str) -> dict[tuple[str, int], str]:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT source, line, excerpt FROM quarantined_row WHERE version = :v"), {"v": name})
        return {(row.source, row.line): row.excerpt for row in found}


def test_an_index_and_the_folders_that_say_otherwise(version, clean, rows, engine: Engine) -> None:
    """Words against words: nobody chooses. Words of an index against numbers of folders: these count cameras, also where no index is."""
    files = pieces(lambda label, n: f"photos/{n // 2 % 2}") | {"good/a.jpg": photo(700), "photos/1/unnamed.jpg": photo(701)}
    items = [{"FilePath": f"photos/{n // 2 % 2}/p{n:03d}.jpg", "label_value": "defective" if n % 2 else "good"} for n in range(40)]
    items.append({"FilePath": "good/a.jpg", "label_value": "defective"})
    done = clean(version("v1", files | {"labels.json": index(items)}))
    assert done.quarantined == {"conflicting_labels": 1, "unknown_label": 1} and done.accepted == 40
    assert excerpts(engine, "v1")["labels.json", 41] == "good/a.jpg: good by the folder good and defective by 'defective' in the index"
    assert (rows("v1").set_index("path")["label"] == [int(name[-7:-4]) % 2 for name in rows("v1")["path"]]).all()


def test_indexes_that_disagree_settle_nothing(version, clean, rows, engine: Engine) -> None:
    """Also where one of them contradicts the folder, and the other does not."""
    first = [{"FilePath": "photos/a.jpg", "label_value": 0}, {"FilePath": "photos/b.jpg", "label_value": 0}]
    second = [{"FilePath": "photos/a.jpg", "label_value": 1}, {"FilePath": "photos/b.jpg", "label_value": "정상"}]
    against = [{"FilePath": "good/c.jpg", "label_value": "defective"}, {"FilePath": "photos/b.jpg", "label_value": 7}]
    also = [{"FilePath": "good/c.jpg", "label_value": "good"}, {"FilePath": "photos/a.jpg", "label_value": 1}]
    photos = {"photos/a.jpg": photo(700), "photos/b.jpg": photo(701), "good/c.jpg": photo(702), "good/copy-of-c.jpg": photo(702)}
    indexes = {f"{n}.json": index(items) for n, items in enumerate((first, second, against, also))}
    clean(version("v1", folders() | photos | indexes))
    assert quarantined(engine, "v1") == {
        ("0.json", 1): "conflicting_labels",
        ("1.json", 1): "conflicting_labels",
        ("3.json", 2): "conflicting_labels",
        ("1.json", 2): "duplicate_image",
        ("2.json", 2): "unknown_label",
        ("2.json", 1): "conflicting_labels",
        ("3.json", 1): "conflicting_labels",
        ("good/copy-of-c.jpg", 0): "conflicting_labels",
    }
    assert excerpts(engine, "v1")["0.json", 1] == "photos/a.jpg: good in 0.json item 1, defective in 1.json item 1"
    assert rows("v1").set_index("path").loc["photos/b.jpg", "label"] == 0


# --- pictures that are no examples ----------------------------------------------------------------------------------------------


def grain(number: int, side: int = 96) -> Image.Image:
    """A photo with fine detail, as `photo` has none."""
    forms = Image.open(io.BytesIO(photo(number, "PNG", side)))
    return Image.fromarray((np.asarray(forms) + np.random.default_rng(number).normal(0, 20, (side, side))).clip(0, 255).astype(np.uint8))


def mask_of(number: int, form: str = "PNG") -> bytes:
    mask = Image.new("L", (48, 48))
    mask.paste(255, (number % 30, number % 20, number % 30 + 12, number % 20 + 9))
    out = io.BytesIO()
    mask.save(out, form)
    return out.getvalue()


def encoded(picture: Image.Image, quality: int = 92) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


@pytest.mark.parametrize(
    "place",
    [
        "ground_truth/defective/{:03d}_mask.png",
        "ground_truth/defective/{:03d}.png",
        "masks/defective/{:03d}.png",
        "defective/mask/{:03d}.png",
        "defective/{:03d}_mask.png",
        "all/defective/m{:03d}.bmp",  # neither place nor name says so, the picture does
    ],
)
def test_masks_are_no_photos_wherever_they_lie(version, clean, rows, engine: Engine, place: str) -> None:
    photos = {f"test/{'defective' if n % 2 else 'good'}/{n:03d}.png": photo(n, "PNG") for n in range(40)}
    masks = {place.format(n): mask_of(n, "BMP" if place.endswith("bmp") else "PNG") for n in range(1, 40, 2)}
    section = SECTION.model_copy(update={"ignored_files": ()})
    done = clean(version("v1", photos | masks), section)
    assert done.quarantined == {"mask": 20} and done.accepted == 40 and set(rows("v1")["path"]) == set(photos)
    kept = section.model_copy(update={"set_aside": ()})
    if "ground" not in place:
        assert clean(version("v2", photos | masks), kept).accepted > 40, "control: they were learned as defective"


def test_thumbnails_and_contact_sheets_are_no_photos(version, clean, rows) -> None:
    photos = {f"{'defective' if n % 2 else 'good'}/{n:03d}.jpg": grain(n, 192) for n in range(40)}
    sheet = Image.new("L", (4 * 70, 3 * 70), 255)
    for n in range(12):
        sheet.paste(photos[f"{'defective' if n % 2 else 'good'}/{n:03d}.jpg"].resize((64, 64)), (n % 4 * 70 + 3, n // 4 * 70 + 3))
    small = photos["good/000.jpg"].resize((64, 64), Image.Resampling.LANCZOS)
    others = {
        "good/web/a.jpg": (encoded(small), "thumbnail"),
        "defective/of-another-label.jpg": (encoded(small, 95), None),  # for people to see: which label is right?
        "good/thumbs/002.jpg": (encoded(grain(802, 64)), "thumbnail"),
        "good/004-100x100.jpg": (encoded(grain(803, 64)), "thumbnail"),
        "good/all.jpg": (encoded(sheet), "contact_sheet"),
        "good/contact sheet 1.jpg": (encoded(grain(804)), "contact_sheet"),
        "$RECYCLE.BIN/good/old.jpg": (encoded(grain(805)), "system_file"),
    }
    files = {name: encoded(picture) for name, picture in photos.items()} | {name: content for name, (content, _) in others.items()}
    done = clean(version("v1", files), SECTION.model_copy(update={"group_pattern": None, "series_gap": None}))
    wanted = {name: code for name, (_, code) in others.items() if code is not None}
    assert set(rows("v1")["path"]) == set(files) - set(wanted)
    assert done.quarantined == {code: list(wanted.values()).count(code) for code in wanted.values()}


def test_scans_in_black_and_white_are_photos_where_nearly_all_are(version, clean) -> None:
    def scan(n: int) -> bytes:
        out = io.BytesIO()
        Image.open(io.BytesIO(photo(n))).convert("1").save(out, "PNG")
        return out.getvalue()

    files = {f"{'defective' if n % 2 else 'good'}/{n}.png": scan(n) for n in range(40)} | {"good/colour.jpg": photo(99)}
    assert clean(version("v1", files)).accepted == 41


# --- families and splits --------------------------------------------------------------------------------------------------------


def test_an_item_that_says_a_thing_twice_is_turned_away_alone(version, clean, rows, engine: Engine) -> None:
    same = b'{"FilePath": "photos/x.jpg", "label_value": 0, "label_value": 1}'
    alike = b'{"FilePath": "photos/x.jpg", "label_value": 1, "LABEL_VALUE": 0}'
    whole = b'{"annotation": {"data": [{"FilePath": "photos/fine.jpg", "label_value": 1}, ' + same + b", " + alike + b"]}}"
    photos = {f"photos/{name}.jpg": photo(900 + n) for n, name in enumerate(("x", "fine"))}
    clean(version("v1", folders() | photos | {"labels.json": whole}))
    assert {at: code for at, code in quarantined(engine, "v1").items() if at[0] == "labels.json"} == {
        ("labels.json", 2): "malformed_row",
        ("labels.json", 3): "malformed_row",
    }
    assert "photos/fine.jpg" in set(rows("v1")["path"])


def test_groups_series_and_near_duplicates_are_never_in_two_splits(version, clean, rows) -> None:
    files = {}
    for n in range(60):
        label = "defective" if n % 2 else "good"
        kind, start = n % 3, 10_000 * (n + 1)
        for m in range(4):
            content = photo(10 * n + m) if kind < 2 else brighter(photo(10 * n), 10 * m, 90 - 10 * m)
            name = (f"exp{m}_num_{start}", f"exp{m}_num_{start + 100 * m}", f"piece-{n}-{m}")[kind]
            files[f"{label}/{name}.jpg"] = content
    done = clean(version("v1", files))
    frame = rows("v1")
    assert done.accepted == len(files) == 240 and done.quarantined == {}
    piece = [int(n) for n in np.repeat(range(60), 4)]
    split = frame.set_index("path").loc[list(files), "split"].groupby(piece)
    assert (split.nunique() == 1).all()
    assert (frame.groupby("group").size() == 4).all() and done.near_duplicates["families"] == 60
    assert set(done.splits) == {"train", "validation", "holdout"}
    naive = frame.set_index("path")["id"].map(lambda digest: int(digest[:12], 16) / (1 << 48) < 0.25).loc[list(files)].groupby(piece)
    assert (naive.nunique() == 2).any(), "control: split by file, the same piece is trained on and measured"


def test_a_photo_like_one_of_the_other_label_stays_and_is_shown(version, clean, rows) -> None:
    """A small defect hardly changes the picture: these are the photos that matter most."""
    like = {"good/a.jpg": photo(700), "defective/b.jpg": brighter(photo(700), 20, 70)}
    done = clean(version("v1", folders() | like))
    assert done.near_duplicates["pairs_across_labels"] == 1 and set(map(tuple, done.alike)) == {("defective/b.jpg", "good/a.jpg")}
    frame = rows("v1").set_index("path")
    assert frame.loc["good/a.jpg", "split"] == frame.loc["defective/b.jpg", "split"]


def test_splits_outlive_versions(version, clean, rows) -> None:
    clean(version("v1", folders(60)))
    before = rows("v1").set_index("path")["split"]
    # The same pieces photographed again, the same bytes under other names, and new pieces.
    again = {name.replace("exp1", "exp2"): photo(5000 + n) for n, name in enumerate(folders(60))}
    renamed = {f"good/copy-{n}.jpg": photo(n) for n in range(0, 20, 2)}
    done = clean(version("v2", again | renamed | folders(20, 200)))
    after = rows("v2").set_index("path")["split"]
    assert done.quarantined == {}
    assert all(after[name] == before[name.replace("exp2", "exp1")] for name in again)
    assert all(after[f"good/copy-{n}.jpg"] == before[f"good/Imgs/exp1_num_{1000 * n}.jpg"] for n in range(0, 20, 2))
    assert len(set(after[list(folders(20, 200))])) > 1


def test_what_was_held_out_leaves_the_holdout_when_training_turns_out_to_have_its_like(version, clean, rows, engine: Engine) -> None:
    clean(version("v1", folders(60)))
    split = rows("v1").set_index("path")["split"]
    held = next(path for path in split.index if split[path] == "holdout")
    trained = next(path for path in split.index if split[path] == "train" and path.split("/")[0] == held.split("/")[0])
    number = {path: int(path.rsplit("_", 1)[1].removesuffix(".jpg")) for path in (held, trained)}
    # v2 shows that both are one piece: one group has the bytes of the other.
    files = folders(60) | {f"{held.split('/')[0]}/exp9_num_{number[trained]}.jpg": brighter(folders(60)[held], 15, 80)}
    done = clean(version("v2", files))
    assert done.quarantined == {"near_duplicate_in_train": 1}
    assert quarantined(engine, "v2") == {(held, 0): "near_duplicate_in_train"}
    assert rows("v2").set_index("path")["split"][f"{held.split('/')[0]}/exp9_num_{number[trained]}.jpg"] == "train"


def test_a_copy_under_another_pieces_number_is_on_no_side(version, clean, rows, engine: Engine) -> None:
    clean(version("v1", folders(60)))
    split = rows("v1").set_index("path")["split"]
    held = next(path for path in split.index if split[path] == "holdout")
    trained = next(path for path in split.index if split[path] == "train" and path.split("/")[0] == held.split("/")[0])
    files = {name: content for name, content in folders(60).items() if name not in (held, trained)}
    clean(version("v2", files | {trained: folders(60)[held]}))
    assert quarantined(engine, "v2") == {(trained, 0): "in_other_split"}


def test_a_version_that_extends_another_has_its_photos(version, clean, rows) -> None:
    clean(version("v1", folders(40)))
    new = folders(10, 100) | {"good/again.jpg": photo(4)}
    done = clean(version("v2", new, parent="v1"))
    assert done.rows_in == 51 and done.quarantined == {"duplicate_image": 1}, "the parent's photo is kept"
    frame = rows("v2")
    assert len(frame) == 50 and sum(frame["path"].str.startswith("v1/")) == 40


def test_the_hash_knows_a_photo_after_harmless_changes_only() -> None:
    def distance(one: bytes, other: bytes) -> int:
        bits = [likeness.difference_hash(Image.open(io.BytesIO(content))) for content in (one, other)]
        return int(np.bitwise_count(bits[0] ^ bits[1]).sum())

    for n in range(20):
        assert distance(photo(n), brighter(photo(n), 30, 60)) <= SECTION.near_duplicate_bits < 60 < distance(photo(n), photo(n + 100))
    bits = np.stack([likeness.difference_hash(Image.open(io.BytesIO(photo(n % 150)))) for n in range(300)])
    assert sorted(likeness.near_pairs(bits, SECTION.near_duplicate_bits)) == [(n, n + 150) for n in range(150)], (
        "over the edges of blocks, too"
    )


# --- the table ------------------------------------------------------------------------------------------------------------------


def test_shards_are_few_and_hold_the_photos_bytes(version, clean, store: ObjectStore, engine: Engine, tmp_path: Path, monkeypatch) -> None:
    import pyarrow.parquet as pq

    files = folders()
    size = sum(map(len, files.values()))
    monkeypatch.setattr(data, "SHARD_BYTES", size // 3)
    monkeypatch.setattr(data, "ROW_GROUP_BYTES", size // 9)
    done = clean(version("v1", files))
    assert 3 <= len(done.table.parts) <= 5
    table = data.load_cleaned(store, engine, "v1", tmp_path / "t")
    found = pq.read_table(sorted(table.folder.glob("*.parquet")))
    assert found.schema.equals(data.table_schema())
    assert dict(zip(found["path"].to_pylist(), found["image"].to_pylist(), strict=True)) == files
    order = [dataset.SPLITS.index(split) for split in found["split"].to_pylist()]
    assert order == sorted(order)
    victim = done.table.parts[1].name
    store.put(f"{done.table.prefix}/{victim}", b"x")
    with pytest.raises(dataset.DatasetError, match="was changed: materialize"):
        data.load_cleaned(store, engine, "v1", tmp_path / "t2")
    assert not (tmp_path / "t2").exists()


def test_the_contact_sheet_fits_an_event(version, clean, store: ObjectStore) -> None:
    done = clean(version("v1", folders(80)))
    sheet = data.contact_sheet(store, done.table, 48 * 1024)
    assert len(sheet) <= 48 * 1024
    picture = Image.open(io.BytesIO(sheet))
    assert picture.format == "PNG" and picture.width >= 8 * 32 and picture.height == picture.width // 2
    assert len(data.contact_sheet(store, done.table, 6000)) < len(sheet)


def good_frame() -> pd.DataFrame:
    ids = [hashlib.sha256(bytes([n])).hexdigest() for n in range(3)]
    numbers = {name: pd.Series([0, 1, 0], dtype="int8" if name == "label" else "int32") + (name != "label") for name in ("width", "height")}
    return pd.DataFrame(
        {"id": ids, "label": pd.Series([0, 1, 0], dtype="int8"), "group": ["a", "b", "c"], "split": ["train", "validation", "holdout"]}
        | {"path": ["x", "y", "z"], **numbers, "image_sha256": ids}
    )


@pytest.mark.parametrize(
    ("column", "values", "rule"),
    [
        ("id", good_frame()["id"].iloc[[0, 0, 2]].tolist(), "id: field_uniqueness"),
        ("id", ["1", "2", "3"], "id: str_matches"),
        ("label", pd.Series([0, 2, 0], dtype="int8"), "label: isin"),
        ("label", [0.0, 1.0, 0.0], "label: dtype"),
        ("split", ["train", "test", "holdout"], "split: isin"),
        ("group", ["a", "b", "a"], "no group in two splits"),
        ("group", ["a", None, "c"], "group: not_nullable"),
        ("width", pd.Series([1, 0, 1], dtype="int32"), "width: greater_than_or_equal_to"),
        ("image_sha256", good_frame()["id"].iloc[[0, 2, 1]].tolist(), "id is the digest of image"),
        ("extra", [1, 2, 3], "column_in_schema"),
    ],
)
def test_the_contract_refuses_each_kind_of_bad_table(column: str, values: object, rule: str) -> None:
    assert data.check_contract(good_frame()) == []
    found = data.check_contract(good_frame().assign(**{column: values}))
    assert any(rule in violation.rule and violation.cases >= 1 for violation in found), found


def test_the_account_notices_a_missing_row(version, clean, store: ObjectStore, engine: Engine) -> None:
    clean(version("v1", folders() | {"good/empty.jpg": b"", "README.md": b"x"}))
    account = data.account(engine, store, "v1")
    assert account.sentence == "41 rows in = 40 accepted + 1 quarantined; 42 files = 0 indexes + 41 pictures + 1 refused"
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM quarantined_row"))
    assert not data.account(engine, store, "v1").adds_up


# --- the data assets, materialized ----------------------------------------------------------------------------------------------


@pytest.fixture
def materialize(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A function (version, files) that lands the files and materializes the platform's own assets and checks; (version) does so again."""
    made = assets.data_assets(load_config(TiresConfig, data.SYSTEM, settings.configs), settings)
    resources = {"store": ObjectStoreResource.of(settings), "postgres": PostgresResource.of(settings)}
    with dg.DagsterInstance.ephemeral() as instance:

        def run(name: str, files: Mapping[str, bytes] | None = None) -> dg.ExecuteInProcessResult:
            for file, content in (files or {}).items():
                store.put(f"landing/{data.SYSTEM}/{name}/{file}", content)
            store.put(f"landing/{data.SYSTEM}/{name}/_READY", b"")
            objects.tick(engine, store, data.SYSTEM, settle_seconds=3600)
            instance.add_dynamic_partitions("tires_dataset_version", [name])
            return dg.materialize(made, instance=instance, partition_key=name, resources=resources, raise_on_error=False)

        yield run


def test_people_see_the_photos_and_the_account(materialize, engine: Engine) -> None:
    result = materialize("v1", folders() | {"good/half.jpg": photo(500)[:300], "README.md": b"x"})
    assert result.success
    (cleaned,) = result.asset_materializations_for_node("tires__cleaned")
    shown = cleaned.metadata
    assert next(iter(shown)) == "contact_sheet"
    png = base64.b64decode(str(shown["contact_sheet"].value).split("base64,")[1].removesuffix(")"))
    assert Image.open(io.BytesIO(png)).format == "PNG" and len(png) <= 64 * 1024
    assert shown["rows_in"].value == shown["rows_accepted"].value + shown["rows_quarantined"].value == 41
    assert shown["label/good"].value == shown["label/defective"].value == 20
    assert "truncated" in str(shown["quarantine"].value) and "unexpected_file" in str(shown["refused_files"].value)
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert set(checks) == {"contract", "row_accounting"} and all(check.passed and check.blocking for check in checks.values())
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM quarantined_row"))
    again = materialize("v1").asset_materializations_for_node("tires__cleaned")[0].metadata
    assert not again["unchanged"].value and again["table_sha256"].value == shown["table_sha256"].value, "a harmed account is made again"
    assert quarantined(engine, "v1") == {("good/half.jpg", 0): "truncated"}


def test_a_refused_version_is_red_and_says_why(materialize) -> None:
    result = materialize("v1", {f"good/{n}.jpg": photo(n) for n in range(20)})
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None and "no train photo is defective" in (failure.user_failure_data.description or "")


# --- configuration --------------------------------------------------------------------------------------------------------------


def test_the_configuration_that_is_delivered(settings: Settings) -> None:
    config = load_config(TiresConfig, data.SYSTEM, settings.configs)
    assert config.register_threshold == {"accuracy": 0.85, "f1": 0.80, "ece": 0.15, "early_stopping_reached": 1}
    assert config.promotion.metric == "f1"
    assert len(config.models) == 7 and config.model_of("cnn").training.epochs == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"good": ("a",)}}, "name exactly good and defective"),
        ({"labels": {"good": ("a", "A"), "defective": ("b", "A")}}, "a would mean both labels"),
        ({"group_pattern": "("}, "not a regular expression"),
    ],
)
def test_a_data_set_that_contradicts_itself(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetSection.model_validate(SECTION.model_dump() | change)


def test_training_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="지원되지 않는 옵티마이저 타입입니다.: lion"):
        TrainingSection(optimizer_type="lion")
    with pytest.raises(ValidationError, match="set both or neither"):
        TrainingSection(min_loss=0.1)


# --- larger ---------------------------------------------------------------------------------------------------------------------


def has_mark(path: Path) -> bool:
    """Somewhere the surface is far from what is around it."""
    photo = Image.open(path)
    near, wide = (np.asarray(photo.filter(blur), np.int16) for blur in (ImageFilter.GaussianBlur(1), ImageFilter.BoxBlur(12)))
    return bool(np.abs(near - wide).max() > 33)


def test_the_sample_can_be_learned_and_the_bad_one_not(settings, store, engine: Engine, clean, rows, tmp_path: Path) -> None:
    agree = {}
    for name, bad in (("good", False), ("bad", True)):
        write_tires(tmp_path / name, count=120, bad=bad)
        done = clean(freeze(settings, store, engine, tmp_path / name, name, tmp_path))
        assert done.accepted == 120 and done.quarantined == {"empty_file": 1, "not_an_image": 1, "truncated": 1}
        frame = rows(name)
        marked = [has_mark(tmp_path / name / path) for path in frame["path"]]
        agree[name] = (np.array(marked) == (frame["label"] == 1)).mean()
    assert agree["good"] > 0.95 and 0.35 < agree["bad"] < 0.65, agree
    write_tires(tmp_path / "again", count=120)
    again = list((tmp_path / "again").rglob("*.*"))
    assert len(again) >= 120
    for file in again:
        assert file.read_bytes() == (tmp_path / "good" / file.relative_to(tmp_path / "again")).read_bytes(), "the same seed, the same bytes"


@pytest.mark.real_data
def test_all_of_magnetic_tile(settings: Settings, store: ObjectStore, engine: Engine, real_data: Path, clean, rows, tmp_path: Path) -> None:
    manifest = freeze(settings, store, engine, real_data / "magnetic_tile", "split_1", tmp_path)
    done = clean(manifest, load_config(TiresConfig, data.SYSTEM, settings.configs).dataset)
    photos = len(list((real_data / "magnetic_tile").rglob("*.jpg")))
    assert done.rows_in == len(manifest.entries) - 1 and done.accepted == photos and done.refused_files == {"README.md": "unexpected_file"}
    assert done.quarantined == {"mask": done.rows_in - photos}
    frame = rows("split_1")
    shares = frame["split"].value_counts(normalize=True)
    assert 0.15 < shares["holdout"] < 0.35 and 0.08 < shares["validation"] < 0.25
    assert frame.groupby("split")["label"].mean().between(0.3, 0.7).all()
    assert frame.groupby("group").size().max() <= 15, "families are tiles, not the whole data set"
    assert len(data.contact_sheet(store, done.table, 48 * 1024)) <= 48 * 1024


# --- whatever comes -------------------------------------------------------------------------------------------------------------

ODD_VALUES: tuple[Any, ...] = (
    0, 1, "good", "결함", " GOOD ", "１", 1.0, 2**70, -1, True, None, [], {}, "x" * 500, "\ud800", "a\x00b", float("nan"), [[1]],
)  # fmt: skip


def odd_path(rng: random.Random, names: Sequence[str]) -> Any:
    name = rng.choice(names)
    forms = (
        name,
        name.replace("/", "\\"),
        f"./{name}",
        f"../{name}",
        f"/{name}",
        f"C:\\{name}",
        f"s3://b/{name}",
        name.upper(),
        f"{name}\x00",
    )
    return rng.choice(
        (*forms, name, name, "", " ", 7, None, ["x"], "\ud800.jpg", "x" * 5000, "\n", f"{name}/", unicodedata.normalize("NFD", name))
    )


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_is_accounted_for(version, clean, rows, engine: Engine, seed: int) -> None:
    """Rows in = accepted + quarantined and every file is something (the fixture asserts it), and no error is not ours."""
    rng = random.Random(seed)
    files = folders()
    folder_names = [
        "good",
        "defective",
        "결함",
        "0",
        "1",
        "masks",
        "ground_truth",
        "thumbs",
        "unsorted",
        "good/1",
        "0/결함",
        "lot 7",
        "._x",
        "a'b",
    ]
    stems = ["a", "a_mask", "a-gt", "b_thumb", "사진", "c-80x80", "contact sheet", "x.y", "1", "...", "d" * 100]
    contents: list[Callable[[int], bytes]] = [
        photo, lambda n: photo(n, "PNG"), lambda n: photo(n, "WEBP"), lambda n: photo(n, "BMP"), lambda n: photo(n)[: n % 900], mask_of,
        lambda n: rng.randbytes(n % 400), lambda _: b"", lambda _: bomb(), lambda _: gif(1), lambda _: gif(3), lambda _: POINTER,
        lambda _: photo(7), lambda _: b"\xff\xd8\xff", lambda _: b"<html>", lambda n: photo(n, side=1), lambda n: photo(n, side=400),
        lambda n: photo(n, "PNG")[:50] + rng.randbytes(5) + photo(n, "PNG")[55:],
    ]  # fmt: skip
    for n in range(150):
        suffix = rng.choice([".jpg", ".png", ".JPG", ".webp", ".bmp", ".tif", ".heic", ".txt", "", ".json.jpg", ".jp2"])
        files[f"{rng.choice(folder_names)}/{rng.choice(stems)}{n if n % 3 else ''}{suffix}"] = rng.choice(contents)(5000 + n)
    names = list(files)
    for n in range(12):
        items: list[Any] = [{"FilePath": odd_path(rng, names), "label_value": rng.choice(ODD_VALUES)} for _ in range(30)]
        items += rng.sample([None, 3, "x", [], {}, {"FilePath": "good"}, [[[]]]], 4)
        content = json.dumps({"annotation": {"data": items}}).encode()
        at = rng.randrange(len(content))
        nested = b"[" * rng.choice((10, 600, 1200, 100_000))
        damaged = (
            content,
            content,
            content[:at],
            content[:at] + rng.randbytes(3) + content[at:],
            content.decode().encode("utf-16"),
            nested,
        )
        deep = b'{"annotation": {"data": [' + b"[" * 500 + b"]" * 500 + b"]}}"
        files[f"{rng.choice(['', 'good/', 'annotations/'])}index-{n}.json"] = rng.choice((*damaged, deep, b"{}", b"\xef\xbb\xbf" + content))
    done = clean(version("v1", files))
    assert done.accepted == len(rows("v1")) >= 30 and set(done.quarantined) <= set(data.ROW_REASONS)
    assert set(done.refused_files.values()) <= set(data.FILE_REASONS)
    assert all(code is None or code in {**data.ROW_REASONS, **data.FILE_REASONS} for code in ledger(engine, "v1").values())
