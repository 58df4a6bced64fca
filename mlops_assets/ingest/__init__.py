"""Arrival, exactly once: what lands becomes rows of a ledger before anything else happens to it. Nothing is imported here."""
