"""A Dagster resource that has no config. What a resource is configured with is shown in Dagster's UI, in every launchpad and over GraphQL,
and addresses hold passwords.

Belongs here: that base. Does not belong here: what a resource does.
"""

from typing import Any, Self

import dagster as dg

from mlops_assets.settings import Settings


class PlainResource(dg.ConfigurableResource[Any]):
    """A resource over the settings of this process: a dependency of it, of which Dagster shows the type alone."""

    settings: dg.ResourceDependency[Settings]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings=settings)
