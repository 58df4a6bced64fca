"""Watching what runs: alerts, drift, metrics."""
