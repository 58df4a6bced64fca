"""Partitioned asset checks. They are a preview feature of Dagster: this one helper is all that knows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg


def partitioned_check(
    *,
    asset: dg.AssetKey,
    name: str,
    partitions_def: dg.PartitionsDefinition[str],
    description: str,
    blocking: bool = True,
    op_tags: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetChecksDefinition]:
    """An asset check with the asset's own partitions; blocking unless told otherwise."""

    def decorate(function: Callable[..., Any]) -> dg.AssetChecksDefinition:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)
            check = dg.asset_check(
                asset=asset, name=name, blocking=blocking, description=description, partitions_def=partitions_def, op_tags=op_tags
            )
            return check(function)

    return decorate
