"""What a reader cannot tell apart is one group, in every text system and in ledgers that are older than that; what nobody sees is empty."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mlops_assets.characters import is_blank
from mlops_assets.ingest import texts
from mlops_assets.ingest.masking import mask
from mlops_assets.ingest.objects import land
from mlops_assets.ingest.texts import compared, group_of
from mlops_assets.lifecycle import dataset
from mlops_assets.resources.spark import SparkEngine
from mlops_assets.settings import Settings, load_config, load_settings
from mlops_assets.store import ObjectStore
from mlops_assets.systems.hate_speech import data as comments
from mlops_assets.systems.hate_speech.config import HateSpeechConfig
from mlops_assets.systems.sentiment import data as reviews
from mlops_assets.systems.sentiment.config import DatasetSection
from mlops_assets_tests.ingest.arrivals import freeze, tick

PLAIN = "정말 재밌는 영화ㅋㅋ 10점"
COPIES = [
    *(
        f"{open_}{PLAIN}{close}"
        for open_, close in ('""', "''", "“”", "‘’", "「」", "『』", "«»", "‹›", "＂＂", "``", "《》", "„“", "〝〞")
    ),
    f'"{PLAIN}',
    f'" “{PLAIN}” "',
    f"&quot;{PLAIN}&quot;",
    f"&#34;{PLAIN}&ldquo;",
    f"&amp;quot;{PLAIN}&amp;quot;",
    f"{PLAIN}&#8203;",
    *(
        f"정말 재{hidden}밌는 영화ㅋㅋ 10점{hidden}"
        for hidden in "\u200b\u200c\u200d\u2060\u200e\u202b\u00ad\ufeff\ufe0f\u034f\u3164\uffa0\u115f"
    ),
    *(f"{hidden}정말 재밌는 영화ㅋㅋ 1{hidden}0점" for hidden in ("\U000e0041", "\U000e0100", "\u180e", "\u17b4", "\x07", "\u1160")),
    f"  {PLAIN.replace(' ', chr(0x3000))} ",
    PLAIN.replace(" ", "\u2800"),
    PLAIN.replace(" ", ""),
    PLAIN.replace("ㅋㅋ", "ㅋㅋㅋㅋㅋㅋ"),
    PLAIN.replace("10", "１０"),
    unicodedata.normalize("NFD", PLAIN),
    PLAIN + "!!!",
    PLAIN + " ♥",
]
UNSEEN = [
    "\u200b",
    "\u3164",
    "\ufeff",
    "\u200b\u3164\ufeff",
    "\u200d",
    " \u200d ",
    "\u115f\u1160\uffa0",
    "\ufe0f",
    "\U000e0041\U000e007f",
    "\u00ad",
]
UNSEEN += ["\u2800", "\u034f", "\x1b", "\u202e\u202c", "\u3000\u2003", "\U0001d173", "\u180e", "\ufff9\ufffb"]


@pytest.mark.parametrize("copy", COPIES)
def test_copies_that_look_alike_are_one_group_in_both_systems(copy: str) -> None:
    assert group_of(copy) == group_of(PLAIN) == comments.group_of(copy)


@pytest.mark.parametrize(
    "other", ["정말 재미없는 영화ㅋㅋ 10점", "정말 재밌는 영화ㅋㅋ 1점", "정말 재밌는 영화ㅋㅋ 100점", "정말 재밌는 영화ㅎㅎ 10점"]
)
def test_what_a_reader_tells_apart_is_another_group(other: str) -> None:
    assert group_of(other) != group_of(PLAIN)


def test_signs_alone_are_compared_as_signs() -> None:
    assert len({group_of(said) for said in ("?!", "!?", "♥", "^^;", "...", "😀", "😡")}) == 7
    assert len({group_of(said) for said in ("♥", "♥♥♥", "“♥ ♥”", "\u200b♥")}) == 1


def test_only_what_reads_the_same_contradicts() -> None:
    """`compared`'s second value: a question mark makes another text, a quote or an invisible character none."""
    same = compared(PLAIN)[1]
    assert all(
        compared(copy)[1] == same
        for copy in (f"“{PLAIN}”", f"\u200b{PLAIN}", PLAIN.replace(" ", "  "), unicodedata.normalize("NFD", PLAIN))
    )
    assert compared(PLAIN + "?")[1] != same != compared(PLAIN + "!")[1]


pieces = st.sampled_from(
    [
        '"',
        "“",
        "”",
        "&quot;",
        "&amp;",
        "&",
        "&#39;",
        "\u200b",
        "\u200d",
        "\u3164",
        "\ufe0f",
        "ㅋ",
        "ㅋㅋㅋㅋㅋ",
        "!",
        " ",
        "\u3000",
        "좋",
        "다",
        "A",
        "é",
    ]
    + ["010-1234-5678", "http://a.b/c", "www.a.kr", "a@b.kr", "😀", "0", "é"]
)


@given(
    st.lists(pieces, max_size=12).map("".join),
    st.integers(0, 12),
    st.sampled_from(UNSEEN[:9]),
    st.sampled_from(['"', "“", "'", "『", "「"]),
)
def test_hiding_and_quoting_change_no_group(said: str, at: int, hidden: str, quote: str) -> None:
    if is_blank(texts.as_read(said)):
        return
    whole = group_of(f"{quote}{said}{quote}")
    assert whole == group_of(said)
    assert group_of(mask(said)) == group_of(said), "masking leaves a text in its group"
    if "&" not in said and hidden.strip() == hidden:  # in the middle of what becomes a mask as well
        assert group_of(said[:at] + hidden + said[at:]) == group_of(said)


@given(st.text(max_size=60))
def test_any_text_has_a_group_and_is_blank_or_not(said: str) -> None:
    assert len(group_of(said)) == 32 and is_blank(said) == (texts.visible(said) == "")


# --- landing --------------------------------------------------------------------------------------------------------------------

HEADER = "id\tdocument\tlabel\n"
SECTION = DatasetSection(train_files=("train*.txt",), holdout_files=("test*.txt",), validation_fraction=0.2)


@pytest.fixture
def cleaned(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """A function (version, file -> content) that lands and cleans reviews: id -> split of those that are accepted, else the reason."""

    def run(version: str, files: dict[str, str], section: DatasetSection = SECTION) -> dict[str, str]:
        folder = tmp_path / version
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(HEADER + content, encoding="utf-8")
        land(settings, store, reviews.SYSTEM, folder, version, engine=engine)
        tick(engine, store)
        manifest = freeze(engine, store, version, tmp_path)
        scratch = tmp_path / f"{version}-scratch"
        scratch.mkdir()
        reviews.clean(engine, store, manifest, section, SparkEngine(), scratch, max_line_bytes=1 << 20)
        frame = reviews.read_table(reviews.load_cleaned(store, engine, version, tmp_path / f"{version}-table"))
        assert reviews.check_contract(frame) == []
        with engine.connect() as connection:
            turned = connection.execute(
                text("SELECT excerpt, reason_code FROM quarantined_row WHERE version = :v"), {"v": version}
            ).tuples()
            return {**frame.set_index("id")["split"].to_dict(), **{said.split("\t")[0]: code for said, code in turned}}

    return run


HELD_OUT = [f"시험에 나오는 영화평 {n}번 참 좋다" for n in range(6)]
NEW_GROUP = {said: group_of(said) for said in HELD_OUT}
TEST = "".join(f"t{n}\t{said}\t{n % 2}\n" for n, said in enumerate(HELD_OUT))
OTHERS = "".join(f"n{n}\t다른 영화평 {n}번 보고 왔다\t{n % 2}\n" for n in range(30))


def test_hidden_copies_of_what_is_held_out_are_no_training_rows(cleaned: Callable[..., dict[str, str]]) -> None:
    hidden = "".join(f'q{n}\t"{said}"\t0\nz{n}\t{said[:5]}\u200b{said[5:]}\t0\n' for n, said in enumerate(HELD_OUT))
    unseen = "".join(f"i{n}\t{said}\t1\n" for n, said in enumerate(UNSEEN))
    found = cleaned("v1", {"test.txt": TEST, "train.txt": OTHERS + hidden + unseen})
    assert {name: found[name] for name in found if name[0] in "qz"} == {f"{kind}{n}": "in_holdout" for kind in "qz" for n in range(6)}
    assert {name: found[name] for name in found if name[0] == "i"} == {f"i{n}": "empty_document" for n in range(len(UNSEEN))}
    assert all(found[f"t{n}"] == "holdout" for n in range(6)) and all(found[f"n{n}"] in ("train", "validation") for n in range(30))


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The cleaning of an installation before `group_of`; calling it ends that."""
    before, known = texts.compared, texts.SCHEME
    monkeypatch.setattr(texts, "compared", lambda said: (reviews.former_group_of(said), before(said)[1]))
    monkeypatch.setattr(texts, "SCHEME", 1)

    def update() -> None:
        monkeypatch.setattr(texts, "compared", before)
        monkeypatch.setattr(texts, "SCHEME", known)

    return update


def splits_of(engine: Engine, said: str) -> dict[int, str]:
    keys = {1: reviews.former_group_of(said), 2: NEW_GROUP[said]}
    with engine.connect() as connection:
        return {
            scheme: split
            for scheme, key in keys.items()
            for split in connection.execute(text("SELECT split FROM split_ledger WHERE group_sha256 = :k"), {"k": key}).scalars()
        }


def test_what_an_older_ledger_held_out_stays_held_out_and_so_do_its_copies(
    cleaned: Callable[..., dict[str, str]], older: Callable[[], None], engine: Engine
) -> None:
    """Naive: the new groups are unknown, and every text of the old holdout is new."""
    assert cleaned("v1", {"test.txt": TEST, "train.txt": OTHERS})["t0"] == "holdout"
    assert splits_of(engine, HELD_OUT[0]) == {1: "holdout"}
    older()
    # The texts of the old holdout as training rows, as they were and in quotes; the old training rows as held-out ones.
    copies = "".join(f"a{n}\t{said}\t0\nq{n}\t“{said}”\t0\n" for n, said in enumerate(HELD_OUT))
    trained = "".join(f"m{n}\t'다른 영화평 {n}번 보고 왔다'\t{n % 2}\n" for n in range(30))
    new = "".join(f"s{n}\t새로 나온 영화평 {n}번\t{n % 2}\n" for n in range(8))
    found = cleaned("v2", {"test.txt": new + trained, "train.txt": copies + OTHERS.replace("다른", "또 다른")})
    assert {found[f"{kind}{n}"] for kind in "aq" for n in range(6)} == {"in_holdout"}
    assert {found[f"m{n}"] for n in range(30)} == {"in_train"}
    assert {found[f"s{n}"] for n in range(8)} == {"holdout"}
    assert splits_of(engine, HELD_OUT[0]) == {1: "holdout", 2: "holdout"}, "and nothing of the ledger was changed"
    with engine.connect() as connection:
        assert set(connection.execute(text("SELECT version FROM split_carried")).scalars()) == {"v1", "v2"}
    # An old version that is cleaned again keeps its splits.
    assert cleaned("v3", {"test.txt": TEST, "train.txt": OTHERS})["t0"] == "holdout"


def test_control_an_older_ledger_is_not_known_without_carrying_it_over(
    cleaned: Callable[..., dict[str, str]], older: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned("v1", {"test.txt": TEST, "train.txt": OTHERS})
    older()
    monkeypatch.setattr(texts, "carry_over", lambda *arguments: False)
    new = "".join(f"s{n}\t새로 나온 영화평 {n}번\t{n % 2}\n" for n in range(8))
    found = cleaned("v2", {"test.txt": new, "train.txt": f"q0\t“{HELD_OUT[0]}”\t0\na0\t{HELD_OUT[1]}\t0\n" + OTHERS})
    assert {found["q0"], found["a0"]} <= {"train", "validation"}


def test_a_text_whose_bytes_are_gone_is_known_by_its_former_group(
    cleaned: Callable[..., dict[str, str]], older: Callable[[], None], engine: Engine, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    cleaned("v1", {"test.txt": TEST, "train.txt": OTHERS})
    older()
    for entry in dataset.read_manifest(engine, store, reviews.SYSTEM, "v1").entries:
        store.delete(dataset.object_key(entry.sha256))
    new = "".join(f"s{n}\t새로 나온 영화평 {n}번\t{n % 2}\n" for n in range(8))
    found = cleaned("v2", {"test.txt": new, "train.txt": "".join(f"a{n}\t{said}\t0\n" for n, said in enumerate(HELD_OUT)) + OTHERS})
    assert {found[f"a{n}"] for n in range(6)} == {"in_holdout"} and "could not be carried over" in caplog.text


def test_splits_by_hash_are_carried_over_too(cleaned: Callable[..., dict[str, str]], older: Callable[[], None], engine: Engine) -> None:
    """Without held-out files the ledger alone says what is held out."""
    section = SECTION.model_copy(update={"holdout_files": (), "holdout_fraction": 0.4})
    before = cleaned("v1", {"train.txt": OTHERS}, section)
    older()
    quoted = "".join(f"n{n}\t“다른 영화평 {n}번\u200b 보고 왔다!”\t{n % 2}\n" for n in range(30))
    assert cleaned("v2", {"train.txt": quoted}, section) == before
    assert len(set(before.values())) == 3


def test_an_unseen_comment_is_empty_text_also_when_it_is_held_out() -> None:
    section = load_config(HateSpeechConfig, "hate_speech", load_settings().configs).dataset
    rows = [{"text": said, "holdout": held} for said in UNSEEN for held in (True, False)]
    with SparkEngine().session() as session:
        values = [(row["text"], row["holdout"], "app", number, False, None, 1, number, "clean") for number, row in enumerate(rows)] + [
            ("보이는 글입니다", True, "app", 999, False, None, 1, 999, "clean")
        ]
        frame = session.createDataFrame(
            values,
            "text string, holdout boolean, comment string, number long, deleted boolean, problem string, file int, line long, "
            "labels string",
        )
        found = comments.judge(frame, section).select("number", "reason").collect()
    assert {row["number"]: row["reason"] for row in found} == {**dict.fromkeys(range(len(rows)), "empty_text"), 999: None}
