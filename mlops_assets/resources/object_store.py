"""The object store as a Dagster resource over `mlops_assets.store.ObjectStore`."""

from __future__ import annotations

from mlops_assets.resources.plain import PlainResource
from mlops_assets.store import ObjectStore


class ObjectStoreResource(PlainResource):
    """The object store: `file:///dir` or `s3://bucket/prefix`."""

    def open(self) -> ObjectStore:
        return ObjectStore.of(self.settings)
