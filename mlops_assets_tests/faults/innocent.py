"""A code location with a job of the name that the attack of a web page launches; loaded by a real Dagster webserver."""

import dagster as dg


@dg.op
def touch() -> None:
    return


@dg.job
def sentiment_produce() -> None:
    touch()


defs = dg.Definitions(jobs=[sentiment_produce])
