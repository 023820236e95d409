"""Data: from the official lists to batches."""
