"""From a verified bundle folder to something that answers: load, check labels, predict the golden samples.

The first load of a bundle happens in a child process under a time limit (`try_in_child`): a model that hangs, crashes or eats its way
through the memory takes the child with it, not the server. Belongs here: what makes a bundle fit to serve. Does not belong here: which
bundle is served (`models.py`), what a kind of model does (`text.py`, `images.py`).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlops_assets.kinds.text.config import LINEAR_FILE
from mlops_assets.lifecycle.bundle import BadBundle
from mlops_assets.settings import REPOSITORY, process_environment

#: A bundle that has not loaded, answered by then is given up.
LOAD_SECONDS = 60.0


class Predictor(Protocol):
    """What the server needs of a loaded model, whatever its kind. `one_at_a_time`: two of its rounds would hinder each other."""

    labels: list[str]
    system: str
    kind: str
    max_body_bytes: int

    @property
    def one_at_a_time(self) -> bool: ...

    def check(self, inputs: list[Any]) -> None:
        """Raises BadInput for what breaks a limit of one request."""

    def predict(self, inputs: list[Any]) -> list[dict[str, Any]]:
        """One answer per input, in order, each with `label`, `confidence` and `probs`."""

    def canonical_label(self, truth: Any) -> str | None:
        """`truth` as `label` says it; None: the model has no such label."""


def _text(folder: Path, threads: int) -> Predictor:
    from mlops_assets.kinds.text.predict import load_text_predictor

    return load_text_predictor(folder, 1)  # as many rounds run side by side as there are processors (see `batching.py`)


def _image(folder: Path, threads: int) -> Predictor:
    from mlops_assets.serving.images import load_image_predictor

    return load_image_predictor(folder, threads)  # all processors share a photo that comes alone: users wait for one, not for a batch


#: kind in bundle.json -> what loads it.
KINDS: dict[str, Callable[[Path, int], Predictor]] = {"text-classification": _text, "text-labels": _text, "image-classification": _image}


def load(folder: Path, system: str, threads: int) -> Predictor:
    """A predictor that has answered the golden samples, and is warm by that. The bundle's digest is the caller's to check.

    Raises:
        BadBundle: `missing_file`, `bad_format`, `other_system`, `wrong_labels`, `bad_model`, `golden`.
    """
    spec = _read(folder, "bundle.json")
    loader = KINDS.get(spec.get("kind", ""))
    if loader is None:
        raise BadBundle("bad_format", f"the bundle is of kind {spec.get('kind')!r}, this server knows {', '.join(KINDS)}")
    if spec.get("system") != system:
        raise BadBundle("other_system", f"the bundle belongs to {spec.get('system')!r}, not to {system}")
    labels = spec.get("labels")
    names = labels if isinstance(labels, list) else []
    if len(names) < 2 or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise BadBundle("wrong_labels", f"labels must be two or more different names, bundle.json has {labels!r}")
    for name in (LINEAR_FILE if "ngrams" in spec else "model.onnx", "golden.json"):
        if not (folder / name).is_file():
            raise BadBundle("missing_file", f"{name} is not in the bundle")
    try:
        predictor = loader(folder, threads)
        check_golden(predictor, _read(folder, "golden.json"))
    except BadBundle:
        raise
    except Exception as error:  # the engine raises its own types; whatever it says, this bundle cannot be served
        raise BadBundle("bad_model", f"it does not load or run: {_line(error)}") from error
    return predictor


def check_golden(predictor: Predictor, golden: dict[str, Any]) -> None:
    """Raises BadBundle unless every golden sample has its probabilities within the tolerance, alone as in a batch. NaN never is.

    Bundles of before `batch_tolerance` are not asked alone: their int8 depends on the batch.
    """
    samples: list[dict[str, Any]] = golden.get("samples") or []
    tolerance: Any = golden.get("tolerance")
    between: Any = golden.get("batch_tolerance")
    limits = (tolerance, tolerance if between is None else between)
    if not samples or not all(isinstance(limit, int | float) and 0 < limit < 1 for limit in limits):
        raise BadBundle("golden", "golden.json has no samples, or no tolerance between 0 and 1")
    inputs = [sample["input"] for sample in samples]
    together = [[answer["probs"][label] for label in predictor.labels] for answer in predictor.predict(inputs)]
    for number, (sample, got) in enumerate(zip(samples, together, strict=True)):
        if len(sample["probs"]) != len(predictor.labels):
            message = f"golden sample {number} has {len(sample['probs'])} probabilities for {len(predictor.labels)} labels"
            raise BadBundle("wrong_labels", message)
        if not _furthest(got, sample["probs"]) <= tolerance:
            found = [round(g, 4) for g in got]
            raise BadBundle("golden", f"golden sample {number} gives {found}, not {sample['probs']} (tolerance {tolerance})")
        if between is not None:
            (answer,) = predictor.predict([sample["input"]])
            alone = [answer["probs"][label] for label in predictor.labels]
            if not _furthest(alone, got) <= between:
                found, beside = [round(g, 4) for g in alone], [round(g, 4) for g in got]
                raise BadBundle("golden", f"golden sample {number} gives {found} alone and {beside} in a batch (tolerance {between})")


def _furthest(found: Sequence[float], wanted: Sequence[float]) -> float:
    return max((abs(f - w) if math.isfinite(f) else math.inf) for f, w in zip(found, wanted, strict=True))


def engine_version() -> str:
    """A bundle that was tried with another version of the engine is tried again."""
    import onnxruntime

    return str(onnxruntime.__version__)


def try_in_child(folder: Path, system: str, threads: int, seconds: float = LOAD_SECONDS) -> None:
    """`load` in a process of its own.

    Raises:
        BadBundle: what `load` raises; `hangs` after `seconds`; `crashed` when the process dies.
    """
    command = [sys.executable, "-m", "mlops_assets.serving.loading", str(folder), system, str(threads)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=process_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BadBundle("hangs", f"it did not load and answer within {seconds:g} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise BadBundle("crashed", f"loading it ended a process with {process.returncode}: {err.strip()[-300:]}")
    problem = json.loads(out.splitlines()[-1])
    if problem:
        raise BadBundle(problem["code"], problem["message"])


def _child(folder: str, system: str, threads: str) -> None:
    os.nice(10)  # whoever is answering users comes first
    problem = None
    try:
        load(Path(folder), system, int(threads))
    except BadBundle as error:
        problem = {"code": error.code, "message": str(error)}
    sys.stdout.write(json.dumps(problem) + "\n")


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadBundle("missing_file", f"{name} is not in the bundle") from None
    except ValueError as error:
        raise BadBundle("bad_format", f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadBundle("bad_format", f"{name} holds no object")
    return content


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


if __name__ == "__main__":
    _child(*sys.argv[1:])
