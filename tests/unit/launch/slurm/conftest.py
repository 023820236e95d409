"""Run folders."""

from tests.helpers.slurm.run_folders import run, submitted

__all__ = ["run", "submitted"]
