"""Run Slurm's clients, such as ``squeue``, and read what they print."""

from __future__ import annotations

import os
import re
import subprocess

from dfer_dist.utils.errors import UserError

# the user's own variables that may filter jobs or change what is printed
_HABITS = ("SQUEUE_", "SINFO_", "SBATCH_")


class SlurmError(UserError):
    """A reason that Slurm gives for an error."""


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
    env = {key: value for key, value in os.environ.items() if not key.startswith(_HABITS)}
    env["SLURM_TIME_FORMAT"] = "standard"
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
