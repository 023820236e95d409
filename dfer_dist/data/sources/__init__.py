"""Readers of data sets: from a download to clip records."""
