"""mlops_assets: machine learning as Dagster assets. Nothing is imported here, so that every entry point pays only for what it uses."""
