"""The baseline of texts: logistic regression on character n-grams, learned in a minute on one core.

Each n-gram counts by its rarity. The mean of two models answers: in one an n-gram also counts by how much more often it stands under a
label than elsewhere (the ratio of naive Bayes; Wang and Manning 2012, "Baselines and Bigrams"). Belongs here: learning and writing the
tables. Does not belong here: reading them (`predict.py`), what labels mean.
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

    from mlops_assets.kinds.text.ngrams import Counts
    from mlops_assets.lifecycle.system import TrainContext, Trained

ROWS_AT_ONCE = 2_000

Section = TypeVar("Section", bound=Strict)
Model = TypeVar("Model", bound=LinearSection)


def sections(values: Mapping[str, Any], dataset: Section, model: type[Model]) -> tuple[Section, Model]:
    """The data set's section and one of the type `model`, with the parameters over them. Raises ValidationError."""
    read = type(dataset).model_validate(dataset.model_dump() | {"sampling_rate": values["sampling_rate"]})
    return read, model.model_validate({name: values[name] for name in model.model_fields})


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
    context.say(f"learned {len(tables['numbers'])} n-grams of {len(texts)} texts")
    figures = measure(scores(tables, section, measured[0]), measured[1])
    metrics = {f"validation_{name}": value for name, value in figures.items()}
    metrics |= {"train_rows": float(len(texts)), "steps": 1.0, "best_step": 1.0}
    context.log_metrics(metrics, 1)
    fitted = trainer.Fitted(1, 1, figures, "finished", None)
    return attempt.keep(context, fitted, metrics, flat, lambda folder: _write(tables, folder / LINEAR_FILE))


def learn(texts: Sequence[str], truth: np.ndarray, section: LinearSection, seed: int) -> dict[str, np.ndarray]:
    """The tables of `predict.LinearPredictor`; rarity and weights float16.

    Raises:
        ValueError: no n-gram stands in `min_rows` texts.
    """
    import numpy as np

    counts = _counted(texts, section.longest)
    numbers, rows = np.unique(counts.numbers, return_counts=True)
    numbers, rows = (found[rows >= section.min_rows] for found in (numbers, rows))
    if not len(numbers):
        raise ValueError(f"no n-gram stands in {section.min_rows} of the {len(texts)} training texts: land more, or lower min_rows")
    rarity = (np.log((1 + len(texts)) / (1 + rows)) + 1).astype(np.float16)
    features = _features(counts, numbers, rarity)
    learned = [_learn_column(features, has, section, seed) for has in truth.T]
    weights = np.stack([weights for weights, _ in learned], axis=1).astype(np.float16)
    return {"numbers": numbers, "rarity": rarity, "weights": weights, "bias": np.array([bias for _, bias in learned], np.float32)}


def _learn_column(features: csr_matrix, has: np.ndarray, section: LinearSection, seed: int) -> tuple[np.ndarray, float]:
    """Weights and bias of one label: the ratio is a factor of each n-gram, so that the mean of both models is one of the same kind."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    if has.all() or not has.any():  # nothing to tell apart: say what is always so
        return np.zeros(features.shape[1]), 20.0 if len(has) and has[0] else -20.0

    def regression(rows: csr_matrix, strength: float) -> tuple[np.ndarray, float]:
        model = LogisticRegression(C=strength, solver="liblinear", dual=True, tol=0.02, max_iter=200, random_state=seed).fit(rows, has)
        return model.coef_[0], float(model.intercept_[0])

    yes, no = (np.bincount(features[mask].indices, minlength=features.shape[1]) + 1.0 for mask in (has, ~has))
    ratio = np.log((yes / yes.sum()) / (no / no.sum())).astype(np.float32)
    weighted = features.copy()
    weighted.data *= ratio[weighted.indices]
    (weights, bias), (plain, plain_bias) = regression(weighted, section.strength), regression(features, section.plain_strength)
    return (weights * ratio + plain) / 2, (bias + plain_bias) / 2


def scores(tables: Mapping[str, np.ndarray], section: LinearSection, texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, columns] of tables in memory, as the predictor has them of the file."""
    import numpy as np

    sums = _features(_counted(texts, section.longest), tables["numbers"], tables["rarity"]) @ tables["weights"].astype(np.float32)
    return np.asarray(sums + tables["bias"], np.float32)


def _counted(texts: Sequence[str], longest: int) -> Counts:
    """The n-grams of all texts, counted some texts at a time."""
    import numpy as np

    from mlops_assets.kinds.text import ngrams

    parts, ends = [ngrams.count([], longest)], [np.zeros(1, np.int64)]
    for at in range(0, len(texts), ROWS_AT_ONCE):
        parts.append(ngrams.count(texts[at : at + ROWS_AT_ONCE], longest))
        ends.append(parts[-1].ends[1:] + ends[-1][-1])
    numbers, counts = (np.concatenate([part[place] for part in parts]) for place in (1, 2))
    return ngrams.Counts(np.concatenate(ends), numbers, counts)


def _features(counts: Counts, numbers: np.ndarray, rarity: np.ndarray) -> csr_matrix:
    """(1 + log(how often)) * rarity of the n-grams that `numbers` has, each row of length 1: float32 [texts, len(numbers)]."""
    import numpy as np
    from scipy.sparse import csr_matrix

    places = np.minimum(np.searchsorted(numbers, counts.numbers), len(numbers) - 1).astype(np.int32)
    known = numbers[places] == counts.numbers
    ends = np.concatenate([[0], np.cumsum(known)])[counts.ends]
    values, places = (1 + np.log(counts.counts[known])) * rarity[places[known]].astype(np.float32), places[known]
    rows = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    lengths = np.sqrt(np.bincount(rows, values.astype(np.float64) ** 2, len(ends) - 1))
    return csr_matrix(((values / lengths[rows]).astype(np.float32), places, ends), shape=(len(ends) - 1, len(numbers)))


def _write(tables: Mapping[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tables), path)


def export(trained: Path, folder: Path, section: LinearSection) -> dict[str, Any]:
    """Put the tables into the bundle's `folder`; what `bundle.json` must say of them."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(trained / LINEAR_FILE, folder / LINEAR_FILE)
    return {"ngrams": {"longest": section.longest}}
