"""The predictors of texts: evaluation, server, CLI and Python callers all run a bundle through them. A network reads tokens, a linear model
n-grams; limits, calibration, labels and answers are the same.

Belongs here: tokenizing, micro-batches, ONNX Runtime, weights of n-grams, calibration, limits of the input. Does not belong here: HTTP,
which bundle is served (`serving/models.py`), anything heavier than onnxruntime, tokenizers and numpy.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_assets.characters import is_blank
from mlops_assets.kinds.text import ngrams
from mlops_assets.kinds.text.config import LINEAR_FILE, LONGEST_NGRAM
from mlops_assets.lifecycle.bundle import BadBundle

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

ONE_LABEL, SEVERAL_LABELS = KINDS = ("text-classification", "text-labels")
#: Between the labels of a text that has several, where they stand in one line.
JOINT = ", "
#: Longest text that is accepted. Far over what any model reads, short enough that tokenizing it takes milliseconds.
MAX_CHARACTERS = 10_000
#: Most texts of one HTTP request, and most bytes of its body.
MAX_TEXTS = 1_000
MAX_BODY_BYTES = 4 * 1024**2
#: Texts whose n-grams are counted together.
TEXTS_AT_ONCE = 500
#: A micro-batch holds at most this many tokens: enough to keep the processor's units busy, few enough to stay in its cache.
BATCH_TOKENS = 128


class BadInput(ValueError):
    """An input that is refused. `code` is stable; `field` and `limit` say where and what."""

    def __init__(self, code: str, message: str, message_ko: str, *, field: str, limit: int | None = None, fix: str) -> None:
        super().__init__(message)
        self.code, self.message, self.message_ko, self.field, self.limit, self.fix = code, message, message_ko, field, limit, fix


def check_texts(texts: Sequence[Any], max_texts: int | None = None) -> None:
    """Raises BadInput for the first thing that breaks a limit: `too_many`, `not_text`, `empty_text`, `too_long`."""
    if max_texts is not None and len(texts) > max_texts:
        raise BadInput(
            "too_many",
            f"{len(texts)} inputs in one request, at most {max_texts}",
            f"한 번에 {max_texts}개까지 보낼 수 있습니다. ({len(texts)}개를 받았습니다.)",
            field="inputs",
            limit=max_texts,
            fix=f"Send {max_texts} inputs or fewer per request.",
        )
    for i, text in enumerate(texts):
        field = f"inputs[{i}]"
        if not isinstance(text, str):
            message = f"{field} is {type(text).__name__}, not text"
            raise BadInput("not_text", message, f"{field}: 문자열이 아닙니다.", field=field, fix="Send a list of strings.")
        if len(text) > MAX_CHARACTERS:
            raise BadInput(
                "too_long",
                f"{field} has {len(text)} characters, at most {MAX_CHARACTERS}",
                f"{field}: {MAX_CHARACTERS}자까지 입력할 수 있습니다. ({len(text)}자를 받았습니다.)",
                field=field,
                limit=MAX_CHARACTERS,
                fix="Shorten the text or split it into several.",
            )
        if is_blank(text):
            raise BadInput(
                "empty_text",
                f"{field} is empty: nothing of it is seen",
                f"{field}: 내용이 비어 있습니다.",
                field=field,
                fix="Leave empty texts out.",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a lone surrogate: legal in JSON as an escape, but no text
            message = f"{field} is not valid Unicode at character {error.start}"
            raise BadInput("not_text", message, f"{field}: 올바른 유니코드가 아닙니다.", field=field, fix="Send valid Unicode.") from None


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


@dataclass(frozen=True)
class LabelRule:
    """Which labels a text of several has.

    Attributes:
        thresholds: a label with at least so much probability is one of them; what stands in the fallback's place is not read.
        fallback: number of the label that stands alone: said when there is no other, never beside another.
        cut: a text has another label when, and only when, 1 - the fallback's probability reaches it; then the label nearest to its
            threshold is said where none reaches its own. None: thresholds alone decide, as in bundles of before there was a cut.
    """

    thresholds: tuple[float, ...]
    fallback: int
    cut: float | None = None

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """bool [rows, labels] for probabilities [rows, labels]: at least one label a row."""
        thresholds = np.asarray(self.thresholds)
        said = probabilities >= thresholds
        said[:, self.fallback] = False
        if self.cut is not None:
            nearness = probabilities / thresholds
            nearness[:, self.fallback] = -1.0
            none = ~said.any(axis=1)
            said[none, nearness[none].argmax(axis=1)] = True
            said[self.suspicion(probabilities) < self.cut] = False
        said[:, self.fallback] = ~said.any(axis=1)
        return said

    def suspicion(self, probabilities: np.ndarray) -> np.ndarray:
        """1 - the fallback's probability, by row: what `cut` is compared with."""
        return np.asarray(1 - probabilities[:, self.fallback])


class TextPredictor(ABC):
    """A loaded bundle of kind `text-classification` or `text-labels`. Safe to call from several threads; one caller at a time is fastest.

    Attributes:
        labels: class names in the order of the logits.
        temperature: calibration; logits are divided by it before softmax (or, of several labels, the sigmoid).
        rule: of several labels: which a text has; None: it has exactly one.
    """

    max_body_bytes = MAX_BODY_BYTES
    one_at_a_time = False

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.labels: list[str] = list(spec["labels"])
        self.kind: str = spec["kind"]
        self.rule = _label_rule(spec) if self.kind == SEVERAL_LABELS else None
        self.system: str = spec["system"]
        self.temperature = float(spec.get("calibration", {}).get("temperature", 1.0))

    @abstractmethod
    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), len(labels)], in order, before calibration."""

    def check(self, texts: Sequence[Any]) -> None:
        """The limits of one request. Raises BadInput."""
        check_texts(texts, MAX_TEXTS)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), len(labels)], calibrated. They sum to 1 where a text has exactly one label."""
        logits = self.predict_logits(texts) / self.temperature
        return softmax(logits) if self.rule is None else sigmoid(logits)

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One `{"text", "label", "confidence", "probs"}` per text, in order.

        Where a text has several labels they are the list `labels` beside it; `label` is then all of them in one line, and `confidence` that
        of the least sure one (of the label that stands alone: that it has none of the others).

        Raises:
            BadInput (a ValueError): a text is no text, empty or too long.
        """
        check_texts(texts)
        probabilities = self.probabilities(texts)
        said = np.eye(len(self.labels), dtype=bool)[probabilities.argmax(axis=1)] if self.rule is None else self.rule(probabilities)
        return [self._answer(*one) for one in zip(texts, probabilities.tolist(), said, strict=True)]

    def _answer(self, text: str, row: list[float], said: np.ndarray) -> dict[str, Any]:
        numbers = np.flatnonzero(said).tolist()
        labels = [self.labels[number] for number in numbers]
        probs = dict(zip(self.labels, row, strict=True))
        if self.rule is None:
            return {"text": text, "label": labels[0], "confidence": row[numbers[0]], "probs": probs}
        none_else = 1 - max(p for number, p in enumerate(row) if number != self.rule.fallback)
        if self.rule.cut is not None:  # the rule asked the fallback itself
            none_else = row[self.rule.fallback]
        confidence = none_else if numbers == [self.rule.fallback] else min(row[number] for number in numbers)
        return {"text": text, "label": JOINT.join(labels), "labels": labels, "confidence": confidence, "probs": probs}

    def canonical_label(self, truth: Any) -> str | None:
        """`truth` (a label, or a list of several) as `label` says it; None: it is none of ours."""
        given = truth.split(JOINT) if self.rule is not None and isinstance(truth, str) else truth if isinstance(truth, list) else [truth]
        if not given or any(label not in self.labels for label in given) or (self.rule is None and len(given) > 1):
            return None
        if self.rule is not None and len(given) > 1 and self.labels[self.rule.fallback] in given:
            return None
        return JOINT.join(label for label in self.labels if label in given)


class NetworkPredictor(TextPredictor):
    """A network in ONNX that reads tokens (`tokenizer.json`, `model.onnx`).

    Attributes:
        max_length: tokens that the model reads; what is longer is cut off.
    """

    def __init__(self, session: InferenceSession, tokenizer: Tokenizer, spec: Mapping[str, Any]) -> None:
        """`tokenizer` truncates to max_length and does not pad; it may be shared by several predictors."""
        super().__init__(spec)
        self.max_length = int(spec["max_length"])
        self._session = session
        self._tokenizer = tokenizer
        self._pad = tokenizer.token_to_id("[PAD]") or 0

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), len(labels)], in order, before calibration."""
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts))]
        logits = np.empty((len(encoded), len(self.labels)), np.float32)
        for rows in _micro_batches([len(ids) for ids in encoded]):
            logits[rows] = self._run([encoded[i] for i in rows])
        return logits

    def feeds(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The texts as the model takes them, in micro-batches of like length: `input_ids` and `attention_mask`, int64 [rows, tokens]."""
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts))]
        return [self._feed([encoded[i] for i in rows]) for rows in _micro_batches([len(ids) for ids in encoded])]

    def _feed(self, encoded: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        longest = max(len(ids) for ids in encoded)
        ids = np.full((len(encoded), longest), self._pad, np.int64)
        mask = np.zeros((len(encoded), longest), np.int64)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _run(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits of one micro-batch of token ids."""
        return np.asarray(self._session.run(["logits"], self._feed(encoded))[0])


class LinearPredictor(TextPredictor):
    """A linear model of character n-grams (`linear.safetensors`): each text by itself, without ONNX Runtime.

    A text's n-grams count 1 + log(how often) times their rarity, brought to length 1; each label adds up its weights of them.
    """

    def __init__(self, tables: Mapping[str, np.ndarray], spec: Mapping[str, Any]) -> None:
        """`tables`: `numbers` [n-grams], rising; their `rarity` [n-grams] and `weights` [n-grams, columns]; `bias` [columns]: one
        column for two labels that exclude each other."""
        super().__init__(spec)
        self._longest = int(spec["ngrams"]["longest"])
        self._numbers, self._rarity, self._weights = (tables[name] for name in ("numbers", "rarity", "weights"))
        self._bias = tables["bias"]

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        scores = np.empty((len(texts), len(self._bias)), np.float32)
        for at in range(0, len(texts), TEXTS_AT_ONCE):
            scores[at : at + TEXTS_AT_ONCE] = self._scores(texts[at : at + TEXTS_AT_ONCE])
        return scores if scores.shape[1] == len(self.labels) else np.concatenate([-scores / 2, scores / 2], axis=1)

    def _scores(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, columns]."""
        found = ngrams.count(texts, self._longest)
        places = np.minimum(np.searchsorted(self._numbers, found.numbers), len(self._numbers) - 1)
        known = self._numbers[places] == found.numbers
        values = (1 + np.log(found.counts)) * np.where(known, self._rarity[places], 0).astype(np.float32)
        norms = np.sqrt(_summed(values**2, found.ends))
        sums = _summed(values[:, None] * self._weights[places].astype(np.float32), found.ends)
        return np.asarray(sums / np.maximum(norms, 1e-9)[:, None] + self._bias, np.float32)


def _summed(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The sums of values[ends[i]:ends[i + 1]], each by itself: what stands beside it changes nothing."""
    return np.stack([values[start:end].sum(axis=0) for start, end in itertools.pairwise(ends.tolist())])


def _micro_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers in batches of like length, BATCH_TOKENS at most with padding. BERT's graph computes no padding, others may."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def open_session(model: Path, threads: int) -> InferenceSession:
    """An ONNX Runtime session on the processor.

    Threads are explicit and do not spin: two engines that spin on the same cores slow each other a hundredfold. Large int8 weights are
    mapped from the file, which must not be changed in place while the session lives.

    Raises:
        ValueError: not an ONNX file.
    """
    import onnxruntime as ort

    from mlops_assets.kinds.mapped import graph_with_mapped_weights

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent.resolve()))
    options.enable_mem_pattern = False  # plans memory for one shape; ours differ with every batch
    options.enable_cpu_mem_arena = False  # keeps the largest batch's memory for ever, per model
    options.log_severity_level = 3
    return ort.InferenceSession(graph_with_mapped_weights(model), sess_options=options, providers=["CPUExecutionProvider"])


def load_text_predictor(folder: Path, threads: int) -> TextPredictor:
    """The predictor of a bundle folder: `bundle.json` and a network's files or a linear model's. Its digest is the caller's to check.

    Raises:
        ValueError: another kind or format of bundle, or a model whose inputs and outputs are not those of one.
        BadBundle: `wrong_labels`: not as many labels as logits.
    """
    spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    if spec.get("format") != 1 or spec.get("kind") not in KINDS:
        found = f"format {spec.get('format')!r}, kind {spec.get('kind')!r}"
        raise ValueError(f"the bundle has {found}: this server reads format 1, {' or '.join(KINDS)}")
    temperature = float(spec.get("calibration", {}).get("temperature", 1.0))
    if not 0 < temperature < float("inf"):
        raise ValueError(f"calibration temperature {temperature} is not a positive number")
    return _linear(folder, spec) if "ngrams" in spec else load_network(folder, threads)


def load_network(folder: Path, threads: int) -> NetworkPredictor:
    """The network of a bundle folder, whose `bundle.json` is in order."""
    spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    session = open_session(folder / "model.onnx", threads)
    inputs = {i.name for i in session.get_inputs()}
    outputs = {o.name: o.shape for o in session.get_outputs()}
    if inputs != {"input_ids", "attention_mask"} or "logits" not in outputs:
        raise ValueError(f"model.onnx takes {sorted(inputs)} and gives {sorted(outputs)}, not input_ids, attention_mask and logits")
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != len(spec["labels"]):
        raise BadBundle("wrong_labels", f"model.onnx gives {width} logits, bundle.json names {len(spec['labels'])} labels")
    tokenizer = _tokenizer((folder / "tokenizer.json").read_bytes(), int(spec["max_length"]))
    return NetworkPredictor(session, tokenizer, spec)


def _linear(folder: Path, spec: Mapping[str, Any]) -> LinearPredictor:
    from safetensors import safe_open

    with safe_open(folder / LINEAR_FILE, "numpy") as file:
        tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    longest = spec["ngrams"].get("longest")
    if not isinstance(longest, int) or not 1 <= longest <= LONGEST_NGRAM:
        raise ValueError(f"ngrams must be of 1 to {LONGEST_NGRAM} letters, bundle.json has {spec['ngrams']!r}")
    columns = 1 if len(spec["labels"]) == 2 and spec["kind"] == ONE_LABEL else len(spec["labels"])
    size = len(tables["numbers"]) if "numbers" in tables and tables["numbers"].dtype == np.int32 else 0
    wanted = {"numbers": (size,), "rarity": (size,), "weights": (size, columns), "bias": (columns,)}
    shapes = {name: table.shape for name, table in tables.items()}
    if shapes.get("weights", (0, 0))[1:] != (columns,):
        raise BadBundle(
            "wrong_labels", f"{LINEAR_FILE} has weights {shapes.get('weights')}, bundle.json names {len(spec['labels'])} labels"
        )
    if not size or shapes != wanted or not all(np.isfinite(table).all() for table in tables.values()):
        raise ValueError(f"{LINEAR_FILE} must hold finite numbers of the shapes {wanted}, it has {shapes}")
    if not (tables["numbers"][1:] > tables["numbers"][:-1]).all():
        raise ValueError(f"{LINEAR_FILE}: the n-grams' numbers must rise")
    return LinearPredictor(tables, spec)


def _label_rule(spec: Mapping[str, Any]) -> LabelRule:
    """Raises ValueError: no label that stands alone, not a threshold between 0 and 1 for each other one, or a cut that is none."""
    labels, thresholds, fallback = list(spec["labels"]), spec.get("thresholds"), spec.get("fallback")
    if fallback not in labels:
        raise ValueError(f"fallback {fallback!r} is none of the labels {labels}")
    others = set(labels) - {fallback}
    if not isinstance(thresholds, dict) or set(thresholds) != others or not all(0 < float(t) < 1 for t in thresholds.values()):
        raise ValueError(f"bundle.json must name a threshold between 0 and 1 for each label but {fallback}, it has {thresholds!r}")
    cut = spec.get("cut")
    if cut is not None and not (isinstance(cut, int | float) and 0 < cut < 1):
        raise ValueError(f"the cut must lie between 0 and 1, bundle.json has {cut!r}")
    return LabelRule(tuple(float(thresholds.get(label, 1)) for label in labels), labels.index(fallback), cut)


@lru_cache(maxsize=8)
def _tokenizer(content: bytes, max_length: int) -> Tokenizer:
    """Shared by the models that have the same: successive versions of a system nearly always do, and a vocabulary takes megabytes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_length)
    return tokenizer
