"""Benchmarks of loading, training, evaluation and saving."""
