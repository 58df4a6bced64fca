"""Rows of texts, and texts as tensors: WordPiece tokenizers, and a data set that is tokenized once and padded by the batch.

Belongs here: what every text system shares. Does not belong here: labels' meaning, models, files of a landing. The tokenizer that is
made here goes into the bundle as it is, so that the server cuts texts exactly as training did.
"""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_assets.settings import canonical

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from mlops_assets.lifecycle.system import CleanedTable

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: Reviews without a single space are common: a "word" may be as long as a review.
LONGEST_WORD = 200
#: Widths are rounded up to this: few shapes, so that the kernels made for one are used again, and little padding.
WIDTH_STEP = 4
ENCODE_CHUNK = 10_000
GOLDEN_SAMPLES = 16
#: Upper ends (characters) of the slices by length.
LENGTH_SLICES = (10, 20, 40, 80)


@dataclass(frozen=True)
class Rows:
    """The rows of one split, sorted by id. `labels`: a class each, or a tuple of several."""

    ids: list[str]
    texts: list[str]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, rate: float) -> Rows:
        """About `rate` of the rows, chosen by id: the same row is in or out in every version."""
        if rate >= 1:
            return self
        limit = int(rate * 2**64)
        kept = [i for i, name in enumerate(self.ids) if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < limit]
        return Rows([self.ids[i] for i in kept], [self.texts[i] for i in kept], [self.labels[i] for i in kept])

    @property
    def sha256(self) -> str:
        """Of the content, in whatever order the cleaning engine wrote it."""
        digest = hashlib.sha256()
        for row in zip(self.ids, self.texts, self.labels, strict=True):
            digest.update(canonical(row).encode() + b"\n")
        return digest.hexdigest()


def read_rows(table: CleanedTable, split: str, *, text: str, label: str) -> Rows:
    """The rows of `split` from the columns `id`, `text` and `label`."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    found = ds.dataset(table.folder, format="parquet").to_table(columns=["id", text, label], filter=pc.field("split") == split)
    found = found.sort_by([("id", "ascending"), (text, "ascending")])
    return Rows(found["id"].to_pylist(), found[text].to_pylist(), found[label].to_pylist())


def golden(rows: Rows) -> Iterator[str]:
    """Texts of every length, the same ones for a table whenever it is asked."""
    texts = sorted(set(rows.texts), key=lambda text: (len(text), text))
    step = max(1, len(texts) // GOLDEN_SAMPLES)
    yield from texts[::step][:GOLDEN_SAMPLES]


def by_length(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows by length in characters: slice name -> mask."""
    lengths = np.array([len(text) for text in texts])
    ends = [0, *LENGTH_SLICES]
    masks = {f"{low + 1}-{high} characters": (lengths > low) & (lengths <= high) for low, high in zip(ends, ends[1:], strict=False)}
    return masks | {f"over {LENGTH_SLICES[-1]} characters": lengths > LENGTH_SLICES[-1]}


def learn_tokenizer(texts: Sequence[str], size: int, *, lowercase: bool = True) -> Tokenizer:
    """A WordPiece tokenizer of at most `size` tokens from the texts. The same texts in any order give the same vocabulary.

    The library numbers the `##x` of its starting alphabet in the order of a hash map, breaks ties by number, and cuts a large alphabet
    at a tie by chance, so that two trainings on the same texts differ. Choosing and naming that alphabet takes the chance out of it.
    """
    from tokenizers.models import WordPiece
    from tokenizers.trainers import WordPieceTrainer

    draft = _pipeline(WordPiece(unk_token="[UNK]"), lowercase)
    letters = _alphabet((draft.normalizer.normalize_str(text) for text in texts), max(10, size // 4))
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in letters if not _stands_alone(letter))],
        show_progress=False,
    )
    draft.train_from_iterator(iter(texts), trainer)
    # Only the vocabulary is kept: in the draft every `##x` is a special token.
    return wordpiece([token for token, _ in sorted(draft.get_vocab().items(), key=lambda item: item[1])], lowercase=lowercase)


def _alphabet(texts: Iterable[str], limit: int) -> list[str]:
    """The letters of the vocabulary, sorted: those that occur more than once, the most frequent `limit` of them."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    kept = sorted((letter for letter, count in counts.items() if count > 1 and not letter.isspace()), key=lambda c: (-counts[c], c))
    return sorted(kept[:limit])


def _stands_alone(letter: str) -> bool:
    """Whether the pre-tokenizer makes a word of its own of it: punctuation never is inside a word."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def wordpiece(vocabulary: Sequence[str], *, lowercase: bool) -> Tokenizer:
    """The tokenizer of a WordPiece vocabulary (line number = id). Raises ValueError when a special token is missing."""
    from tokenizers.models import WordPiece
    from tokenizers.processors import TemplateProcessing

    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise ValueError(f"the vocabulary has no {', '.join(missing)}: it is not a BERT WordPiece vocabulary (one token a line)")
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = _pipeline(WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD), lowercase)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return tokenizer


def _pipeline(model: Any, lowercase: bool) -> Tokenizer:
    """`model` behind the normalization that all our vocabularies share. Accents stay: stripping them takes Hangul apart into letters."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False, handle_chinese_chars=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def read_vocabulary(path: Path, *, lowercase: bool = False) -> Tokenizer:
    """The tokenizer of a `vocab.txt`. KcBERT's keeps case."""
    return wordpiece(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), lowercase=lowercase)


def encode(tokenizer: Tokenizer, texts: Iterable[str], max_length: int) -> Iterator[list[int]]:
    """Token ids of each text, [CLS] and [SEP] included, cut at `max_length`."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_length)
    pending: list[str] = []
    for text in texts:
        pending.append(text)
        if len(pending) == ENCODE_CHUNK:
            yield from (e.ids for e in tokenizer.encode_batch_fast(pending))
            pending = []
    yield from (e.ids for e in tokenizer.encode_batch_fast(pending))


class TextExamples:
    """Tokenized texts with labels, as one flat array: 4 bytes a token, and a batch is a slice and a mask.

    Attributes:
        lengths: tokens of each row.
        labels: int64 [rows], or of several labels a row float32 [rows, classes].
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[int] | np.ndarray, max_length: int) -> None:
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts, but {len(labels)} labels")
        rows = list(encode(tokenizer, texts, max_length))
        self.lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.float32 if np.ndim(labels) == 2 else np.int64)
        self._flat = np.fromiter((i for ids in rows for i in ids), dtype=np.int32, count=int(self.lengths.sum()))
        self._ends = np.cumsum(self.lengths)
        self._pad = tokenizer.token_to_id("[PAD]") or 0
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (int64 [rows, width]) and `labels`; as wide as the longest row, rounded up to WIDTH_STEP."""
        import torch

        lengths = self.lengths[rows]
        width = min(-(-int(lengths.max()) // WIDTH_STEP) * WIDTH_STEP, self._max_length)
        mask = np.arange(width) < lengths[:, None]
        ids = np.full(mask.shape, self._pad, np.int64)
        ends = self._ends[rows]
        ids[mask] = np.concatenate([self._flat[end - length : end] for end, length in zip(ends, lengths, strict=True)])
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(self.labels[rows]),
        }
