"""The mapped weights answer bit for bit as the copied ones do, and what is no ONNX file is an error, whatever its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mlops_assets.kinds.mapped import MIN_BYTES, graph_with_mapped_weights
from mlops_assets.kinds.text.predict import open_session


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int8 embeddings large enough to be mapped, behind fp32 weights that are as large and must stay inside."""
    random = np.random.default_rng(0)
    table = random.integers(-128, 128, (4096, 32)).astype(np.int8)
    weight = random.standard_normal((32, 1024)).astype(np.float32)
    assert min(table.nbytes, weight.nbytes) >= MIN_BYTES
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mapped",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1024])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(table, "table")],
    )
    path = tmp_path_factory.mktemp("mapped") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_answers_bit_for_bit(model: Path) -> None:
    ids = {"ids": np.arange(0, 4096, 7)}
    copied = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(["logits"], ids)[0]
    assert (open_session(model, 1).run(["logits"], ids)[0] == copied).all()


def test_only_the_bytes_of_large_int8_weights_are_left_out(model: Path) -> None:
    graph = graph_with_mapped_weights(model)
    assert len(graph) < model.stat().st_size - 4096 * 32 + 1024
    weight, table = onnx.load_from_string(graph).graph.initializer
    assert (weight.data_location, table.data_location) == (TensorProto.DEFAULT, TensorProto.EXTERNAL)
    reference = {entry.key: entry.value for entry in table.external_data}
    start = int(reference["offset"])
    original = onnx.load(str(model)).graph.initializer[1].raw_data
    assert model.read_bytes()[start : start + int(reference["length"])] == original
    assert reference["location"] == "model.onnx"


@settings(deadline=None, max_examples=200)
@given(content=st.binary(min_size=1, max_size=200))
def test_any_bytes_are_refused_or_passed_on(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.onnx"
    path.write_bytes(content)
    try:
        passed_on = graph_with_mapped_weights(path)
    except ValueError:
        return
    assert len(passed_on) >= 1


@pytest.mark.parametrize("keep", [1, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(model: Path, tmp_path: Path, keep: float) -> None:
    content = model.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(ValueError, match="ONNX"):
        graph_with_mapped_weights(path)
