"""Host lists of Slurm."""

from __future__ import annotations

import subprocess


def expand_host_list(hosts: str) -> list[str]:
    """Return the names in a host list of Slurm, such as ``n[1-2],login``.

    Slurm's ``scontrol`` expands it. Some containers lack it; then Submitit's parser does.
    """
    if "[" not in hosts:
        return [name for name in hosts.split(",") if name]
    try:
        return subprocess.check_output(
            ["scontrol", "show", "hostnames", hosts], text=True, stderr=subprocess.DEVNULL
        ).split()
    except (OSError, subprocess.CalledProcessError):
        # imported here: its import takes a tenth of a second
        from submitit.slurm.slurm import _parse_node_list

        names: list[str] = _parse_node_list(hosts)
        return names
