"""Cleaning of texts as Spark DataFrames, for every system whose rows are texts: one form, masks, duplicates, language, length.

Each row leaves with a column `reason`: null when it is accepted, else one code of REASONS. Only DataFrame functions and the part of the
regular-expression language that Python, Java and Rust share: the embedded engine and a JVM Spark give equal rows. NFC is not among them:
it is done while the bytes stream. Belongs here: rules that any text is cleaned by. Does not belong here: files, splits, labels' names (the
systems' `data.py`), how Spark is started (`resources/spark.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pydantic import Field

from mlops_assets.characters import INVISIBLE, JOINER, SPACE
from mlops_assets.ingest.masking import MASKS
from mlops_assets.settings import Strict

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

#: Why a row is turned away -> what that means, for the metadata. In the order in which they are looked for.
REASONS: Final = {
    "empty_text": "nothing is left of the text",
    "too_long": "longer than max_characters",
    "too_short": "shorter than min_characters",
    "no_letters": "no letter of any script: emoji, digits, punctuation alone",
    "not_korean": "less than min_hangul_share of its letters are Hangul",
    "conflicting_labels": "the same text with different labels",
    "duplicate_text": "an earlier row has the same text",
}


class CleaningRules(Strict):
    """Section `cleaning` of a configuration: what the rules are measured by."""

    max_repeats: int = Field(default=3, ge=1)
    """ㅋㅋㅋㅋㅋㅋ becomes so many."""
    repeated: str = "ㅋㅎㅠㅜㅇㄱㄷㅂㅅㅉㅡㄴ아하호흐엉ㅏㅑㅗㅔ!?.,~^;-=_*#♥❤♡★☆…"
    """The characters of which that is true. A list, because the engines share no way to say "the same character again"."""
    min_characters: int = Field(default=2, ge=1)
    max_characters: int = Field(default=1_000, ge=1)
    """Code points of the cleaned text."""
    min_hangul_share: float = Field(default=0.3, ge=0, le=1)
    """Of the letters of all scripts, masks and addresses not counted."""


_INVISIBLE: Final = f"[{INVISIBLE}]+"
_JOINER_IN_TEXT: Final = f"([0-9A-Za-z가-힣]){JOINER}+"
_SPACE: Final = f"[{SPACE}]+"
_ENTITIES: Final = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&apos;", "'"), ("&nbsp;", " "), ("&amp;", "&"))
_URL: Final = r"(https?://|www\.)[A-Za-z0-9./?&=#%_:;~+!,@-]+"
URL: Final = "[URL]"
_ADDRESS: Final = re.compile(_URL)
#: Full width digits and marks count as plain ones: a number is a number, and the masks know only these.
_WIDE: Final = "０１２３４５６７８９－．＠＋（）"
_NARROW: Final = "0123456789-.@+()"
_SUSPICIOUS: Final = "@|[0-9][-. ]?[0-9][-. )]?[0-9]"
_TOKENS: Final = "\\[(URL|" + "|".join(sorted({replacement[1:-1] for _, _, replacement in MASKS})) + ")\\]"
_HANGUL: Final = "가-힣ㄱ-ㅎㅏ-ㅣ\u1100-\u115e\u1161-\u11ff"
#: Written out: the engines know different versions of Unicode.
_LETTERS: Final = (
    f"A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff\u0590-\u05ff\u0600-\u06ff\u0900-\u097f\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff{_HANGUL}"
)


def cleaned(frame: DataFrame, column: str, rules: CleaningRules) -> DataFrame:
    """`frame` with the texts of `column` in the one form that is compared and trained on: plain digits, no invisible characters, entities,
    addresses, spaces and repeats, then the masks again: what hid behind a zero-width or full-width character is found now.

    Step by step over the column's name: expressions that hold each other would double with every condition.
    """
    from pyspark.sql import functions as F

    text = F.col(column)
    plain = F.regexp_replace(F.translate(F.coalesce(text, F.lit("")), _WIDE, _NARROW), _INVISIBLE, "")
    rows = frame.withColumn(column, F.regexp_replace(plain, _JOINER_IN_TEXT, "$1"))
    decoded = text
    for entity, character in _ENTITIES:
        decoded = F.replace(decoded, F.lit(entity), F.lit(character))
    rows = rows.withColumn(column, F.when(F.contains(text, F.lit("&")), decoded).otherwise(text))
    rows = rows.withColumn(column, F.when(text.rlike("://|www\\."), F.regexp_replace(text, _URL, URL)).otherwise(text))
    rows = rows.withColumn(column, F.trim(F.regexp_replace(text, _SPACE, " ")))
    # What joins nothing is nothing: `characters.is_blank` says the same.
    rows = rows.withColumn(column, F.when(text.rlike(f"[^ {JOINER}]"), text).otherwise(F.lit("")))
    for start in range(0, len(rules.repeated), 16):
        rows = rows.withColumn(column, _fewer(text, rules.repeated[start : start + 16], rules.max_repeats))
    return rows.withColumn(column, masked(text))


def without_urls(text: str) -> str:
    """`text` with its addresses as `cleaned` has them."""
    return _ADDRESS.sub(URL, text)


def masked(text: Column) -> Column:
    """`text` as `masking.mask` has it. Masking again changes nothing."""
    from pyspark.sql import functions as F

    result = text
    for _, pattern, replacement in MASKS:
        result = F.regexp_replace(result, pattern, replacement)
    return F.when(text.rlike(_SUSPICIOUS), result).otherwise(text)


def _fewer(text: Column, characters: str, limit: int) -> Column:
    """Repeats of the characters, cut to the limit."""
    from pyspark.sql import functions as F

    runs = [(f"{re.escape(character)}{{{limit + 1},}}", character * limit) for character in characters]
    result = text
    for run, fewer in runs:
        result = F.regexp_replace(result, run, fewer)
    return F.when(text.rlike("|".join(run for run, _ in runs)), result).otherwise(text)


def judged(text: Column, rules: CleaningRules) -> Column:
    """The reason for which a cleaned text is turned away, by itself; null for none."""
    from pyspark.sql import functions as F

    said = F.regexp_replace(text, _TOKENS, "")
    letters = F.length(F.regexp_replace(said, f"[^{_LETTERS}]+", ""))
    hangul = F.length(F.regexp_replace(said, f"[^{_HANGUL}]+", ""))
    length = F.length(text)
    return (
        F.when(length == 0, "empty_text")
        .when(length > rules.max_characters, "too_long")
        .when(length < rules.min_characters, "too_short")
        .when(letters == 0, "no_letters")
        .when(hangul < letters * F.lit(rules.min_hangul_share), "not_korean")
    )


def clean_texts(
    frame: DataFrame, rules: CleaningRules, *, order: Sequence[str], text: str = "text", labels: str | None = "labels"
) -> DataFrame:
    """`frame` with `text` cleaned and a column `reason`, null for the rows that are accepted. Every row comes out, exactly once.

    Args:
        order: columns that order the rows, in all uniquely: of rows with the same text the first is kept. Nulls come first.
        labels: a column of strings, the same for the same labels, null where a row has none; of one text with different labels every
            labelled row is turned away. None: there are no labels.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    rows = cleaned(frame, text, rules)
    rows = rows.withColumn("reason", judged(F.col(text), rules))
    same = Window.partitionBy(text)
    reason = F.col("reason")
    if labels is not None:
        said = F.col(labels)
        rows = rows.withColumn("_low", F.min(said).over(same)).withColumn("_high", F.max(said).over(same))
        torn = reason.isNull() & said.isNotNull() & (F.col("_low") != F.col("_high"))
        rows = rows.withColumn("reason", F.when(torn, "conflicting_labels").otherwise(reason)).drop("_low", "_high")
    alive = same.orderBy(reason.isNotNull(), *[F.col(name).asc_nulls_first() for name in order])
    rows = rows.withColumn("_nth", F.row_number().over(alive))
    return rows.withColumn("reason", F.when(reason.isNull() & (F.col("_nth") > 1), "duplicate_text").otherwise(reason)).drop("_nth")


def account(judged_rows: DataFrame) -> dict[str, int]:
    """Reason -> rows; accepted rows under "accepted". In sum, the rows that came in."""
    from pyspark.sql import functions as F

    counted = judged_rows.groupBy(F.coalesce(F.col("reason"), F.lit("accepted")).alias("reason")).agg(F.count(F.lit(1)).alias("rows"))
    return {row["reason"]: int(row["rows"]) for row in counted.collect()}
