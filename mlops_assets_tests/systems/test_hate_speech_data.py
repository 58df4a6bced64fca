"""Cleaning comments: every row is accounted for, the newest line about a comment counts, data sets stand among the comments once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mlops_assets.ingest import objects
from mlops_assets.ingest.objects import land
from mlops_assets.ingest.rows import Rejected
from mlops_assets.ingest.texts import Cleaned
from mlops_assets.lifecycle import dataset
from mlops_assets.resources.spark import SparkEngine
from mlops_assets.settings import REPOSITORY, Settings, SettingsError, load_config, read_yaml, validate
from mlops_assets.store import ObjectStore
from mlops_assets.systems.hate_speech import data
from mlops_assets.systems.hate_speech.config import DatasetSection, HateSpeechConfig
from mlops_assets_tests.factories import POINTER

CONFIG = load_config(HateSpeechConfig, "hate_speech", REPOSITORY / "configs")
SECTION = CONFIG.dataset
LABELS = SECTION.labels
HEADER = "\t".join(["문장", *LABELS, "개인지칭"])


def row(said: str, *labels: str, personal: int = 0) -> str:
    return "\t".join([said, *("1" if label in labels else "0" for label in LABELS), str(personal)])


def table(*rows: str, header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


def line(number: int, said: str, *labels: str, source: str = "app", deleted: bool = False, **more: Any) -> str:
    found = {"source": source, "id": number, "content_hash": 1, "text": said, "labels": list(labels), "deleted": deleted, **more}
    return json.dumps(found, ensure_ascii=False) + "\n"


VALID = table(row("시험 문제 하나", "clean"), row("시험 문제 둘", "남성"))


@pytest.fixture
def version(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., dataset.Manifest]:
    """A function (name, files) that lands, closes and freezes a version."""

    def make(name: str, files: Mapping[str, str | bytes], parent: str | None = None) -> dataset.Manifest:
        folder = tmp_path / "landing" / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        land(settings, store, data.SYSTEM, folder, name, engine=engine, parent=parent)
        objects.tick(engine, store, data.SYSTEM, settle_seconds=3600)
        return dataset.freeze(engine, store, data.SYSTEM, name, max_object_bytes=10**9, scratch=tmp_path / "freeze")

    return make


@pytest.fixture
def clean(store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., Cleaned]:
    def run(manifest: dataset.Manifest, section: DatasetSection = SECTION) -> Cleaned:
        scratch = tmp_path / "clean" / str(len(list((tmp_path / "clean").glob("*"))))
        scratch.mkdir(parents=True)
        done = data.clean(engine, store, manifest, section, SparkEngine(), scratch, max_line_bytes=1 << 20)
        assert done.rows_in == done.accepted + sum(done.quarantined.values())
        assert data.account(engine, store, manifest.version).adds_up
        return done

    return run


@pytest.fixture
def rows(store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[[str], pd.DataFrame]:
    def load(name: str) -> pd.DataFrame:
        frame = data.read_table(data.load_cleaned(store, engine, name, tmp_path / "tables" / name))
        assert data.check_contract(frame, SECTION) == []
        return frame.set_index("id")

    return load


def quarantined(engine: Engine, name: str) -> dict[tuple[str, int], str]:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT source, line, reason_code FROM quarantined_row WHERE version = :v"), {"v": name})
        return {(r.source, r.line): r.reason_code for r in found}


def test_every_rule_and_every_row(version, clean, rows, engine: Engine) -> None:
    train = [
        row("여자들 하는 짓이 역겹다", "여성/가족"),  # kept
        row("둘 다 역겹다", "남성", "여성/가족", personal=1),  # kept, in the labels' own order
        row("라벨이 없다"),  # unlabelled
        row("깨끗하고 더럽다", "clean", "연령"),  # clean_and_hateful
        row("  ", "clean"),  # empty_text
        "칸이 모자라다\t0\t1",  # malformed_row
        row("이상한 값", "연령").replace("\t1\t", "\t7\t"),  # bad_label
        row("같은 말", "연령"),  # conflicting_labels
        row("같은  말", "지역"),  # conflicting_labels, whitespace aside
        row("또 같은 말", "종교"),  # kept
        row("또 같은 말 ", "종교"),  # duplicate_text
        row("시험문제... 하나!!", "clean"),  # in_holdout: signs and spaces make no other text
        row("연락은 hong@example.com 010-1234-5678", "clean"),  # kept, masked
        row("ㅋㅋㅋㅋㅋ", "clean"),  # kept
        row("hello world", "clean"),  # not_korean
        row("https://a.example/x 봐라", "clean"),  # kept
        row("https://b.example/y 봐라", "clean"),  # duplicate_text: another address makes no other comment
    ]
    done = clean(version("v1", {"unsmile_train_v1.0.tsv": table(*train), "unsmile_valid_v1.0.tsv": VALID}))
    assert done.rows_in == len(train) + 2 and set(done.quarantined) <= set(data.ROW_REASONS)
    assert {at: code for (source, at), code in quarantined(engine, "v1").items() if "train" in source} == {
        4: "unlabelled",
        5: "clean_and_hateful",
        6: "empty_text",
        7: "malformed_row",
        8: "bad_label",
        9: "conflicting_labels",
        10: "conflicting_labels",
        12: "duplicate_text",
        13: "in_holdout",
        16: "not_korean",
        18: "duplicate_text",
    }
    frame = rows("v1")
    assert frame.loc["unsmile/train#3", "labels"] == "여성/가족, 남성" and frame.loc["unsmile/train#3", "personal"]
    assert frame.loc["unsmile/train#14", "text"] == "연락은 [EMAIL] [PHONE]"
    assert frame.loc["unsmile/train#2", "names"] == "여성/가족", "the group that it names, for measuring false flags"
    assert set(frame.loc[["unsmile/valid#2", "unsmile/valid#3"], "split"]) == {"holdout"}


def test_what_cannot_be_read_is_masked_in_quarantine_too(version, clean, engine: Engine) -> None:
    clean(
        version("v1", {"unsmile_train_v1.0.tsv": table(row("가나", "clean"), "010-1234-5678 칸이 없다"), "unsmile_valid_v1.0.tsv": VALID})
    )
    with engine.connect() as connection:
        seen = connection.execute(text("SELECT excerpt FROM quarantined_row")).scalars().all()
    assert seen == ["[PHONE] 칸이 없다"]


def test_other_peoples_labels_are_mapped_by_configuration_alone(version, clean, rows, engine: Engine) -> None:
    header = "comments\tcontain_gender_bias\tbias\thate"
    theirs = ["곱다\tFalse\tnone\tnone", "나쁜 놈\tFalse\tnone\toffensive", "다 나가라\tTrue\tgender\thate", "새 값\tFalse\tnone\tvery"]
    done = clean(version("v1", {"train.tsv": table(*theirs, header=header), "unsmile_valid_v1.0.tsv": VALID}))
    assert done.quarantined == {"unmapped_label": 2}
    assert rows("v1").loc["korean_hate_speech/train#3", "labels"] == "악플/욕설"
    three = SECTION.tables["korean_hate_speech/train"].model_copy(
        update={"labels": {"none": ("clean",), "offensive": ("악플/욕설",), "hate": ("기타 혐오",)}}
    )
    mapped = SECTION.model_copy(update={"tables": {**SECTION.tables, "korean_hate_speech/train": three}})
    assert clean(version("v2", {"train.tsv": table(*theirs, header=header), "unsmile_valid_v1.0.tsv": VALID}), mapped).quarantined == {
        "unmapped_label": 1
    }


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("news.tsv", VALID, "unexpected_file"),
        ("unsmile_train_2.tsv", "", "empty_file"),
        ("unsmile_train_2.tsv", HEADER + "\n", "empty_file"),
        ("unsmile_train_2.tsv", table("한 줄\t1", header="문장\tclean"), "wrong_columns"),
        ("unsmile_train_2.tsv", table("x\t" * 12 + "1", header=f"{HEADER}\t새 라벨"), "wrong_columns"),
        ("unsmile_train_2.tsv", VALID.encode("cp949"), "not_utf8"),
        ("comments-2.jsonl", "", "empty_file"),
        ("comments-2.jsonl", POINTER, "lfs_pointer"),
        ("unsmile_train_2.tsv", POINTER.replace(b"\n", b"\r\n"), "lfs_pointer"),
    ],
)
def test_a_bad_file_is_turned_away_and_the_others_go_on(version, clean, name: str, content: str | bytes, code: str) -> None:
    good = {"comments-1.jsonl": line(1, "좋은 글", "clean"), "unsmile_valid_v1.0.tsv": VALID}
    done = clean(version("v1", {**good, name: content}))
    assert done.refused_files == {name: code} and done.accepted == 3


def test_the_newest_line_about_a_comment_counts(version, clean, rows, engine: Engine) -> None:
    first = line(1, "하나", "연령") + line(2, "둘째", "연령") + line(3, "셋째", "연령") + line(1, "하나", "지역")
    files = {"comments-0001.jsonl": first, "unsmile_valid_v1.0.tsv": VALID}
    clean(version("v1", files))
    assert rows("v1")["labels"].to_dict() == {
        "app#1": "지역",
        "app#2": "연령",
        "app#3": "연령",
        "unsmile/valid#2": "clean",
        "unsmile/valid#3": "남성",
    }
    # An older file by name, but of a later version: that is what counts. A held-out comment that is labelled anew stays held out.
    second = (
        line(2, "둘", deleted=True)
        + line(3, "셋", "모르는 라벨")
        + line(4, "넷째", "clean")
        + line(3, "시험 문제 둘", "연령", source="unsmile/valid")
    )
    done = clean(version("v2", {"a-comments.jsonl": "x", "comments-0000.jsonl": second}, parent="v1"))
    frame = rows("v2")
    assert set(frame.index) == {"app#1", "app#4", "unsmile/valid#2", "unsmile/valid#3"}
    assert (frame.loc["unsmile/valid#3", "labels"], frame.loc["unsmile/valid#3", "split"]) == ("연령", "holdout")
    assert done.quarantined == {"superseded": 4, "deleted": 1, "unknown_label": 1}
    with engine.connect() as connection:
        shown = connection.execute(text("SELECT excerpt FROM quarantined_row WHERE version = 'v2' AND reason_code = 'deleted'"))
        assert shown.scalar_one() == "app#2", "who was deleted is not quoted"


@given(st.binary(max_size=80))
def test_any_line_is_a_comment_or_has_a_reason(content: bytes) -> None:
    parsed = data.parse_comment(content.replace(b"\n", b""), SECTION)
    assert isinstance(parsed, Rejected) and parsed.code in data.ROW_REASONS


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "1"},
        {"text": None},
        {"labels": "연령"},
        {"labels": [1]},
        {"deleted": 0},
        {"source": 3},
        {"text": "\x00"},
        {"id": 99999999999999999999},
        {"id": -(2**63) - 1},
        {"text": "\ud83d"},
        {"source": "\ud83d"},
        {"id": True},
        {"id": 1.0},
    ],
)
def test_a_line_with_a_wrong_value_is_malformed(wrong: dict[str, Any]) -> None:
    whole = json.loads(line(1, "하나", "연령"))
    assert not isinstance(data.parse_comment(json.dumps(whole).encode(), SECTION), Rejected)
    parsed = data.parse_comment(json.dumps({**whole, **wrong}).encode(), SECTION)
    assert isinstance(parsed, Rejected) and parsed.code == "malformed_row"


def test_a_line_that_is_nested_without_end_is_malformed() -> None:
    parsed = data.parse_comment(b"[" * 500_000, SECTION)
    assert isinstance(parsed, Rejected) and parsed.code == "malformed_row"


def test_a_second_file_of_a_table_is_turned_away(version, clean, rows, engine: Engine) -> None:
    first = {"unsmile_train_1.tsv": table(row("하나", "연령"), row("둘째", "연령")), "unsmile_valid_v1.0.tsv": VALID}
    done = clean(version("v1", {**first, "unsmile_train_2.tsv": table(row("다른 글", "지역"))}))
    assert done.refused_files == {"unsmile_train_2.tsv": "second_file"} and rows("v1").loc["unsmile/train#2", "text"] == "하나"
    # In a version that extends it, the same name replaces the file and another one is a second file.
    again = {"unsmile_train_1.tsv": table(row("하나", "지역")), "unsmile_train_0.tsv": table(row("다른 글", "지역"))}
    done = clean(version("v2", again, parent="v1"))
    assert done.refused_files == {"unsmile_train_0.tsv": "second_file", "v1/unsmile_train_2.tsv": "second_file"}
    assert rows("v2")["labels"].filter(like="train").to_dict() == {"unsmile/train#2": "지역", "unsmile/train#3": "연령"}


# --- among the comments ---------------------------------------------------------------------------------------------------------


def stand(engine: Engine) -> tuple[list[Any], list[Any], int]:
    with engine.connect() as connection:
        comments = connection.execute(text("SELECT source, id, text, moderation FROM comment ORDER BY source, id")).all()
        labels = connection.execute(text("SELECT source, id, labels, origin FROM comment_label ORDER BY sequence")).all()
        seen = connection.execute(text("SELECT count(*) FROM comment_ledger")).scalar_one()
    return [tuple(r) for r in comments], [tuple(r) for r in labels], int(seen)


def test_data_sets_stand_among_the_comments_once(version, clean, engine: Engine, store: ObjectStore) -> None:
    train = table(row("하나", "연령", personal=1), row("라벨 없음"))
    manifest = version("v1", {"unsmile_train_v1.0.tsv": train, "unsmile_valid_v1.0.tsv": VALID, "comments-1.jsonl": line(1, "앱", "지역")})
    clean(manifest)
    comments, labels, seen = stand(engine)
    assert comments[0] == ("unsmile/train", 2, "하나", {"개인지칭": True}) and len(comments) == seen == 3, "not those of the ledger itself"
    assert ("unsmile/train", 2, ["연령"], "dataset") in labels and len(labels) == 3
    for info in list(store.list("cleaned")):
        store.delete(info.key)
    clean(manifest)
    assert stand(engine) == (comments, labels, seen), "again, nothing changes"
    relabelled = table(row("하나", "연령", "지역", personal=1), row("라벨 없음", "clean"))
    clean(version("v2", {"unsmile_train_v1.1.tsv": relabelled, "unsmile_valid_v1.0.tsv": VALID}))
    _, more, _ = stand(engine)
    assert more[: len(labels)] == labels and [r[:3] for r in more[len(labels) :]] == [
        ("unsmile/train", 2, ["연령", "지역"]),
        ("unsmile/train", 3, ["clean"]),
    ]
    for info in list(store.list("cleaned")):
        store.delete(info.key)
    clean(manifest)
    assert stand(engine)[1] == more, "an old version that is cleaned again takes nothing back"


# --- splits and the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("뭐라고?", "뭐라고!!!", True),
        ("ㅋㅋㅋㅋ 좋다", "ㅋㅋ좋다", True),
        ("ABC", "ａｂｃ", True),
        ("좋다", "싫다", False),
        ("?!", "!?", False),
    ],
)
def test_near_identical_texts_are_one_group(one: str, other: str, same: bool) -> None:
    assert (data.group_of(one) == data.group_of(other)) is same


def good_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": ["a#1", "a#2", "a#3"],
            "source": ["a"] * 3,
            "number": [1, 2, 3],
            "text": ["하나", "둘", "셋"],
            "labels": ["연령", "여성/가족, 남성", "clean"],
            "names": ["", "남성", ""],
            "personal": [None, True, False],
            "split": ["train", "validation", "holdout"],
            "file": ["f"] * 3,
        }
    )


@pytest.mark.parametrize(
    ("column", "values", "rule"),
    [
        ("id", ["a#1", "a#1", "a#3"], "id: field_uniqueness"),
        ("text", ["하나", " ", "셋"], "text: text_not_empty"),
        ("labels", ["연령", "남성, 여성/가족", "clean"], "labels: known_labels"),
        ("labels", ["연령", "연령, clean", "clean"], "labels: known_labels"),
        ("labels", ["연령", "", "clean"], "labels: known_labels"),
        ("split", ["train", "test", "holdout"], "split: isin"),
        ("text", ["하나", "둘", "하나!"], "no text in two splits"),
        ("extra", [1, 2, 3], "column_in_schema"),
    ],
)
def test_the_contract_refuses_each_kind_of_bad_table(column: str, values: object, rule: str) -> None:
    assert data.check_contract(good_frame(), SECTION) == []
    found = data.check_contract(good_frame().assign(**{column: values}), SECTION)
    assert any(rule in violation.rule and violation.cases >= 1 for violation in found), found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("labels",), ["연령", "a,b"], "may not contain a comma"),
        (("clean",), "깨끗함", "깨끗함 is none of `labels`"),
        (("groups",), {"모름": ["가"]}, "모름 is none of `labels`"),
        (("tables", "korean_hate_speech/dev", "labels"), {}, "belong together"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(path: tuple[str, ...], value: object, message: str) -> None:
    values = read_yaml(REPOSITORY / "configs" / "hate_speech.yaml")
    at = values["datasets"]["unsmile"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(SettingsError, match=message):
        validate(HateSpeechConfig, values, "hate_speech.yaml")


@pytest.mark.real_data
def test_all_of_unsmile(version, clean, rows, engine: Engine, real_data: Path) -> None:
    folder = real_data / "unsmile"
    files = {path.name: path.read_bytes() for path in folder.glob("*.tsv")}
    done = clean(version("unsmile-1", files))
    assert done.rows_in == 15_005 + 3_737
    where = quarantined(engine, "unsmile-1")
    named = {at for (source, at), code in where.items() if code == "unlabelled" and "train" in source}
    assert named == {5878, 11944} and done.quarantined["unlabelled"] == 2
    assert done.splits["holdout"] == 3_737, "nothing that is measured is lost"
    assert set(done.quarantined) <= {"unlabelled", "duplicate_text", "conflicting_labels", "in_holdout", "not_korean", "no_letters"}
    frame = rows("unsmile-1")
    assert frame["personal"].sum() > 300 and not frame["labels"].str.contains("개인지칭").any()
