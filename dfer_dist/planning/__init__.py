"""Estimates of memory and time ahead of a run."""
