"""Cleaning of texts: golden rows through the embedded engine and a JVM Spark by setting alone, and the masks against plain Python."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.characters import is_blank
from mlops_assets.ingest.cleaning import REASONS, CleaningRules, account, clean_texts, cleaned, masked
from mlops_assets.ingest.masking import mask
from mlops_assets.ingest.texts import group_of
from mlops_assets.resources.spark import SparkResource
from mlops_assets.settings import REPOSITORY, load_settings, process_environment

GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "golden_texts.jsonl").read_text(encoding="utf-8").splitlines()]
RULES = CleaningRules(max_characters=45)
SCHEMA = "id long, text string, labels string"
ENGINES = [
    pytest.param(None, id="embedded"),
    pytest.param(
        "local[*]", id="jvm", marks=pytest.mark.skipif(shutil.which("java") is None, reason="no Java: apt-get install default-jre-headless")
    ),
]


def invented(count: int) -> list[str]:
    """Texts full of what the masks look for, whole and broken, with what may stand around it."""
    pieces = [
        *("010-1234-5678", "01012345678", "+82-10-1234-5678", "(02)123-4567", "031.123.4567", "010", "1234", "+82"),
        *("a@b.kr", "x.y+z@sub.example.co.kr", "@", "a@", "900101-1234567", "9001011234567", "1234-5678-9012-3456"),
        *("110-123-456789", "352-0123-4567-89", "12345678901", "2021-12-25", "1,234", "12:30", "3.14", "-", ".", "(", ")"),
        *("은", "로", "입니다", "번호", "ㅋㅋ", "가나", "😀", "𠮷", "é", "$1", "\\1", "[PHONE]"),
    ]
    chance = random.Random(7)
    return ["".join(chance.choice(pieces) + chance.choice(["", "", " ", "-"]) for _ in range(chance.randint(1, 7))) for _ in range(count)]


def specks() -> list[str]:
    """Every character of which somebody may think that it is not seen, and some that are; alone, twice, and between spaces."""
    kinds = {"Cc", "Cf", "Zs", "Zl", "Zp", "Lm", "Sk"}
    odd = [chr(n) for n in range(1, 0xE01F0) if n < 0xD800 or n > 0xDFFF if unicodedata.category(chr(n)) in kinds or is_blank(chr(n))]
    return [
        form.format(c)
        for c in [*odd[:: max(1, len(odd) // 900)], *"가A1!😀\u200d\u3164\u2800\ufe0f\U000e0041\ufffc"]
        for form in ("{0}", "{0}{0} {0}")
    ]


def unseen(session: Any) -> list[bool]:
    """Of each speck, whether the engine says that nothing is left of it."""
    rows = session.createDataFrame(list(enumerate(specks())), "id long, text string")
    judged_rows = clean_texts(rows, RULES, order=["id"], labels=None).select("id", "reason").collect()
    return [row["reason"] == "empty_text" for row in sorted(judged_rows)]


def outcome() -> dict[str, Any]:
    """What the engine of the settings makes of the golden rows and the invented texts."""
    rows = [(row["id"], row["text"], row["labels"]) for row in GOLDEN]
    with SparkResource.of(load_settings()).engine().session() as session:
        done = clean_texts(session.createDataFrame(rows, SCHEMA), RULES, order=["id"])
        again = cleaned(session.createDataFrame([(row["id"], row["cleaned"], None) for row in GOLDEN], SCHEMA), "text", RULES)
        wild = session.createDataFrame(list(enumerate(invented(1_500))), "id long, text string")
        return {
            "rows": sorted((row.asDict() for row in done.collect()), key=lambda row: row["id"]),
            "account": account(done),
            "again": [row["text"] for row in sorted(again.collect(), key=lambda row: row["id"])],
            "unseen": unseen(session),
            "masked": [row["masked"] for row in sorted(wild.select("id", masked(wild["text"]).alias("masked")).collect())],
        }


@pytest.mark.parametrize("remote", ENGINES)
def test_the_golden_rows_are_cleaned_alike_on_each_engine(remote: str | None) -> None:
    """In a process of its own: pyspark cannot hold sessions of both kinds in one."""
    code = "import json; from mlops_assets_tests.ingest.test_cleaning import outcome; print(json.dumps(outcome()))"
    own = {name: value for name, value in process_environment().items() if not name.startswith("SPARK_")}  # an earlier session's, here
    environment = {**own, **({"MLOPS_SPARK_REMOTE": remote} if remote else {})}
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["rows"] == [{"id": r["id"], "text": r["cleaned"], "labels": r["labels"], "reason": r["reason"]} for r in GOLDEN]
    assert sum(found["account"].values()) == len(GOLDEN), "rows in = accepted + quarantined"
    assert found["account"] == dict(Counter(row["reason"] or "accepted" for row in GOLDEN))
    texts = invented(1_500)
    assert found["masked"] == [mask(text) for text in texts], "Spark masks as Python does"
    assert sum(mask(text) != text for text in texts) > 1_000, "a control: the texts hold what is masked"
    assert found["unseen"] == [is_blank(speck) for speck in specks()], "nothing is left of what nobody sees, and of nothing else"
    assert 500 < sum(found["unseen"]) < len(found["unseen"])
    torn = [row["text"] for row in GOLDEN if row["text"] and group_of(mask(row["text"])) != group_of(row["cleaned"])]
    assert torn == [], "cleaning leaves a text in its group"
    changed = [row["cleaned"] for row, text in zip(GOLDEN, found["again"], strict=True) if text != row["cleaned"]]
    assert changed == ["<b>굵게</b> &amp; 그대로"], "what is clean stays (an entity of an entity is decoded once at a time)"


def test_every_reason_has_a_golden_row() -> None:
    assert {row["reason"] for row in GOLDEN} == {None, *REASONS}


def test_what_hides_behind_other_characters_is_masked_before_it_is_stored() -> None:
    hidden = [row for row in GOLDEN if row["text"] and ("０" in row["text"] or "\u200b" in row["text"]) and "[PHONE]" in row["cleaned"]]
    assert len(hidden) >= 2 and all("[PHONE]" in mask(row["text"]) for row in hidden)


def test_rules_are_checked() -> None:
    bad: dict[str, Any] = {"max_repeats": 0}
    with pytest.raises(ValueError, match="max_repeats"):
        CleaningRules(**bad)
