"""What can be read in two ways is refused in every reader of tables, and both readings are named."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from mlops_assets.characters import is_blank, visible
from mlops_assets.ingest import sheet
from mlops_assets.ingest.lines import Reader, _opened, exact_header, wrong_columns
from mlops_assets.ingest.rows import Rejected
from mlops_assets.settings import SettingsError, load_settings, read_yaml
from mlops_assets.systems.hate_speech import data as comments
from mlops_assets.systems.hate_speech.config import HateSpeechConfig
from mlops_assets.unambiguous import Ambiguous, loads, loads_each, named_twice

ALIKE = ["label", " label", "label ", "LABEL", "ｌａｂｅｌ", "\ufefflabel", "la\u200bbel", "label\u3000", "label\u00ad"]


@pytest.mark.parametrize("other", ALIKE)
def test_columns_that_a_reader_takes_for_one_are_both_named(other: str) -> None:
    found = named_twice(["id", "label", "text", other])
    assert found is not None and "columns 2 and 4" in found and "'label'" in found and repr(other) in found
    assert named_twice(["id", "label", "text", "labels"]) is None


def test_korean_columns_in_another_form_are_one() -> None:
    assert named_twice(["여성/가족", unicodedata.normalize("NFD", "여성/가족")]) is not None


@pytest.mark.parametrize("other", ALIKE)
def test_a_file_of_lines_with_a_column_twice_is_turned_away(other: str) -> None:
    """The naive reader (the first or the last column of that name) would choose one of them."""
    reader = Reader(lambda header: lambda line, number: {})
    found = _opened(iter([f"id\tlabel\ttext\t{other}".encode()]), reader)
    assert isinstance(found, Rejected) and found.code == "wrong_columns" and "columns 2 and 4" in found.excerpt


def test_a_reviews_header_with_a_column_twice_says_so() -> None:
    reader = Reader(exact_header(b"id\tdocument\tlabel", lambda line, number: {}))
    found = _opened(iter([b"id\tdocument\tlabel\tLabel"]), reader)
    assert isinstance(found, Rejected) and "'label' and 'Label'" in found.excerpt
    assert wrong_columns("id", b"x").code == found.code


@pytest.mark.parametrize("other", ["hate ", "HATE", "ｈａｔｅ", "ha\u200bte"])
def test_a_mapped_table_of_comments_with_its_label_twice_is_turned_away(other: str) -> None:
    """Where one column has the label, the others may be any: a second label among them was not seen."""
    section = _comments().dataset
    reader = comments.reader_of(section, "train.tsv")
    assert reader is not None
    found = _opened(iter([f"comments\tcontain_gender_bias\tbias\thate\t{other}".encode()]), reader)
    assert isinstance(found, Rejected) and found.code == "wrong_columns" and repr(other) in found.excerpt
    assert not isinstance(_opened(iter([b"comments\tcontain_gender_bias\tbias\thate"]), reader), Rejected), "control"


def test_whom_a_comment_is_about_is_not_guessed() -> None:
    section = _comments().dataset
    reader = comments.reader_of(section, "unsmile_train_v1.0.tsv")
    assert reader is not None
    parse = reader.open("\t".join(["문장", *section.labels, "개인지칭"]).encode())
    assert callable(parse)
    for personal, problem in (("0", None), ("1", None), ("1.0", "bad_label"), ("True", "bad_label"), ("", "bad_label")):
        row = parse("\t".join(["말이 그렇다", *["0"] * 9, "1", personal]).encode(), 2)
        assert not isinstance(row, Rejected) and row["problem"] == problem, personal


def _comments() -> HateSpeechConfig:
    from mlops_assets.settings import load_config

    return load_config(HateSpeechConfig, "hate_speech", load_settings().configs)


@pytest.mark.parametrize("other", ["text", "Text", " text", "te\u200bxt"])
def test_a_line_of_json_with_a_name_twice_is_turned_away(other: str) -> None:
    line = json.dumps({"source": "app", "id": 1, "labels": ["clean"], "deleted": False}, ensure_ascii=False)[:-1]
    line += f', "text": "하나", {json.dumps(other)}: "둘"}}'
    found = comments.parse_comment(line.encode(), _comments().dataset)
    assert isinstance(found, Rejected) and found.code == "malformed_row" and "'text'" in found.excerpt and repr(other) in found.excerpt


def test_json_with_a_name_twice() -> None:
    for text in ('{"a": 1, "a": 2}', '[{"x": {"b": 1, "B ": 2}}]'):
        with pytest.raises(Ambiguous, match="entries 1 and 2 have one name"):
            loads(text)
    marked = loads_each('[{"a": 1}, {"a": 1, "a": 2}, {"a": 3}]')
    assert marked[0] == {"a": 1} and isinstance(marked[1], Ambiguous) and marked[2] == {"a": 3}, "the others can be used"
    assert loads('{"a": [1, {"b": null}], "c": "가"}') == {"a": [1, {"b": None}], "c": "가"}


@pytest.mark.parametrize("other", ["시도명", " 시도명", unicodedata.normalize("NFD", "시도명"), "시도명\u200b", "\ufeff시도명"])
def test_a_sheet_with_a_column_twice_is_refused(other: str) -> None:
    with pytest.raises(sheet.SheetError, match=r"columns 1 and 3 have one name.*중복된 열"):
        sheet.read_csv(f"시도명,시군구명,{other}\n대구,달성군,부산\n".encode(), "p.csv", ["시도명"])
    with pytest.raises(sheet.SheetError, match="columns 1 and 3"):
        sheet.table_of([["시도명", "시군구명", other], ["대구", "달성군", "부산"]], "the worksheet")


@pytest.mark.parametrize(
    ("content", "key", "lines"),
    [
        ("promotion: {metric: f1}\nproject: {}\npromotion: {metric: accuracy}\n", "'promotion'", ("line 3", "line 1")),
        ("a:\n  f1: 0.8\n  f1: 0.1\n", "'f1'", ("line 3", "line 2")),
        ("1: x\ntrue: y\n", "True", ("line 2", "line 1")),
        ("a: {b: [{c: 1, c: 2}]}\n", "'c'", ("line 1", "line 1")),
        ("한글: 1\n" + unicodedata.normalize("NFD", "한글") + ": 2\n", "'한글'", ("line 2", "line 1")),
    ],
)
def test_a_configuration_with_a_key_twice_is_an_error(tmp_path: Path, content: str, key: str, lines: tuple[str, str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        read_yaml(path)
    assert all(part in str(error.value) for part in (str(path), key, *lines))


def test_anchors_and_merges_of_a_configuration_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_what_python_calls_space_or_unicode_calls_ignorable_is_blank() -> None:
    every = map(chr, range(sys.maxunicode + 1))
    unseen = {c for c in every if c.isspace()}
    # Default_Ignorable_Code_Point of Unicode 16, DerivedCoreProperties.txt.
    ignorable = (
        "00AD 034F 061C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F FEFF FFA0 FFF0-FFF8 1BCA0-1BCA3 "
        "1D173-1D17A E0000-E0FFF"
    )
    for part in ignorable.split():
        first, _, last = part.partition("-")
        unseen |= set(map(chr, range(int(first, 16), int(last or first, 16) + 1)))
    assert [hex(ord(c)) for c in sorted(unseen) if not is_blank(c)] == []
    assert is_blank("".join(sorted(unseen))) and is_blank("") and not is_blank("가") and not is_blank("😀") and not is_blank(".")
    assert visible("\ufeff 좋\u200b은\u3164 \u2800\t영화\U000e0041 ") == "좋은 영화"
