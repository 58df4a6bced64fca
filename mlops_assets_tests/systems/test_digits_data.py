"""digits' data half: IDX and drawings, every rule on known-bad files, splits that hold for good, the table, the contract."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sqlalchemy import Engine, text

from mlops_assets import files, strokes
from mlops_assets.ingest import objects
from mlops_assets.lifecycle import dataset, forget
from mlops_assets.lifecycle.dataset import NothingLeft
from mlops_assets.sample_data import write_digits
from mlops_assets.settings import REPOSITORY, Settings, load_config
from mlops_assets.store import ObjectStore
from mlops_assets.systems.digits import data, idx, simulate
from mlops_assets.systems.digits.config import DatasetSection, DigitsConfig
from mlops_assets_tests.factories import POINTER

SECTION = load_config(DigitsConfig, "digits", REPOSITORY / "configs").dataset
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def pixels(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, 28, 28], white on black: the digits 0 to 9 over and over, each by a hand of its own."""
    found = []
    for number in range(count):
        by = simulate.writer(1_000 * seed + number // 10, 0.3)
        picture = simulate.picture(simulate.drawing(by, number % 10), by.width, 56)
        found.append(255 - np.asarray(picture.resize((28, 28), Image.Resampling.BOX)))
    return np.stack(found)


def drawing(digit: int, writer: int, number: int = 0) -> bytes:
    by = simulate.writer(writer, 0.3)
    out = io.BytesIO()
    simulate.picture(simulate.drawing(by, digit, number), by.width).save(out, "PNG")
    return out.getvalue()


def mnist(train: int = 200, test: int = 40) -> dict[str, bytes]:
    return {
        f"mnist/{IMAGES}.gz": gzip.compress(idx_bytes(pixels(train)), mtime=0),
        f"mnist/{LABELS}.gz": gzip.compress(idx_bytes(np.arange(train) % 10), mtime=0),
        "mnist/t10k-images-idx3-ubyte": idx_bytes(pixels(test, 1)),
        "mnist/t10k-labels-idx1-ubyte": idx_bytes(np.arange(test) % 10),
    }


def users(writers: range, numbers: range = range(1), **more: str) -> dict[str, bytes]:
    """Every writer's ten digits as they land from a page."""
    rows = [(f"{writer}-{digit}-{n}.png", digit, writer, n) for writer in writers for digit in range(10) for n in numbers]
    lines = [json.dumps({"file": f"img/{name}", "label": digit, "writer": f"w{writer}"} | more) for name, digit, writer, _ in rows]
    files = {f"users/img/{name}": drawing(digit, writer, n) for name, digit, writer, n in rows}
    return files | {"users/labels.jsonl": "\n".join(lines).encode()}


def bomb() -> bytes:
    """A few hundred bytes that would be 10 GB of pixels."""
    png = drawing(1, 1)
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


@pytest.fixture
def version(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., dataset.Manifest]:
    """A function (name, files) that lands, closes and freezes a version."""

    def make(name: str, files: Mapping[str, bytes], parent: str | None = None) -> dataset.Manifest:
        folder = tmp_path / "landing" / name
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        objects.land(settings, store, data.SYSTEM, folder, name, engine=engine, parent=parent)
        objects.tick(engine, store, data.SYSTEM, settle_seconds=3600)
        return dataset.freeze(engine, store, data.SYSTEM, name, max_object_bytes=10**9, scratch=tmp_path / "freeze")

    return make


@pytest.fixture
def clean(store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., data.Cleaned]:
    def run(manifest: dataset.Manifest, section: DatasetSection = SECTION) -> data.Cleaned:
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


# --- IDX ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_idx_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    array = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    idx.write(tmp_path / name, array)
    first = (tmp_path / name).read_bytes()
    idx.write(tmp_path / name, array)
    assert (tmp_path / name).read_bytes() == first
    assert (idx.read([first[:7], first[7:]], 3) == array).all()


GOOD = idx_bytes(np.zeros((3, 28, 28)))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "not_idx"),
        (b"<html>not found</html>", "not_idx"),
        (POINTER, "lfs_pointer"),
        (idx_bytes(np.zeros(3)), "not_idx"),
        (bytes((0, 0, 13, 3)) + GOOD[4:], "not_idx"),
        (GOOD[:9], "truncated_idx"),
        (GOOD[:-1], "truncated_idx"),
        (GOOD + b"x", "truncated_idx"),
        (gzip.compress(GOOD, mtime=0)[:-9], "truncated_idx"),
        (gzip.compress(GOOD, mtime=0)[:30] + b"\xff" * 20, "truncated_idx"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**31, 28, 28), "too_large_idx"),
        (gzip.compress(GOOD[:16] + bytes(50_000_000), mtime=0), "truncated_idx"),  # a bomb: nothing beyond the promised bytes is unpacked
    ],
)
def test_bad_idx_is_refused_with_a_code(content: bytes, code: str) -> None:
    with pytest.raises(idx.BadIdx) as refused:
        idx.read([content], 3)
    assert refused.value.code == code


def test_what_would_unpack_to_gigabytes_is_known_by_its_header(version, clean) -> None:
    """Nothing of it is unpacked: a megabyte of zeros in gzip is a gigabyte of labels."""
    labels = bytes((0, 0, 8, 1)) + struct.pack(">I", 10**9)
    wide = bytes((0, 0, 8, 3)) + struct.pack(">III", 1, 30_000, 30_000)
    many = b"image,label\n" + b"\n" * (files.MAX_INDEX_VALUES + 1)
    bombs = {
        f"labels/{IMAGES}.gz": (gzip.compress(idx_bytes(pixels(1))), "no_labels"),
        f"labels/{LABELS}.gz": (gzip.compress(labels), "too_large_idx"),
        f"wide/{IMAGES}.gz": (gzip.compress(wide), "not_28"),
        f"wide/{LABELS}.gz": (gzip.compress(idx_bytes(np.zeros(1))), "no_images"),
        "many/dataset.csv": (many, "too_large_index"),
        "many/labels.jsonl": (b"\n" * len(many), "too_large_index"),
    }
    done = clean(version("v1", {**mnist(), **{name: content for name, (content, _) in bombs.items()}}))
    assert done.refused_files == {name: code for name, (_, code) in bombs.items()}


# --- every rule -----------------------------------------------------------------------------------------------------------------


def test_every_rule_and_every_file(version, clean, rows, engine: Engine) -> None:
    labels = np.arange(200) % 10
    labels[[5, 17]] = (10, 26)
    picture = pixels(200)
    picture[8] = 0  # blank
    picture[9] = picture[19] = picture[29]  # thrice the same 9
    picture[30] = picture[41]  # a 0 and a 1
    good = mnist() | {f"mnist/{IMAGES}.gz": idx_bytes(picture), f"mnist/{LABELS}.gz": idx_bytes(labels)} | users(range(500, 503))
    lines = [
        {"file": "a.png", "label": "3", "writer": "w9"},  # good: a label may be text
        {"file": "a.png", "label": 12},
        {"file": "missing.png", "label": 1},
        {"file": "../../../etc/passwd", "label": 1},
        {"file": "/etc/passwd", "label": 1},
        {"file": "a.png"},
        {"file": "a.png", "label": True},
        "no JSON",
        {"file": "labels.jsonl", "label": 1},  # the index itself
        *({"file": f"{name}.png", "label": 1} for name in ("blank", "touch", "empty", "half", "text", "bomb", "gif")),
        {"file": "pointer.png", "label": 1},
        {"file": ".\\deep\\B.png", "label": 4, "writer": "w9"},  # good: a tool on Windows wrote it
        {"file": "C:\\deep\\b.png", "label": 4},
        {"file": "deep\\..\\..\\b.png", "label": 4},
    ]
    touch = Image.new("L", (200, 200), 255)
    touch.paste(0, (90, 90, 96, 96))
    blank = Image.new("L", (200, 200), 255)
    more = {
        "more/labels.jsonl": "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode(),
        "more/a.png": drawing(3, 9),
        "more/blank.png": png(blank),
        "more/touch.png": png(touch),
        "more/empty.png": b"",
        "more/half.png": drawing(1, 2)[:60],
        "more/text.png": b"<html>not found</html>",
        "more/bomb.png": bomb(),
        "more/gif.png": b"GIF89a" + bytes(30),
        "more/pointer.png": POINTER,
        "more/deep/b.png": drawing(4, 9),
        "more/nobody_names_me.png": drawing(2, 2),
    }
    refused = {
        "emnist-letters-train-images-idx3-ubyte.gz": (gzip.compress(idx_bytes(pixels(1))), "not_digits"),
        "notes.docx": (b"hello", "unexpected_file"),
        f"cut/{IMAGES}": (GOOD[:-5], "truncated_idx"),
        f"cut/{LABELS}": (idx_bytes(np.zeros(3)), "no_images"),
        f"fewer/{IMAGES}": (GOOD, "count_mismatch"),
        f"fewer/{LABELS}": (idx_bytes(np.zeros(2)), "count_mismatch"),
        f"alone/{IMAGES}": (GOOD, "no_labels"),
        f"lone/{LABELS}": (idx_bytes(np.zeros(2)), "no_images"),
        f"wide/{IMAGES}": (idx_bytes(np.zeros((1, 32, 32))), "not_28"),
        f"wide/{LABELS}": (idx_bytes(np.zeros(1)), "no_images"),
        f"none/{IMAGES}": (b"", "empty_file"),
        f"none/{LABELS}": (idx_bytes(np.zeros(1)), "no_images"),
        "bad/dataset.csv": (b"picture;digit\n1.png;3\n", "not_an_index"),
        "latin/labels.jsonl": (b"\xff\xfe\x00", "not_an_index"),
        "pointers/labels.jsonl": (POINTER, "lfs_pointer"),
        f"pointers/{IMAGES}": (POINTER, "lfs_pointer"),
        f"pointers/{LABELS}": (idx_bytes(np.zeros(1)), "no_images"),
        "twice/dataset.csv": (b"image,label,writer, Label\n1.png,3,a,4\n", "not_an_index"),
    }
    manifest = version("v1", good | more | {name: content for name, (content, _) in refused.items()})
    done = clean(manifest)
    assert done.refused_files == {name: code for name, (_, code) in refused.items()}
    assert set(done.refused_files.values()) <= set(data.FILE_REASONS) and set(done.quarantined) <= set(data.ROW_REASONS)
    found = quarantined(engine, "v1")
    train = f"mnist/{IMAGES}.gz"
    assert {line: code for (source, line), code in found.items() if source == train} == {
        6: "bad_label",
        18: "bad_label",
        9: "nothing_drawn",
        20: "duplicate_image",
        30: "duplicate_image",
        31: "conflicting_labels",
        42: "conflicting_labels",
    }
    assert [found[("more/labels.jsonl", line)] for line in range(2, 21) if line != 18] == [
        "bad_label",
        "missing_file",
        "outside_dataset",
        "outside_dataset",
        "malformed_row",
        "malformed_row",
        "malformed_row",
        "not_an_image",
        "nothing_drawn",
        "too_little_drawn",
        "empty_file",
        "truncated",
        "not_an_image",
        "too_many_pixels",
        "bad_format",
        "lfs_pointer",
        "outside_dataset",
        "outside_dataset",
    ]
    assert found[("more/nobody_names_me.png", 0)] == "unlabelled"
    assert done.rows_in == done.accepted + len(found) and done.accepted == len(rows("v1"))
    frame = rows("v1").set_index("path")
    assert frame.loc["more/a.png", ["label", "origin"]].tolist() == [3, "drawn"]
    assert done.origins == {"drawn": 32, "mnist": 193 + 40}


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_the_table_has_what_came_and_what_a_model_sees(version, clean, store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    files = mnist() | users(range(500, 504))
    clean(version("v1", files))
    table = data.load_cleaned(store, engine, "v1", tmp_path / "table")
    found = [data.read_digits(table, split, files=True) for split in dataset.SPLITS]
    assert sum(map(len, found)) == table.rows == 280
    for digits in found:
        for image, prepared, origin in zip(digits.files, digits.images, digits.origins.tolist(), strict=True):
            raw = Image.open(io.BytesIO(image))
            assert raw.size == ((28, 28) if origin == "mnist" else (simulate.PAD, simulate.PAD))
            assert (strokes.prepared(raw) == prepared).all()
    drawn = {image for digits in found for image in digits.files} & set(files.values())
    assert len(drawn) == 40, "drawings are kept as they came"


def test_emnist_is_turned_the_right_way_and_its_letters_are_left_out(version, clean, store, engine: Engine, tmp_path: Path) -> None:
    turned = pixels(100).transpose(0, 2, 1)
    emnist = {
        "emnist-digits-train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(turned), mtime=0),
        "emnist-digits-train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(np.arange(100) % 10)),
        "emnist-letters-train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(turned), mtime=0),
        "emnist-letters-train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(np.arange(100) % 26 + 1)),
    }
    read = idx.read([emnist["emnist-letters-train-labels-idx1-ubyte.gz"]], 1)
    assert read.max() == 26, "the same loader reads them; the configuration leaves them out"
    done = clean(version("v1", emnist | {name: content for name, content in mnist(200).items() if "t10k" in name}))
    assert set(done.refused_files.values()) == {"not_digits"} and done.origins == {"emnist": 100, "mnist": 40}
    table = data.load_cleaned(store, engine, "v1", tmp_path / "table")
    wanted = {strokes.prepared(picture).tobytes() for picture in pixels(100)}
    found = [data.read_digits(table, split) for split in dataset.SPLITS]
    assert {image.tobytes() for digits in found for image in digits.images[digits.origins == "emnist"]} == wanted


# --- what can be read in two ways -----------------------------------------------------------------------------------------------


def shard(number: int | str, count: int = 20, *, gz: str = "", separator: str = "-") -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(pictures, their labels) of a shard, each of other pictures and with labels that begin at its number."""
    seed = int(str(number)[-1])
    names = (f"train-{what}-{number}{separator}idx{n}-ubyte{gz}" for what, n in (("images", 3), ("labels", 1)))
    content = idx_bytes(pixels(count, 10 + seed)), idx_bytes(np.arange(count) % 10)
    pictures, labels = ({name: gzip.compress(one) if gz else one} for name, one in zip(names, content, strict=True))
    return pictures, labels


def test_idx_files_pair_by_their_names_and_never_by_their_order(version, clean, rows) -> None:
    (one, _), (two, two_labels) = shard(1), shard(2)
    done = clean(version("v1", mnist() | one | two | two_labels))
    assert done.refused_files == {next(iter(one)): "no_labels"}
    naive = dict(zip(sorted([*one, *two]), sorted(two_labels), strict=False))
    assert naive[next(iter(one))] == next(iter(two_labels)), "control: in their order, shard 1 takes the labels of shard 2"
    frame = rows("v1")
    assert frame["path"].str.startswith(next(iter(two))).sum() == 20 and done.accepted == 260


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        (shard(1)[0] | shard(2)[1], {"train-images-1-idx3-ubyte": "no_labels", "train-labels-2-idx1-ubyte": "no_images"}),
        (shard(1, gz=".gz")[0] | shard(1)[1], {}),  # only one of them is packed
        (shard(1)[0] | shard(1)[1] | shard(1, gz=".gz")[0] | shard(1, gz=".gz")[1], {}),  # both forms of the same
        (shard(1, separator=".")[0] | shard(1)[1], {}),
        ({f"images/{k}": v for k, v in shard(1)[0].items()} | {f"labels/{k}": v for k, v in shard(1)[1].items()}, {}),
        (
            {f"a/{k}": v for k, v in shard(1)[0].items()} | {f"b/{k}": v for k, v in shard(1)[1].items()},
            {"a/train-images-1-idx3-ubyte": "no_labels", "b/train-labels-1-idx1-ubyte": "no_images"},
        ),
        (
            shard(1, separator=".")[0] | shard(1)[0] | shard(1, separator="_")[1],
            dict.fromkeys(("train-images-1.idx3-ubyte", "train-images-1-idx3-ubyte", "train-labels-1_idx1-ubyte"), "ambiguous_pair"),
        ),
        (shard("01")[0] | shard(1)[1], {"train-images-01-idx3-ubyte": "no_labels", "train-labels-1-idx1-ubyte": "no_images"}),
        (
            {"train-images-9-idx3-ubyte": idx_bytes(np.zeros((2, 28, 28, 3))), "train-labels-9-idx1-ubyte": idx_bytes(np.zeros(2))},
            {"train-images-9-idx3-ubyte": "not_idx", "train-labels-9-idx1-ubyte": "no_images"},
        ),
        (
            {"train-images-9-idx3-ubyte": idx_bytes(np.zeros(2)), "train-labels-9-idx1-ubyte": idx_bytes(np.zeros((2, 28, 28)))},
            {"train-images-9-idx3-ubyte": "not_idx", "train-labels-9-idx1-ubyte": "not_idx"},
        ),
    ],
)
def test_which_idx_files_are_a_pair(version, clean, rows, files: Mapping[str, bytes], refused: Mapping[str, str]) -> None:
    done = clean(version("v1", mnist() | files))
    assert done.refused_files == refused
    assert done.accepted == 240 + (0 if refused else 20) and len(rows("v1")) == done.accepted


def test_an_index_that_says_two_things_is_not_believed(version, clean, rows, engine: Engine) -> None:
    names = {f"more/{name}.png": drawing(3, 900 + n) for n, name in enumerate("abcd")}
    lines = [
        '{"file": "a.png", "label": 3, "label": 5}',
        '{"file": "b.png", "label": 3, "writer": 17}',
        '{"file": "b.png", "label": 5}',
        '{"file": "c.png", "file": "d.png", "label": 3}',
        '{"file": "d.png", "label": 3, "writer": "\\ud800"}',
        '{"file": "\\ud800.png", "label": 3}',
        '{"file": "d.png", "label": 3, "note": "a\u2028b"}',  # no end of a line in JSON
    ]
    twice = {"twice/dataset.csv": b"image,label,label\nx.png,1,2\n", "twice/x.png": drawing(1, 950)}
    wide = {
        "wide/dataset.csv": b"image,label\ny.png,1,2\nz.png\nw.png,1\n",
        **{f"wide/{n}.png": drawing(1, 960 + i) for i, n in enumerate("yw")},
    }
    done = clean(version("v1", mnist() | names | {"more/labels.jsonl": "\n".join(lines).encode()} | twice | wide))
    assert done.refused_files == {"twice/dataset.csv": "not_an_index"}
    assert {key: code for key, code in quarantined(engine, "v1").items() if "mnist" not in key[0]} == {
        ("more/labels.jsonl", 1): "malformed_row",
        ("more/labels.jsonl", 2): "conflicting_labels",
        ("more/labels.jsonl", 3): "conflicting_labels",
        ("more/a.png", 0): "unlabelled",
        ("more/labels.jsonl", 4): "malformed_row",
        ("more/labels.jsonl", 5): "malformed_row",
        ("more/labels.jsonl", 6): "missing_file",
        ("more/c.png", 0): "unlabelled",
        ("twice/x.png", 0): "unlabelled",
        ("wide/dataset.csv", 2): "malformed_row",
        ("wide/dataset.csv", 3): "malformed_row",
        ("wide/y.png", 0): "unlabelled",
    }
    assert done.origins == {"drawn": 2, "mnist": 240}


# --- splits ---------------------------------------------------------------------------------------------------------------------


def test_official_test_files_are_the_holdout_and_writers_stay_together(version, clean, rows) -> None:
    clean(version("v1", mnist(400) | users(range(500, 530))))
    frame = rows("v1")
    mnist_rows, drawn = frame[frame["origin"] == "mnist"], frame[frame["origin"] == "drawn"]
    held = mnist_rows["path"].str.startswith("mnist/t10k")
    assert (mnist_rows[held]["split"] == "holdout").all() and set(mnist_rows[~held]["split"]) == {"train", "validation"}
    assert drawn.groupby("group")["split"].nunique().max() == 1 and set(drawn["split"]) == set(dataset.SPLITS)
    assert drawn["group"].nunique() == 30


def test_a_split_holds_for_good(version, clean, rows) -> None:
    """What writers draw later goes where they are, and what was measured on is never trained on."""
    parent = mnist() | users(range(500, 512))
    clean(version("v1", parent))
    before = rows("v1").set_index("id")
    later = {name.replace("users/", "later/"): content for name, content in users(range(500, 512), range(1, 3)).items()}
    clean(version("v2", later, parent="v1"))
    after = rows("v2").set_index("id")
    assert len(after) == len(before) + 240
    assert (after.loc[before.index, "split"] == before["split"]).all()
    of_writer = before[before["origin"] == "drawn"].groupby("group")["split"].first()
    new = after.loc[after.index.difference(before.index)]
    assert (new["split"] == new["group"].map(of_writer)).all()


def test_a_copy_is_never_on_the_other_side(version, clean, rows) -> None:
    """The same drawing again by many others, nearly: all of them are one family. A control without the rule tears it apart."""
    rng = np.random.default_rng(0)
    base = np.asarray(Image.open(io.BytesIO(drawing(4, 700)))).astype(int)
    copies = {
        f"img/{n}.png": png(Image.fromarray((base + rng.integers(-9, 9, base.shape)).clip(0, 255).astype(np.uint8))) for n in range(30)
    }
    lines = [json.dumps({"file": name, "label": 4, "writer": f"copier{n}"}) for n, name in enumerate(copies)]
    files = mnist() | {f"copies/{name}": content for name, content in copies.items()} | {"copies/labels.jsonl": "\n".join(lines).encode()}
    clean(version("v1", files))
    assert rows("v1").query("origin == 'drawn'")["split"].nunique() == 1
    family = [[data.Row("s", n, "n", "drawn", writer=f"copier{n}", id=f"{n:064x}")] for n in range(30)]
    assert len({data._by_hash(alone, SECTION) for alone in family}) > 1


def test_what_users_of_codes_drew_is_never_measured_on(version, clean, rows) -> None:
    clean(version("v1", mnist()))
    later = users(range(500, 530), origin="users")
    clean(version("v2", later, parent="v1"))
    learned = rows("v2").query("origin == 'users'")
    assert len(learned) > 250 and set(learned["split"]) == {"train", "validation"}
    # The control: people's own data sets are measured on too.
    clean(version("v3", users(range(600, 630)), parent="v1"))
    assert "holdout" in set(rows("v3").query("origin == 'drawn'")["split"])


def test_a_user_cannot_push_a_held_out_drawing_out_or_get_in_beside_it(version, clean, rows, engine: Engine) -> None:
    """Held-out sets are public: whoever sends a copy of one of their drawings, under the wrong label too, changes nothing in the exam."""
    held = drawing(4, 700)
    exam = {"exam/img/a.png": held, "exam/dataset.csv": b"image,label\nimg/a.png,4\n"}
    clean(version("v1", mnist() | exam))
    picture = Image.open(io.BytesIO(held))
    picture.putpixel((0, 0), 250)
    nearly = png(picture)
    known = drawing(7, 900)
    for name, label, more in (("v2", 9, {"origin": "users"}), ("v3", 4, {})):
        lines = [{"file": "seven.png", "label": 7, "writer": "copier"}, {"file": "copy.png", "label": label, "writer": "copier"}]
        index = "\n".join(json.dumps(line | more) for line in lines).encode()
        clean(version(name, {"u/seven.png": known, "u/copy.png": nearly, "u/labels.jsonl": index}, parent="v1"))
        before, after = (rows(one).query("split == 'holdout'").set_index("id")["label"] for one in ("v1", name))
        if more:
            assert before.equals(after) and set(quarantined(engine, name).values()) == {"like_held_out"}
        else:
            assert len(after) > len(before)  # the control: a data set's own copy stands beside it


def test_what_was_deleted_on_request_is_in_no_table(version, clean, rows, store: ObjectStore, engine: Engine) -> None:
    manifest = version("v1", mnist() | users(range(500, 502), origin="users"))
    clean(manifest)
    before = rows("v1")
    (own,) = [entry for entry in manifest.entries if entry.path == "users/img/500-3-0.png"]
    with engine.begin() as connection:
        forget.record(connection, data.SYSTEM, [forget.File("v1", own.key, own.sha256)])
    forget.finish(engine, store, data.SYSTEM)
    again = dataset.read_manifest(engine, store, data.SYSTEM, "v1")
    assert again.sha256 == manifest.sha256
    done = clean(again)
    assert not done.unchanged and done.quarantined["missing_file"] == 1  # of a writer's own folder the index goes too
    assert set(before["id"]) - set(rows("v1")["id"]) == {own.sha256}
    assert clean(dataset.read_manifest(engine, store, data.SYSTEM, "v1")).unchanged
    child = version("v2", users(range(502, 503), origin="users"), parent="v1")
    clean(child)
    assert own.sha256 not in set(rows("v2")["id"])


def test_a_version_without_a_digit_is_refused(version, clean, engine: Engine) -> None:
    count = 90
    labels = np.arange(count) % 9
    files = mnist() | {f"mnist/{IMAGES}.gz": idx_bytes(pixels(count)), f"mnist/{LABELS}.gz": idx_bytes(labels)}
    with pytest.raises(NothingLeft, match="no train picture is a 9"):
        clean(version("v1", files))


def test_the_same_rules_again_change_nothing_and_a_child_takes_over_what_was_prepared(version, clean, rows, store, monkeypatch) -> None:
    manifest = version("v1", mnist() | users(range(500, 503)))
    first = clean(manifest)
    assert clean(manifest).unchanged and clean(manifest).table == first.table
    prepared: list[Any] = []
    whole = strokes.prepared
    monkeypatch.setattr(strokes, "prepared", lambda picture: (prepared.append(picture), whole(picture))[1])
    clean(version("v2", users(range(600, 602)), parent="v1"))
    assert len(prepared) == 20 and len(rows("v2")) == first.accepted + 20
    wider = SECTION.model_copy(update={"validation_fraction": 0.2})
    assert not clean(manifest, wider).unchanged


def test_the_contract_notices_what_breaks_it(version, clean, rows) -> None:
    clean(version("v1", mnist() | users(range(500, 503))))
    good = rows("v1")
    broken = {
        "label": good.assign(label=np.int8(11)),
        "split": good.assign(split="test"),
        "blank": good.assign(blank=True),
        "empty": good.assign(empty=True),
        "id": good.assign(id=good["id"].iloc[0]),
        "no writer in two splits": good.assign(split=np.where(np.arange(len(good)) % 2, "train", "holdout"), group="w"),
    }
    for rule, frame in broken.items():
        assert any(rule in violation.rule for violation in data.check_contract(frame)), rule


def test_the_sample_is_clean_but_for_its_dirty_files(version, clean, tmp_path: Path, store) -> None:
    write_digits(tmp_path / "sample", train=300, test=60, drawn=100)
    files = {file.relative_to(tmp_path / "sample").as_posix(): file.read_bytes() for file in (tmp_path / "sample").rglob("*.*")}
    done = clean(version("v1", files))
    assert done.refused_files == {} and set(done.splits) == set(dataset.SPLITS)
    pictures = idx.read([files["train-images-idx3-ubyte.gz"]], 3)
    assert pictures[:, 0].max() == pictures[:, :, 0].max() == 0 and (pictures.max(axis=(1, 2)) > 100).mean() > 0.8, "white on black"
    assert set(done.quarantined) >= {"missing_file", "bad_label", "nothing_drawn", "malformed_row"}
    sheet = data.contact_sheet(store, done.table, tmp_path / "sheet", 48 * 1024)
    assert len(sheet) <= 48 * 1024
    shown = np.asarray(Image.open(io.BytesIO(sheet)).convert("L"))
    assert shown.shape[1] == 300 and shown.std() > 40


@pytest.mark.real_data
def test_the_real_drawings_are_all_used(version, clean, real_data: Path) -> None:
    """HWD1000 as it is, with MNIST's test files for both halves: 500 drawings, none of them turned away."""
    folder = real_data / "hwd1000"
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = clean(version("v1", files | mnist()))
    assert done.origins["drawn"] == 500 and done.quarantined == {} and done.splits["holdout"] == 540


# --- whatever comes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_is_accounted_for(version, clean, rows, seed: int) -> None:
    """Rows in = accepted + quarantined and every file is something (the fixture asserts it), and no error is not ours."""
    rng = random.Random(seed)
    files = mnist() | {name: content for name, content in users(range(500, 502)).items() if "jsonl" not in name}
    good = idx_bytes(pixels(3, 50)), idx_bytes(np.arange(3))
    for _ in range(40):
        kind = rng.randrange(2)
        content = rng.choice(
            (good[kind], good[1 - kind], gzip.compress(good[kind]), idx_bytes(np.zeros(rng.choice(((2, 28, 28, 3), (4,), (2, 9))))))
        )
        at = rng.randrange(len(content))
        header = bytes((0, 0, rng.choice((8, 9, 13)), rng.choice((0, 1, 3, 200)))) + struct.pack(
            ">3I", *(rng.choice((0, 1, 28, 2**32 - 1)) for _ in range(3))
        )
        content = rng.choice(
            (content, content, content[:at], content[:at] + rng.randbytes(4) + content[at:], b"", POINTER, header, rng.randbytes(60))
        )
        part, what, number = rng.choice(("train", "t10k")), rng.choice(("images", "labels")), rng.choice(("", "-1", "_2", " (1)"))
        name = f"{part}-{what}{number}-idx{rng.choice('13')}-ubyte"
        files[f"{rng.choice(('a', 'b', 'images', 'labels', '손'))}/{name}{rng.choice(('', '.gz'))}"] = content
    drawings = [name for name in files if name.endswith(".png")]
    odd: tuple[Any, ...] = (0, 9, "3", 10, -1, "03", 3.0, True, None, [], "９", 2**70, "\ud800", {})
    for n in range(12):
        lines = []
        for _ in range(20):
            path = rng.choice(
                (
                    *drawings[:6],
                    *(name.removeprefix("users/") for name in drawings),
                    "../x.png",
                    "",
                    "\ud800",
                    "a\x00",
                    3,
                    None,
                    "C:\\x.png",
                )
            )
            item: Any = {
                "file": path,
                "label": rng.choice(odd),
                "writer": rng.choice(("w1", 3, None, "", "\ud800", ["x"], True)),
                "origin": "users",
            }
            lines.append(
                rng.choice(
                    (
                        json.dumps(item),
                        json.dumps(item, ensure_ascii=False),
                        json.dumps([item]),
                        "[" * rng.choice((5, 700, 100_000)),
                        "{",
                        "",
                        "null",
                        "NaN",
                    )
                )
            )
        text = "\n".join(lines).encode("utf-8", "surrogatepass" if n % 2 else "replace")
        csv = b"image,label\n" + b"".join(
            b"%s,%s\n" % (rng.choice((b"img/x.png", b'"a', b"img/500-1-0.png", b"\x00")), rng.choice((b"1", b"", b"x", b"1,2")))
            for _ in range(9)
        )
        folder = rng.choice(("users", "more", ""))
        files[f"{folder}/{'labels.jsonl' if n % 3 else 'dataset.csv'}".strip("/")] = rng.choice(
            (text, csv, text.replace(b"\n", b"\r\n"), b"\xff\xfe" + text)
        )
    done = clean(version("v1", files))
    assert done.accepted == len(rows("v1")) >= 200 and set(done.quarantined) <= set(data.ROW_REASONS)
    assert set(done.refused_files.values()) <= set(data.FILE_REASONS)
