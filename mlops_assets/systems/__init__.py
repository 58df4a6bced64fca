"""One folder per system. Systems never import each other."""

#: Every system with a model: `<name>/assets.py` has its Dagster half, `<name>/training.py` its `SYSTEM`.
SYSTEMS = ("sentiment", "tires", "hate_speech", "digits")
#: Systems without a model: `<name>/assets.py` alone.
DATA_SYSTEMS = ("disposal_policy",)
