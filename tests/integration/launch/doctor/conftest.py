"""Slurm clients that print what a test sets."""

from tests.helpers.slurm.scripted_slurm import slurm

__all__ = ["slurm"]
