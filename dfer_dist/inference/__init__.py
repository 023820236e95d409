"""Exported models: export, prediction, MLflow models and the authors' checkpoints."""
