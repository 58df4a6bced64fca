"""A code location whose resource has its address as config, as Dagster's documentation shows it: the control of the search."""

import dagster as dg


class Database(dg.ConfigurableResource):
    url: str


@dg.asset
def table(database: Database) -> None:
    return


defs = dg.Definitions(assets=[table], resources={"database": Database(url="postgresql://someone:PLANTED-control@host/db")})
