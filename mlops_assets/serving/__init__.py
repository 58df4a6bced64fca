"""What answers users: FastAPI over ONNX Runtime, following the signed promotion ledger.

Nothing in here imports torch, transformers, dagster, mlflow or pandas (a test starts a server and looks): a server is small, starts at
once, and cannot be made to run code that came with a model.
"""
