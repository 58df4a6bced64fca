"""One folder per system. Systems never import each other."""

#: Every system: `<name>/assets.py` has its Dagster half, `<name>/training.py` its `SYSTEM`.
SYSTEMS = ("sentiment", "tires", "hate_speech")
