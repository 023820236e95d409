"""Runs of several settings and seeds: what ``--sweep`` and ``--seeds`` ask for."""
