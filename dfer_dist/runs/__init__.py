"""A run's folder and the records stored in it."""
