"""Run folders, and a Slurm of fake clients."""

from tests.helpers.slurm.fake_clients import slurm
from tests.helpers.slurm.run_folders import run, submitted

__all__ = ["run", "slurm", "submitted"]
