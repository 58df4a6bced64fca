-- Run once by the official image: three databases, because MLflow does not start inside Dagster's.
CREATE DATABASE dagster;
CREATE DATABASE mlflow;
CREATE DATABASE mlops;
