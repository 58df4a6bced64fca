"""The baseline of texts: logistic regression on character n-grams, learned in a minute on one core.

Each n-gram counts by its rarity, and by how much more often it stands under a label than elsewhere (the ratio of naive Bayes; Wang and
Manning 2012, "Baselines and Bigrams"). Belongs here: learning and writing the tables. Does not belong here: reading them (`predict.py`),
what labels mean.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlops_assets.kinds.text.config import LINEAR_FILE, LinearSection
from mlops_assets.settings import Strict

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

    from mlops_assets.lifecycle.system import TrainContext, Trained

ROWS_AT_ONCE = 2_000

Section = TypeVar("Section", bound=Strict)


def sections(values: Mapping[str, Any], dataset: Section) -> tuple[Section, LinearSection]:
    """The data set's section and the model's with the parameters over them. Raises ValidationError."""
    read = type(dataset).model_validate(dataset.model_dump() | {"sampling_rate": values["sampling_rate"]})
    return read, LinearSection.model_validate({name: values[name] for name in LinearSection.model_fields})


def train(
    context: TrainContext,
    section: LinearSection,
    texts: Sequence[str],
    truth: np.ndarray,
    measured: tuple[Sequence[str], np.ndarray],
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    flat: Mapping[str, Any],
) -> Trained:
    """Learn the tables and keep them as the attempt's weights. A killed training begins again: it takes a minute.

    Args:
        truth: bool [rows, columns], whether a row has the label; of two labels that exclude each other one column, the second's.
        measured: validation's texts and labels, which `measure` is given beside the scores [rows, columns].
    Raises:
        ValueError: no rows to train on.
    """
    from mlops_assets.training import attempt, trainer

    if finished := attempt.finished(context, flat):
        return finished
    if not len(texts):
        raise ValueError(f"{context.table.dataset_version} of {context.system} has no training rows: land labelled texts")
    tables = learn(texts, truth, section, context.seed)
    context.say(f"learned {int((tables['rarity'] > 0).sum())} n-grams of {len(texts)} texts")
    figures = measure(scores(tables, section, measured[0]), measured[1])
    metrics = {f"validation_{name}": value for name, value in figures.items()}
    metrics |= {"train_rows": float(len(texts)), "steps": 1.0, "best_step": 1.0}
    context.log_metrics(metrics, 1)
    fitted = trainer.Fitted(1, 1, figures, "finished", None)
    return attempt.keep(context, fitted, metrics, flat, lambda folder: _write(tables, folder / LINEAR_FILE))


def learn(texts: Sequence[str], truth: np.ndarray, section: LinearSection, seed: int) -> dict[str, np.ndarray]:
    """The tables of `predict.LinearPredictor`, float16."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    counts = _counted(texts, section)
    size, columns = 1 << section.bits, truth.shape[1]
    rows = np.bincount(counts.indices, minlength=size)
    rarity = np.where(rows >= section.min_rows, np.log((1 + len(texts)) / (1 + rows)) + 1, 0).astype(np.float16)
    kept = np.flatnonzero(rarity)
    features = _features(counts, rarity)[:, kept]
    weights, bias = np.zeros((size, columns), np.float16), np.zeros(columns, np.float32)
    there = features.astype(bool)
    for column, has in enumerate(truth.T):
        if has.all() or not has.any():  # nothing to tell apart: say what is always so
            bias[column] = 20.0 if len(has) and has[0] else -20.0
            continue
        yes, no = (np.asarray(there[mask].sum(axis=0)).ravel() + 1.0 for mask in (has, ~has))
        ratio = np.log((yes / yes.sum()) / (no / no.sum())).astype(np.float32)
        model = LogisticRegression(C=section.strength, solver="liblinear", dual=True, tol=0.02, max_iter=200, random_state=seed)
        model.fit(features.multiply(ratio).tocsr(), has)
        weights[kept, column] = model.coef_[0] * ratio
        bias[column] = model.intercept_[0]
    return {"rarity": rarity, "weights": weights, "bias": bias}


def scores(tables: Mapping[str, np.ndarray], section: LinearSection, texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, columns] of tables in memory, as the predictor has them of the file."""
    import numpy as np

    sums = _features(_counted(texts, section), tables["rarity"]) @ tables["weights"].astype(np.float32)
    return np.asarray(sums + tables["bias"], np.float32)


def _counted(texts: Sequence[str], section: LinearSection) -> csr_matrix:
    """How often each text has each n-gram: float32 [texts, 2**bits]."""
    import numpy as np
    from scipy.sparse import csr_matrix, vstack

    from mlops_assets.kinds.text import ngrams

    size = 1 << section.bits
    parts = []
    for at in range(0, len(texts), ROWS_AT_ONCE):
        found = ngrams.count(texts[at : at + ROWS_AT_ONCE], section.bits, section.longest)
        parts.append(csr_matrix((found.counts, found.columns.astype(np.int32), found.ends), shape=(len(found.ends) - 1, size)))
    return vstack(parts, format="csr") if parts else csr_matrix((0, size), dtype=np.float32)


def _features(counts: csr_matrix, rarity: np.ndarray) -> csr_matrix:
    """(1 + log(how often)) * rarity, each row of length 1."""
    import numpy as np
    from scipy.sparse import diags

    found = counts.copy()
    found.data = (1 + np.log(found.data)) * rarity[found.indices].astype(np.float32)
    lengths = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    return (diags(1 / np.maximum(lengths, 1e-9)) @ found).tocsr().astype(np.float32)


def _write(tables: Mapping[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tables), path)


def export(trained: Path, folder: Path, section: LinearSection) -> dict[str, Any]:
    """Put the tables into the bundle's `folder`; what `bundle.json` must say of them."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(trained / LINEAR_FILE, folder / LINEAR_FILE)
    return {"ngrams": {"bits": section.bits, "longest": section.longest}}
