"""Training, export and measuring that several systems share. Nothing here names a system or imports Dagster."""
