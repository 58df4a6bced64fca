"""The sections of configs/ that every system of texts may have, and what a bundle of a linear model has to keep to. No behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field, PositiveFloat, PositiveInt

from mlops_assets.settings import Strict

#: The file of a linear model's tables; n-grams have so many letters at most.
LINEAR_FILE: Final = "linear.safetensors"
LONGEST_NGRAM: Final = 8
#: The variant's name in every system that has it.
LINEAR: Final = "linear"
#: What `mlops train` and the launchpad may override of it, beside the data set's.
LINEAR_PARAMETERS: Mapping[str, type] = {"longest": int, "min_rows": int, "strength": float, "plain_strength": float}


class LinearSection(Strict):
    """A linear model of character n-grams: the mean of two, one of them with the ratio of naive Bayes."""

    longest: int = Field(default=5, ge=1, le=LONGEST_NGRAM)
    """Letters of the longest n-grams."""
    min_rows: PositiveInt = 2
    """Rows in which an n-gram must stand to be learned."""
    strength: PositiveFloat = 8.0
    """How closely the training rows are followed with the ratio (scikit-learn's C)."""
    plain_strength: PositiveFloat = 10.0
    """And without it."""
