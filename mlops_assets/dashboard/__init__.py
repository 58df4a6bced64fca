"""The Streamlit page for people who do not write code. It asks the model server, the ledgers and Dagster; it decides nothing."""
