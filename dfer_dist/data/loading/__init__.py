"""Loading: from the plan of an epoch to batches."""
