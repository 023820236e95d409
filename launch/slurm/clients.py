"""Run Slurm's clients, such as ``squeue``, and read what they print."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from dfer_dist.utils.errors import UserError

# variables of the user's shell or of an outer job that would change options, filter jobs, or give
# ranks another job's place: a new job gets its own
_FOREIGN = re.compile(
    "(SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SCONTROL|SCANCEL|SLURM|SLURMD|TORCHELASTIC|PMI|PMIX|OMPI)_.*"
    "|((LOCAL|GROUP|ROLE|NODE)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|LOCAL_SIZE"
    "|MASTER_(ADDR|PORT)"
    "|(CUDA|HIP|ROCR)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL"
)
# where Slurm is, and who the user is
_OWN = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


class SlurmError(UserError):
    """A reason that Slurm gives for an error."""


def clean_environment() -> dict[str, str]:
    """Return the variables of this process, without those of other jobs and of other options."""
    return {k: v for k, v in os.environ.items() if k in _OWN or not _FOREIGN.fullmatch(k)}


def foreign_variables() -> list[str]:
    """Return the variables of this process that jobs do not inherit."""
    return sorted(os.environ.keys() - clean_environment().keys())


@contextmanager
def cleaned_environment() -> Iterator[None]:
    """Leave foreign variables out of this process's environment, which jobs inherit."""
    before = {name: os.environ.pop(name) for name in foreign_variables()}
    try:
        yield
    finally:
        os.environ.update(before)


def run_client(*command: str, timeout: float | None = 15) -> str:
    """Run a client such as ``scontrol`` and return what it prints.

    Parameters
    ----------
    *command : str
        The client and its arguments.
    timeout : float, optional
        Seconds for it to answer; None to wait for ever.

    Raises
    ------
    SlurmError
        If it ends with an error, or does not answer.
    """
    env = clean_environment() | {"SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise SlurmError(f"{command[0]} does not answer within {e.timeout:.0f} s") from e
    except OSError as e:
        raise SlurmError(f"{command[0]}: {e.strerror}") from e
    if done.returncode:
        lines = (line for line in done.stderr.splitlines() if line.strip())
        reasons = "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in lines)
        raise SlurmError(reasons or f"{command[0]} ends with status {done.returncode}")
    # sbatch --test-only prints its verdict to stderr
    return done.stdout + (done.stderr if "--test-only" in command else "")


def parse_pairs(line: str) -> dict[str, str]:
    """Return the ``KEY=VALUE`` pairs of ``scontrol --oneliner``."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)
