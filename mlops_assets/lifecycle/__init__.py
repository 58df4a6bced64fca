"""The promises: one lifecycle for every system. Nothing here names a system, and only `assets.py`, `checks.py`, `jobs.py` and
`sensors.py` know Dagster."""
