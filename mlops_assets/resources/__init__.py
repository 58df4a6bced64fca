"""The outside world as Dagster resources, each a thin shell over a plain class. Nothing is re-exported: importing the package is free."""
