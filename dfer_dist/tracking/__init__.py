"""Metrics logging: a local file first, then MLflow."""
