"""Small real bundles: a tokenizer and an ONNX graph of a few hundred bytes that tells good words from bad ones.

`strength` scales the logits, so that each bundle gives probabilities of its own and an answer shows which bundle gave it.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

WORDS = {"[PAD]": 0, "[UNK]": 1, "좋은": 2, "영화": 3, "나쁜": 4, "최고": 5, "별로": 6}
WEIGHTS = {"좋은": 1.0, "최고": 2.0, "나쁜": -1.0, "별로": -2.0}
LABELS = ("부정", "긍정")


def make_bundle(
    folder: Path,
    *,
    system: str = "sentiment",
    strength: float = 1.0,
    labels: Sequence[str] = LABELS,
    endless: bool = False,
    nan: bool = False,
    temperature: float = 1.0,
    golden: Sequence[float] | None = None,
) -> Path:
    """Write a whole bundle. `endless`: the graph never ends; `golden`: probabilities to claim instead of the right ones."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder.mkdir(parents=True, exist_ok=True)
    spec = {"format": 1, "system": system, "kind": "text-classification", "labels": list(labels), "max_length": 64, "precision": "fp32"}
    (folder / "bundle.json").write_text(json.dumps(spec | {"calibration": {"temperature": temperature}}), encoding="utf-8")
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    _graph(folder / "model.onnx", math.nan if nan else strength, endless)
    samples = [{"input": text, "probs": list(golden or probabilities(text, strength / temperature))} for text in ("좋은 영화", "별로")]
    (folder / "golden.json").write_text(json.dumps({"samples": samples, "tolerance": 0.02}), encoding="utf-8")
    return folder


def probabilities(text: str, strength: float) -> list[float]:
    """What a bundle of this strength answers, computed apart from it: [부정, 긍정]."""
    words = text.split()
    logit = strength * sum(WEIGHTS.get(word, 0.0) for word in words) / len(words)
    positive = 1 / (1 + math.exp(-2 * logit))
    return [1 - positive, positive]


def make_image_bundle(folder: Path, *, system: str = "tires", labels: Sequence[str] = ("good", "defective"), size: int = 16) -> Path:
    """A whole bundle of kind `image-classification`: the brighter the picture, the surer of the second label."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["bright"]),
        helper.make_node("Unsqueeze", ["bright", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "weights"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(255, np.float32), "white"),
        numpy_helper.from_array(np.array([-1], np.int64), "last"),
        numpy_helper.from_array(np.array([[0.0, 4.0]], np.float32), "weights"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "toy", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    spec = {"format": 1, "kind": "image-classification", "system": system, "labels": list(labels), "image_size": size, "precision": "fp32"}
    (folder / "bundle.json").write_text(json.dumps(spec | {"calibration": {"temperature": 1.0}}), encoding="utf-8")
    samples = [{"input": base64.b64encode(png(level)).decode(), "probs": brightness_probabilities(level)} for level in (0, 200)]
    (folder / "golden.json").write_text(json.dumps({"samples": samples, "tolerance": 0.02}), encoding="utf-8")
    return folder


def make_digits_bundle(folder: Path, drawings: Mapping[str, Sequence[Image]], *, ask_below: float = 0.9) -> Path:
    """A whole bundle that reads strokes: the digit whose prototype is nearest; each prototype is the mean of prepared drawings."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from mlops_assets.strokes import SIDE, prepared

    folder.mkdir(parents=True, exist_ok=True)
    seen = {label: [prepared(picture) for picture in pictures] for label, pictures in drawings.items()}
    prototypes = np.stack([np.mean(pictures, 0).ravel() for pictures in seen.values()]).astype(np.float32) / 255
    # The square distance without what is the same for all, softened so that strangers are near nobody.
    weights, bias = prototypes.T * 0.5, -0.25 * (prototypes**2).sum(1)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "white"], ["grey"]),
        helper.make_node("Reshape", ["grey", "flat"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "weights", "bias"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(255, np.float32), "white"),
        numpy_helper.from_array(np.array([-1, SIDE * SIDE], np.int64), "flat"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(bias, "bias"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(seen)])
    graph = helper.make_graph(nodes, "toy", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    spec = {"format": 1, "kind": "image-classification", "system": "digits", "labels": list(seen), "image_size": SIDE, "precision": "fp32"}
    more = {"preprocessing": "strokes", "ask_below": ask_below, "calibration": {"temperature": 1.0}}
    (folder / "bundle.json").write_text(json.dumps(spec | more), encoding="utf-8")
    samples = []
    for pictures in list(drawings.values())[:2]:
        values = prepared(pictures[0]).ravel() / 255 @ weights + bias
        odds = np.exp(values - values.max())
        samples.append({"input": base64.b64encode(encoded(pictures[0])).decode(), "probs": (odds / odds.sum()).tolist()})
    (folder / "golden.json").write_text(json.dumps({"samples": samples, "tolerance": 0.02}), encoding="utf-8")
    return folder


def encoded(picture: Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def png(level: int, size: int = 20) -> bytes:
    """A grey square."""
    from PIL import Image

    return encoded(Image.new("RGB", (size, size), (level, level, level)))


def brightness_probabilities(level: int) -> list[float]:
    """What the image bundle answers, computed apart from it: [good, defective]."""
    second = 1 / (1 + math.exp(-4 * level / 255))
    return [1 - second, second]


def _graph(path: Path, strength: float, endless: bool) -> None:
    """logits = mean over the unmasked tokens of an embedding [words, 2]: the negative class has the opposite sign."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.zeros((len(WORDS), 2), np.float32)
    for word, weight in WEIGHTS.items():
        table[WORDS[word]] = (-weight * strength, weight * strength)
    if math.isnan(strength):
        table[:] = math.nan
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["embedded", "wide_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["summed"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "middle"], ["counted"], keepdims=1),
        helper.make_node("Div", ["summed", "counted"], ["mean" if endless else "logits"]),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([-1], np.int64), "last"),
        numpy_helper.from_array(np.array([1], np.int64), "middle"),
    ]
    if endless:
        nodes.append(helper.make_node("Loop", ["trips", "go_on", "mean"], ["logits"], body=_endless_body()))
        constants += [
            numpy_helper.from_array(np.array(2**62, np.int64), "trips"),
            numpy_helper.from_array(np.array(True), "go_on"),
        ]
    tokens = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _endless_body():  # type: ignore[no-untyped-def]
    from onnx import TensorProto, helper

    return helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Identity", ["value"], ["value_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch", 2]),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, ["batch", 2]),
        ],
    )
