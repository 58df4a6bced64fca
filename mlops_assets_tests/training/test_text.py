"""Tokenizers are learned alike everywhere and keep Hangul whole; batches are as wide as they must be."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlops_assets.training import text

REVIEWS = [
    f"{adverb} {adjective} 영화{particle} {ending}"
    for adverb in ("정말", "아주", "너무", "별로")
    for adjective in ("재미있는", "지루한", "감동적인", "뻔한")
    for particle in ("였다", "네요", "입니다")
    for ending in ("ㅋㅋㅋ", "...", "추천!", "비추 ㅠㅠ", "10점 BEST")
]


def test_the_same_texts_give_the_same_vocabulary_in_any_order_and_process() -> None:
    shuffled = random.Random(1).sample(REVIEWS, len(REVIEWS))
    code = (
        "import json, sys; from mlops_assets.training import text;"
        "print(json.dumps(text.learn_tokenizer(json.loads(sys.stdin.read()), 150).get_vocab(), sort_keys=True))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True, timeout=120
        ).stdout
        for texts in (REVIEWS, shuffled, REVIEWS)
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    assert 100 <= len(json.loads(outputs[0])) <= 150


def test_tokens_are_hangul_syllables_and_case_does_not_matter() -> None:
    tokenizer = text.learn_tokenizer(REVIEWS, 400)
    assert tokenizer.encode("영화였다").tokens[1] == "영화였다"
    assert tokenizer.encode("best").ids == tokenizer.encode("BEST").ids
    assert tokenizer.encode("정말").tokens == ["[CLS]", "정말", "[SEP]"]
    assert tokenizer.encode("정말").ids == tokenizer.encode("정말").ids, "decomposed Hangul is the same text"


def test_a_long_review_without_spaces_is_not_one_unknown_word() -> None:
    tokens = text.learn_tokenizer(REVIEWS, 400).encode("영화" * 70).tokens
    assert "[UNK]" not in tokens and len(tokens) > 50


def test_a_vocabulary_file_is_read_with_its_own_numbers(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*text.SPECIAL, "영화", "##였다", "A"]) + "\n", encoding="utf-8")
    tokenizer = text.read_vocabulary(path)
    assert tokenizer.get_vocab_size() == 8
    assert tokenizer.encode("영화였다 A a").ids == [2, 5, 6, 7, 1, 3]


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("id\tdocument\tlabel\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no \[PAD\], \[UNK\]"):
        text.read_vocabulary(path)


def test_a_batch_is_as_wide_as_its_longest_text() -> None:
    tokenizer = text.learn_tokenizer(REVIEWS, 400)
    texts = ["정말", "정말 재미있는 영화였다 추천!", "너무 지루한 영화네요 비추 ㅠㅠ " * 20]
    examples = text.TextExamples(tokenizer, texts, [0, 1, 0], 30)
    assert examples.lengths.tolist()[0] == 3 and examples.lengths.tolist()[2] == 30
    short = examples.batch([0, 1])
    assert short["input_ids"].shape[1] == -(-int(examples.lengths[1]) // text.WIDTH_STEP) * text.WIDTH_STEP
    assert examples.batch([2, 0])["input_ids"].shape == (2, 30), "never wider than max_length"
    assert short["labels"].tolist() == [0, 1]
    for row, ids, mask in zip((0, 1), short["input_ids"], short["attention_mask"], strict=True):
        kept = ids[mask.bool()].tolist()
        assert kept == tokenizer.encode(texts[row]).ids
        assert np.all(ids[~mask.bool()].numpy() == tokenizer.token_to_id("[PAD]"))


def test_texts_and_labels_must_pair_up() -> None:
    with pytest.raises(ValueError, match="1 texts, but 2 labels"):
        text.TextExamples(text.learn_tokenizer(REVIEWS, 100), ["정말"], [0, 1], 16)
