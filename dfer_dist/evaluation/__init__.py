"""Evaluation: predictions, scores and their significance."""
