"""The sections of configs/ that every system of texts may have, and what a bundle of a linear model has to keep to. No behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field, PositiveFloat, PositiveInt

from mlops_assets.settings import Strict

#: The file of a linear model's tables; a table has 2**bits rows; n-grams have so many letters at most.
LINEAR_FILE: Final = "linear.safetensors"
MOST_BITS: Final = 24
LONGEST_NGRAM: Final = 8
#: The variant's name in every system that has it.
LINEAR: Final = "linear"
#: What `mlops train` and the launchpad may override of it, beside the data set's.
LINEAR_PARAMETERS: Mapping[str, type] = {"bits": int, "longest": int, "min_rows": int, "strength": float}


class LinearSection(Strict):
    """A linear model of character n-grams."""

    bits: int = Field(default=22, ge=8, le=MOST_BITS)
    """The table of n-grams has 2**bits rows; those that share one are taken for one."""
    longest: int = Field(default=5, ge=1, le=LONGEST_NGRAM)
    """Letters of the longest n-grams."""
    min_rows: PositiveInt = 2
    """Rows in which an n-gram must stand to be learned."""
    strength: PositiveFloat = 8.0
    """How closely the training rows are followed (scikit-learn's C)."""
