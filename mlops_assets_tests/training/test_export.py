"""What is written answers as what was trained, in fp32 exactly and in int8 nearly; what does not is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic

from mlops_assets.training import export

VOCABULARY, LENGTH = 300, 16


def bert(layers: int = 2, hidden: int = 32) -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    size = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 2 * hidden}
    model: torch.nn.Module = BertForSequenceClassification(
        BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_labels=2, initializer_range=0.2, **size)
    ).eval()
    return model


def inputs(rows: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(2, width + 1, (rows, 1))
    return {"input_ids": random.integers(0, VOCABULARY, (rows, width)), "attention_mask": (np.arange(width) < lengths).astype(np.int64)}


def answers(model: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(export.session(model, 1).run(["logits"], feed)[0])


def of_torch(model: torch.nn.Module, feed: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    model, path = bert(), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.export_text_model(model, path, vocabulary=VOCABULARY, max_length=LENGTH)
    return model, path


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, LENGTH), (5, 7), (33, 2)])
def test_bert_answers_alike_in_every_shape(exported: tuple[torch.nn.Module, Path], rows: int, width: int) -> None:
    feed = inputs(rows, width) if width > 1 else {name: array[:, :1] for name, array in inputs(rows, 2).items()}
    assert np.abs(of_torch(exported[0], feed) - answers(exported[1], feed)).max() < export.MAX_LOGIT_DIFFERENCE


def test_padding_does_not_change_an_answer(exported: tuple[torch.nn.Module, Path]) -> None:
    feed = inputs(1, 5)
    feed["attention_mask"][:] = 1
    padded = {name: np.pad(array, ((0, 0), (0, 6))) for name, array in feed.items()}
    assert np.abs(answers(exported[1], feed) - answers(exported[1], padded)).max() < 1e-5


def test_graph_is_fused_and_takes_two_inputs(exported: tuple[torch.nn.Module, Path]) -> None:
    import onnx

    graph = onnx.load(str(exported[1])).graph
    assert [i.name for i in graph.input] == ["input_ids", "attention_mask"]
    assert [o.name for o in graph.output] == ["logits"]
    assert sum(node.op_type == "Gelu" for node in graph.node) == 2


def test_other_architectures_are_exported_too(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, dim=16, hidden_dim=32, n_layers=1, n_heads=2, num_labels=2
    )
    model = DistilBertForSequenceClassification(config).eval()
    path = tmp_path / "model.onnx"
    export.export_text_model(model, path, vocabulary=VOCABULARY, max_length=LENGTH)
    feed = inputs(4, 9)
    assert np.abs(of_torch(model, feed) - answers(path, feed)).max() < export.MAX_LOGIT_DIFFERENCE


def test_an_export_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export.bert_graph

    def without_a_layer(model: torch.nn.Module) -> object:
        model.bert.encoder.layer = model.bert.encoder.layer[:1]  # type: ignore[union-attr]
        graph = whole(model)
        model.bert.encoder.layer = layers  # type: ignore[union-attr]
        return graph

    model = bert()
    layers = model.bert.encoder.layer  # type: ignore[union-attr]
    monkeypatch.setattr(export, "bert_graph", without_a_layer)
    with pytest.raises(export.ExportDiffers, match="logits differ"):
        export.export_text_model(model, tmp_path / "model.onnx", vocabulary=VOCABULARY, max_length=LENGTH)


# --- int8 -----------------------------------------------------------------------------------------------------------------------


def test_int8_is_a_quarter_of_the_size_and_gives_nearly_the_same_answers(tmp_path: Path) -> None:
    model, fp32, int8 = bert(hidden=64), tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export.export_text_model(model, fp32, vocabulary=VOCABULARY, max_length=LENGTH)
    export.quantize([inputs(100, LENGTH, seed=1)])(fp32, int8)
    assert int8.stat().st_size < 0.45 * fp32.stat().st_size
    feed = inputs(500, LENGTH)
    wanted, found = answers(fp32, feed), answers(int8, feed)
    assert wanted.argmax(axis=1).mean() not in (0, 1), "both labels occur"
    sure = np.abs(wanted[:, 0] - wanted[:, 1]) > np.quantile(np.abs(wanted[:, 0] - wanted[:, 1]), 0.2)
    assert (wanted.argmax(axis=1) == found.argmax(axis=1))[sure].mean() >= export.MIN_EQUAL_LABELS
    assert np.abs(wanted - found).max() > 0, "it is quantized"


def test_the_same_text_has_the_same_answer_whatever_stands_beside_it(tmp_path: Path) -> None:
    model, fp32, int8, measured = bert(hidden=64), tmp_path / "fp32.onnx", tmp_path / "int8.onnx", tmp_path / "measured.onnx"
    export.export_text_model(model, fp32, vocabulary=VOCABULARY, max_length=LENGTH)
    export.quantize([inputs(100, LENGTH, seed=1)])(fp32, int8)
    feed = inputs(60, LENGTH)
    together = {"input_ids": feed["input_ids"][20:29], "attention_mask": feed["attention_mask"][20:29]}

    def moved(model: Path) -> float:
        alone = np.concatenate([answers(model, {name: array[[row]] for name, array in together.items()}) for row in range(9)])
        return float(np.abs(alone - answers(model, together)).max())

    assert moved(int8) < 1e-6
    quantize_dynamic(str(fp32), str(measured), per_channel=True, reduce_range=True, extra_options={"DefaultTensorType": 1})
    assert moved(measured) > 1e-3, "the control: ranges that are measured in every batch"


def test_int8_has_no_node_that_measures_or_scales_by_itself(tmp_path: Path) -> None:
    import onnx

    export.export_text_model(bert(), tmp_path / "fp32.onnx", vocabulary=VOCABULARY, max_length=LENGTH)
    export.quantize([inputs(9, LENGTH)])(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2 * 4 + 1
    assert not {"DynamicQuantizeLinear", "MatMulInteger"} & set(kinds)


def test_other_architectures_are_quantized_too(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, dim=16, hidden_dim=32, n_layers=1, n_heads=2, num_labels=2
    )
    model = DistilBertForSequenceClassification(config).eval()
    export.export_text_model(model, tmp_path / "fp32.onnx", vocabulary=VOCABULARY, max_length=LENGTH)
    feed = inputs(40, LENGTH)
    export.quantize([feed])(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    assert 0 < np.abs(answers(tmp_path / "fp32.onnx", feed) - answers(tmp_path / "int8.onnx", feed)).max() < 0.1


@pytest.mark.parametrize(
    ("flipped", "right", "good"),
    [(0, 0, True), (9, 0, True), (11, 0, False), (4, 4, False), (2, 2, True), (8, -8, True)],
)
def test_int8_is_kept_only_when_quality_is(flipped: int, right: int, good: bool) -> None:
    """1,000 rows; int8 flips some labels, of which `right` were right before (negative: became right)."""
    fp32 = np.tile([[1.0, 0.0]], (1000, 1))
    int8 = fp32.copy()
    int8[:flipped] = [0.0, 1.0]
    labels = np.zeros(1000, int)
    others = flipped - abs(right)
    if right < 0:
        labels[:flipped] = 1
    elif others:  # half of the rest became right, half wrong
        labels[right : right + -(-others // 2)] = 1
    quality = export.int8_quality(fp32, int8, labels)
    assert quality.equal_labels == 1 - flipped / 1000
    assert quality.good is good


# --- golden ---------------------------------------------------------------------------------------------------------------------


def test_golden_samples_are_the_bundles_own_answers(tmp_path: Path) -> None:
    def probabilities(texts: Sequence[str]) -> np.ndarray:
        return np.array([[1 / len(text), 1 - 1 / len(text)] for text in texts])

    export.write_golden(tmp_path, ["좋다", "별로"], probabilities)
    content = json.loads((tmp_path / "golden.json").read_text(encoding="utf-8"))
    assert content["samples"][0] == {"input": "좋다", "probs": [0.5, 0.5]}
    assert content["tolerance"] == export.GOLDEN_TOLERANCE
    assert re.search("별로", (tmp_path / "golden.json").read_text(encoding="utf-8"))
