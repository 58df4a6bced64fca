"""From a trained model to the folder that is served: ONNX, int8, tokenizer, `bundle.json`, golden samples.

Belongs here: writing bundles and checking that the written file answers as the trained model does. Does not belong here: reading them
(`serving/`), their digest (`lifecycle/bundle.py`), measuring on the holdout.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession
    from torch import nn

log = logging.getLogger(__name__)

#: The exported fp32 model may differ from the trained one by this much in a logit; of logits over 1, by this share of the largest.
MAX_LOGIT_DIFFERENCE = 1e-4
#: int8 is kept only when this share of labels stays equal, and accuracy falls by no more than that.
MIN_EQUAL_LABELS = 0.99
MAX_ACCURACY_LOSS = 0.003
#: With fewer rows than this, one flipped label would break MIN_EQUAL_LABELS by chance alone.
MIN_JUDGED_ROWS = 200
#: So many training rows say in which ranges a network's numbers lie.
CALIBRATION_ROWS = 1_000
GOLDEN_TOLERANCE = 0.02
#: An input has the same probabilities alone and in a batch, but for so much.
BATCH_TOLERANCE = 1e-3
OPSET = 17


class ExportDiffers(RuntimeError):
    """The exported model does not answer as the trained one does: it must not be served."""


@dataclass(frozen=True)
class Int8Quality:
    """What int8 does to the answers on the judged rows. `accuracy_loss` is fp32's accuracy minus int8's."""

    rows: int
    equal_labels: float
    accuracy_loss: float

    @property
    def good(self) -> bool:
        few = self.rows < MIN_JUDGED_ROWS
        return self.equal_labels >= (MIN_EQUAL_LABELS if not few else 0.9) and (few or self.accuracy_loss <= MAX_ACCURACY_LOSS)


def session(model: Path, threads: int) -> InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])


# --- fp32 -----------------------------------------------------------------------------------------------------------------------


def export_text_model(model: nn.Module, target: Path, *, vocabulary: int, max_length: int, threads: int = 1) -> None:
    """Write `model` (a transformers sequence classifier) as ONNX: `input_ids`, `attention_mask` int64 [batch, seq] -> `logits`.

    BERT becomes a graph of ONNX Runtime's own fused operators, which its optimizer cannot find in what torch exports and which int8
    needs to be fast. Other architectures go through `torch.onnx`.

    Raises:
        ExportDiffers: a logit is off by more than MAX_LOGIT_DIFFERENCE on random inputs of several shapes.
    """
    import torch

    model = model.eval()
    if getattr(model.config, "model_type", "") == "bert":
        import onnx

        onnx.save(bert_graph(model), str(target))
    else:
        _export_with_torch(model, target, vocabulary)
    running = session(target, threads)
    random = np.random.default_rng(0)
    for rows, width in ((1, max_length), (3, max(3, max_length // 2)), (2, 3)):
        ids = random.integers(0, vocabulary, (rows, width))
        mask = (np.arange(width) < random.integers(2, width + 1, (rows, 1))).astype(np.int64)
        with torch.inference_mode():
            wanted = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
        _same_logits(wanted, running.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0], f"{rows} texts of {width} tokens")


def _same_logits(wanted: np.ndarray, found: np.ndarray, inputs: str) -> None:
    """Raises ExportDiffers."""
    difference = float(np.abs(wanted - found).max())
    allowed = MAX_LOGIT_DIFFERENCE * max(1.0, float(np.abs(wanted).max()))  # floats have digits, not decimals
    if not difference <= allowed:
        raise ExportDiffers(
            f"the exported model's logits differ from the trained one's by {difference:.2g} (allowed {allowed:.2g}) for "
            f"{inputs}. Nothing was published; compare torch and onnxruntime with requirements.lock."
        )


def _export_with_torch(model: nn.Module, target: Path, vocabulary: int) -> None:
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    ids = torch.randint(0, vocabulary, (3, 7))
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    _to_onnx(Logits().eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, target, shape)


def export_image_model(model: nn.Module, target: Path, *, size: int, channels: int | None = 3, threads: int = 1) -> None:
    """Write `model` (such as `image.classifier`) as ONNX: `images` uint8 [batch, size, size, channels] -> `logits` float32 [batch, labels].

    Args:
        channels: None: of grey pictures, which have no such axis.

    Raises:
        ExportDiffers: a logit is off by more than MAX_LOGIT_DIFFERENCE on random images.
    """
    import torch

    model = model.eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            return self.model(images)["logits"]

    random = np.random.default_rng(0)

    def images(rows: int) -> np.ndarray:
        """Of a few large patches, as photos are: fine noise averages away and would tell nothing."""
        coarse = random.integers(0, 256, (rows, 4, 4, 3), dtype=np.uint8)
        step = -(-size // 4)
        shown = coarse.repeat(step, axis=1).repeat(step, axis=2)[:, :size, :size]
        return shown[..., 0].copy() if channels is None else shown[..., :channels]

    _to_onnx(Logits().eval(), {"images": torch.from_numpy(images(2))}, target, {0: torch.export.Dim("batch")})
    running = session(target, threads)
    for rows in (1, 3):
        shown = images(rows)
        with torch.inference_mode():
            wanted = model(torch.from_numpy(shown))["logits"].numpy()
        _same_logits(wanted, running.run(["logits"], {"images": shown})[0], f"{rows} images of {size} pixels")


def _to_onnx(model: nn.Module, inputs: Mapping[str, Any], target: Path, shape: Mapping[int, Any]) -> None:
    """torch's own export into one file; `shape` names the axes that vary, the same of every input."""
    import io
    import warnings

    import torch

    # The exporter reports its steps on stdout and warns about axis names; neither says anything to our users.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            str(target),
            input_names=list(inputs),
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            dynamic_shapes=dict.fromkeys(inputs, shape),
        )


class _Graph:
    """Nodes and weights of an ONNX graph while it is being written."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if hasattr(value, "detach") else value
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def split(self, source: str, name: str, sizes: Sequence[int], axis: int) -> list[str]:
        from onnx import helper

        parts = [f"{name}{number}" for number in range(len(sizes))]
        lengths = self.weight(f"{name}.sizes", np.array(sizes, np.int64))
        self.nodes.append(helper.make_node("Split", [source, lengths], parts, name=name, axis=axis))
        return parts

    def linear(self, name: str, source: str, weight: Any, bias: Any) -> str:
        """source @ weight + bias."""
        product = self.node("MatMul", [source, self.weight(f"{name}.weight", weight)], f"{name}.product")
        return self.node("Add", [product, self.weight(f"{name}.bias", bias)], f"{name}.sum")

    def norm_of_sum(self, name: str, source: str, skip: str, layer: Any) -> str:
        """LayerNorm(source + skip). `Sum`, not `Add`: the engine would make one operator of the two that takes five times as long."""
        weights = [self.weight(f"{name}.gamma", layer.weight), self.weight(f"{name}.beta", layer.bias)]
        added = self.node("Sum", [source, skip], f"{name}.added")
        return self.node("LayerNormalization", [added, *weights], name, axis=-1, epsilon=layer.eps)


MICROSOFT = "com.microsoft"
#: Attention scores beyond this are cut: exp(80) times any number of tokens is still a float. Those of trained networks stay below 40.
MAX_SCORE = 80.0


def bert_graph(model: Any) -> onnx.ModelProto:
    """A `BertForSequenceClassification` as ONNX that computes no padding and answers a text alike whatever stands beside it, to the bit.

    The words of all texts of a batch go through the layers as one sequence [tokens, hidden]; a mask keeps every text to itself. Padding
    costs nothing, and the matrices are large enough to keep a processor busy however short the texts are. The last layer's output is
    computed for the first token of each text alone: nothing else of it is read.
    """
    from onnx import TensorProto, helper

    config, graph = model.config, _Graph()
    if config.hidden_act != "gelu":
        raise ValueError(f"hidden_act {config.hidden_act!r}: only gelu is known here")
    for weight, value in (("least_score", -MAX_SCORE), ("largest_score", MAX_SCORE)):
        graph.weight(weight, np.array(value, np.float32))
    graph.weight("last", np.array([-1], np.int64))
    hidden = _embeddings(graph, model.bert.embeddings)
    last = len(model.bert.encoder.layer) - 1
    for number, layer in enumerate(model.bert.encoder.layer):
        attention, name = layer.attention, f"layer{number}"
        attended = _attended(graph, name, hidden, attention.self, config.num_attention_heads)
        if number == last:
            attended = graph.node("Gather", [attended, "first_tokens"], "first.attended", axis=0)
            hidden = graph.node("Gather", [hidden, "first_tokens"], "first.hidden", axis=0)
        out = attention.output
        weight = _each_head_wider(out.dense.weight.T, config.num_attention_heads, 0)
        projected = graph.linear(f"{name}.projected", attended, weight, out.dense.bias)
        hidden = graph.norm_of_sum(f"{name}.attention_norm", projected, hidden, out.LayerNorm)
        inner, outer = layer.intermediate.dense, layer.output.dense
        active = graph.node("Gelu", [graph.linear(f"{name}.inner", hidden, inner.weight.T, inner.bias)], f"{name}.gelu", MICROSOFT)
        wider = graph.linear(f"{name}.outer", active, outer.weight.T, outer.bias)
        hidden = graph.norm_of_sum(f"{name}.output_norm", wider, hidden, layer.output.LayerNorm)
    pooler, classifier = model.bert.pooler.dense, model.classifier
    pooled = graph.node("Tanh", [graph.linear("pooler", hidden, pooler.weight.T, pooler.bias)], "pooled")
    graph.node("Identity", [graph.linear("classifier", pooled, classifier.weight.T, classifier.bias)], "logits")
    integers = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in ("input_ids", "attention_mask")]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", config.num_labels])
    return helper.make_model(
        helper.make_graph(graph.nodes, "bert", integers, [logits], graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=10,
        producer_name="mlops_assets",
    )


def _attended(graph: _Graph, name: str, hidden: str, attention: Any, heads: int) -> str:
    """Self-attention of `hidden` [tokens, hidden], every text to itself; each head has one more column than its values, a 1.

    The engine's own softmax adds in lanes, by place in the batch, so that last bits depend on what stands beside a text, and int8 makes
    whole steps of last bits. Here the sum is a column of the product with the values (they get a column of ones): a product adds one term
    after the other, and the terms of other texts are 0.
    """
    import torch

    size = attention.query.out_features // heads
    scale = size**-0.5  # of the scores, here in the queries
    values = _each_head_wider(attention.value.weight, heads, 0)
    value_bias = _each_head_wider(attention.value.bias, heads, 1)
    weight = torch.cat([attention.query.weight * scale, attention.key.weight, values]).T
    added = graph.linear(f"{name}.qkv", hidden, weight, torch.cat([attention.query.bias * scale, attention.key.bias, value_bias]))
    sizes = [size, size, size + 1]
    parts = graph.split(added, f"{name}.part", [heads * each for each in sizes], axis=1)
    query, key, value = (
        graph.node("Reshape", [part, graph.weight(f"{part}.shape", np.array([-1, heads, each], np.int64))], f"{part}.by_head")
        for part, each in zip(parts, sizes, strict=True)
    )
    scores = graph.node("FusedMatMul", [query, key], f"{name}.scores", MICROSOFT, transBatchA=1, transBatchB=1, transB=1)
    shares = graph.node("Exp", [graph.node("Clip", [scores, "least_score", "largest_score"], f"{name}.cut")], f"{name}.shares")
    own = graph.node("Mul", [shares, "same_text"], f"{name}.own")  # [heads, tokens, tokens]
    summed = graph.node("MatMul", [own, graph.node("Transpose", [value], f"{name}.values", perm=[1, 0, 2])], f"{name}.summed")
    total = graph.node("Gather", [summed, "last"], f"{name}.total", axis=2)
    mean = graph.node("Transpose", [graph.node("Div", [summed, total], f"{name}.by_head")], f"{name}.mean", perm=[1, 0, 2])
    return graph.node("Reshape", [mean, graph.weight(f"{name}.shape", np.array([-1, heads * (size + 1)], np.int64))], f"{name}.attended")


def _each_head_wider(weight: Any, heads: int, fill: float) -> Any:
    """`weight` [heads * size, ...] with a row of `fill` after the rows of each head."""
    import torch

    rows = weight.reshape(heads, -1, *weight.shape[1:])
    return torch.cat([rows, torch.full_like(rows[:, :1], fill)], dim=1).flatten(0, 1)


def _embeddings(graph: _Graph, embeddings: Any) -> str:
    """LayerNorm(words + positions + token type 0) [tokens, hidden] of the tokens that the mask shows, row after row.

    Makes `same_text` [tokens, tokens], 1 where a token looks and 0 where not, and `first_tokens` int64 [batch], where each text begins.
    """
    from onnx import TensorProto

    axis0, axis1 = graph.weight("axis0", np.array([0], np.int64)), graph.weight("axis1", np.array([1], np.int64))
    shown = graph.node("NonZero", ["attention_mask"], "shown")  # [2, tokens]: the row and the column of each
    rows = graph.node("Gather", [shown, graph.weight("zero", np.array(0, np.int64))], "rows", axis=0)
    columns = graph.node("Gather", [shown, graph.weight("one", np.array(1, np.int64))], "columns", axis=0)
    same = graph.node("Equal", [graph.node("Unsqueeze", [rows, axis0], "row"), graph.node("Unsqueeze", [rows, axis1], "row_of")], "same")
    graph.node("Cast", [same], "same_text", to=TensorProto.FLOAT)
    begins = graph.node("NonZero", [graph.node("Equal", [columns, "zero"], "is_first")], "begins")
    graph.node("Squeeze", [begins, axis0], "first_tokens")

    tokens = graph.node("GatherND", ["input_ids", graph.node("Transpose", [shown], "places", perm=[1, 0])], "tokens")
    table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]  # one table for both
    words = graph.node("Gather", [graph.weight("embeddings.words", embeddings.word_embeddings.weight), tokens], "words")
    positions = graph.node("Gather", [graph.weight("embeddings.positions", table), columns], "positions")
    added = graph.node("Add", [words, positions], "sequence")
    norm = embeddings.LayerNorm
    weights = [graph.weight("embeddings.gamma", norm.weight), graph.weight("embeddings.beta", norm.bias)]
    return graph.node("LayerNormalization", [added, *weights], "hidden", axis=-1, epsilon=norm.eps)


# --- int8 -----------------------------------------------------------------------------------------------------------------------


def quantize(feeds: Sequence[Mapping[str, np.ndarray]]) -> Callable[[Path, Path], None]:
    """A `how` of `to_int8` for networks of matrix products: weights int8 (one scale per output channel, embeddings too), activations uint8.

    Activations have the ranges that they have over `feeds` (inputs of the model, as a server gives them): measured as they come instead,
    the range would be that of all texts of a batch, and an answer would depend on what is asked beside it (by up to 0.13).

    Weights use 7 of their 8 bits: processors with AVX2 and without VNNI add pairs of products in 16 bits, which full weights overflow (one
    label in twenty changed); with 7 a bundle answers alike on every machine. The classifier stays fp32, it is small and decides.
    """

    def quantized(source: Path, target: Path) -> None:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        model = onnx.load(str(source))
        model.graph.ClearField("value_info")  # torch's notes of shapes, of weights that the quantizer turns round
        last = next(node for node in reversed(model.graph.node) if node.op_type in ("MatMul", "Gemm"))
        with _quiet():
            quantize_dynamic(
                model,
                str(target),
                op_types_to_quantize=["MatMul", "Attention", "Gather", "Gemm"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[last.name, f"{last.name}_MatMul"],  # the second: a Gemm, as the quantizer takes it apart
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        model = onnx.load(str(target))
        _fix_scales(model.graph, _ranges(source, _measured(model.graph), feeds))
        onnx.save(model, str(target))

    return quantized


def _measured(graph: onnx.GraphProto) -> list[str]:
    """Names of the activations that `graph` would measure anew in every batch."""
    return [node.input[0] for node in graph.node if node.op_type == "DynamicQuantizeLinear"]


def _ranges(source: Path, names: Sequence[str], feeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """The least and the largest value (0 among them) of each activation `names` of the fp32 model over `feeds`."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(source))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    running = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict.fromkeys(names, (0.0, 0.0))
    for feed in feeds:
        for name, values in zip(names, running.run(list(names), dict(feed)), strict=True):
            low, high = found[name]
            found[name] = min(low, float(values.min())), max(high, float(values.max()))
    return found


def _fix_scales(graph: onnx.GraphProto, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Replace each measurement of `graph` by the scale and the zero point of its range, and join products with their scales and biases."""
    from onnx import helper, numpy_helper

    for place, node in enumerate(list(graph.node)):
        if node.op_type != "DynamicQuantizeLinear":
            continue
        values, scale, zero = node.output
        low, high = ranges[node.input[0]]
        step = np.float32((high - low) / 255 or 1.0)
        graph.initializer.append(numpy_helper.from_array(np.array(step, np.float32), scale))
        graph.initializer.append(numpy_helper.from_array(np.array(np.clip(round(-low / step), 0, 255), np.uint8), zero))
        graph.node[place].CopyFrom(helper.make_node("QuantizeLinear", [node.input[0], scale, zero], [values], name=node.name))
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {weight.name for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "MatMulInteger"]:
        _join(graph, node, readers, constants)


def _join(graph: onnx.GraphProto, product: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], constants: set[str]) -> None:
    """One `MatMulIntegerToFloat` in place of the nodes that quantize_dynamic writes: integers, cast, times both scales, plus bias.

    The engine's optimizer finds them only where the scale is measured; apart, they take a sixth of the time.
    """
    from onnx import helper

    (cast,) = readers[product.output[0]]
    (scaled,) = readers[cast.output[0]]
    scales = next(node for node in graph.node if node.output[0] == scaled.input[1])
    inputs = [*product.input[:2], *scales.input, *product.input[2:]]
    last = scaled
    after = readers.get(scaled.output[0], [])
    if len(after) == 1 and after[0].op_type == "Add":
        bias = [name for name in after[0].input if name in constants]
        if bias:
            inputs, last = [*inputs, bias[0]], after[0]
    joined = helper.make_node("MatMulIntegerToFloat", inputs, list(last.output), name=product.name, domain=MICROSOFT)
    for node in (product, cast, scales, scaled):
        if node is not last:
            graph.node.remove(node)
    last.CopyFrom(joined)


def convolutions_to_int8(images: np.ndarray) -> Callable[[Path, Path], None]:
    """A `quantize` for networks of convolutions: weights int8 per channel, activations uint8 in the ranges that they have on `images`
    (uint8, as the model takes them). 7 bits of the weights, for the reason that `quantize` has."""

    def quantized(source: Path, target: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Batches(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left = iter([{"images": images[start : start + 64]} for start in range(0, len(images), 64)])

            def get_next(self) -> Any:
                return next(self.left, None)

        with _quiet():
            quantize_static(
                str(source),
                str(target),
                Batches(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )

    return quantized


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizers advise a preprocessing that our graphs have no use for."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def int8_quality(fp32: np.ndarray, int8: np.ndarray, labels: np.ndarray) -> Int8Quality:
    """Compare two sets of logits [rows, classes] of the same rows."""
    ours, theirs = int8.argmax(axis=1), fp32.argmax(axis=1)
    return Int8Quality(len(labels), float((ours == theirs).mean()), float((theirs == labels).mean() - (ours == labels).mean()))


def int8_quality_of_labels(fp32: np.ndarray, int8: np.ndarray, truth: np.ndarray, say: Callable[[np.ndarray], np.ndarray]) -> Int8Quality:
    """The same for several labels a row: equal yes and no, and what is lost of LRAP or of F1, whichever is more.

    Args:
        say: logits -> which labels are said, bool [rows, classes].
    """
    from mlops_assets.training.metrics import several_labels, sigmoid

    ours, theirs = say(int8), say(fp32)
    after, before = several_labels(sigmoid(int8), truth, ours), several_labels(sigmoid(fp32), truth, theirs)
    return Int8Quality(len(truth), float((ours == theirs).mean()), max(before[name] - after[name] for name in ("lrap", "f1")))


def to_int8(
    folder: Path,
    fp32: np.ndarray,
    predict_logits: Callable[[], np.ndarray],
    judge: Callable[[np.ndarray], Int8Quality],
    how: Callable[[Path, Path], None],
) -> tuple[np.ndarray, str]:
    """Quantize the folder's `model.onnx` and keep that only when it answers as well; the logits and the precision that were kept.

    Args:
        predict_logits: what the bundle in `folder` answers now, on the judged rows; `fp32` is what it answered before.
        how: (source, target) writes the quantized model, as `quantize` or `convolutions_to_int8` does.
    """
    target = folder / "model.onnx"
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        original = Path(aside) / "fp32.onnx"
        target.rename(original)
        how(original, target)
        int8 = predict_logits()
        quality = judge(int8)
        log.info("int8: %.2f%% of %d labels equal, accuracy %+.4f", 100 * quality.equal_labels, quality.rows, -quality.accuracy_loss)
        if quality.good:
            return int8, "int8"
        log.warning("int8 answers too differently (%s): the bundle stays fp32", quality)
        original.replace(target)
    return fp32, "fp32"


# --- bundle.json, golden.json ---------------------------------------------------------------------------------------------------


def write_spec(folder: Path, system: str, kind: str, labels: Sequence[str], precision: str, temperature: float, **more: Any) -> None:
    """`bundle.json`, which says what is in a bundle. `more`: what only this kind has."""
    calibration = {"temperature": round(temperature, 6)}
    spec = {"format": 1, "system": system, "kind": kind, "labels": list(labels), "precision": precision, "calibration": calibration}
    write_json(folder / "bundle.json", spec | more)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_golden(folder: Path, samples: Sequence[str], probabilities: Callable[[Sequence[str]], np.ndarray]) -> None:
    """`golden.json`: what the written bundle itself answers, so that a server can see that its copy and its machine answer the same."""
    rows = probabilities(samples).tolist()
    content = [{"input": text, "probs": [round(p, 6) for p in row]} for text, row in zip(samples, rows, strict=True)]
    write_json(folder / "golden.json", {"samples": content, "tolerance": GOLDEN_TOLERANCE, "batch_tolerance": BATCH_TOLERANCE})
