"""The object store as a Dagster resource over `mlops_assets.store.ObjectStore`."""

from __future__ import annotations

import dagster as dg

from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore


class ObjectStoreResource(dg.ConfigurableResource[ObjectStore]):
    """`file:///dir` or `s3://bucket/prefix`.

    Attributes:
        endpoint_url: another S3 endpoint than AWS; empty for none.
    """

    url: str
    endpoint_url: str = ""

    @classmethod
    def of(cls, settings: Settings) -> ObjectStoreResource:
        return cls(url=settings.store_url, endpoint_url=settings.s3_endpoint_url or "")

    def open(self) -> ObjectStore:
        return ObjectStore(self.url, self.endpoint_url or None)
