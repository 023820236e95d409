"""Options of ``sbatch`` that are passed on, and those that have a setting of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dfer_dist.utils.errors import UserError

SbatchOptions = dict[str, str | bool]  # True: an option without a value; False: not sent
_FLAGS = {"true": True, **dict.fromkeys(("false", "null", "~", ""), False)}

_RANKS = "set cluster.nodes, and cluster.gpus_per_node or cluster.tasks_per_node"
_OUTPUT = "output goes into the run's folder; dfer logs prints it"
_REQUEUE = "folds are requeued by their own batch script; set cluster.max_requeues"
_SUBMIT = "dfer crossval submits the batch script itself"

# options that this program sets, and what to do instead
_NTASKS = ("ntasks", "ntasks-per-node", "ntasks-per-gpu")
_OWNED = {
    "array": "choose folds with --folds and --max-parallel",
    "chdir": "a job runs the code in its run's folder; set cluster.setup",
    "clusters": "jobs are followed on the default cluster only",
    **dict.fromkeys(("error", "open-mode", "output"), _OUTPUT),
    **dict.fromkeys(("export", "export-file"), "set cluster.environment"),
    "job-name": "set --name",
    "no-requeue": "set cluster.max_requeues=0",
    **dict.fromkeys(_NTASKS, _RANKS),
    "requeue": _REQUEUE,
    "signal": "set cluster.notice_seconds",
    "test-only": "use --dry-run, or dfer doctor",
    "wait": "use dfer crossval --wait",
    **dict.fromkeys(("help", "input", "parsable", "quiet", "usage", "version", "wrap"), _SUBMIT),
}
_SETTINGS = ("account", "constraint", "cpus-per-task", "gpus-per-node", "nodes", "partition", "qos")
_OWNED_BY_FOLDS = _OWNED | {
    "gpus": "set cluster.gpus_per_node",
    "mem": "set cluster.memory_gb",
    "time": "set cluster.time_minutes",
    **{name: f"set cluster.{name.replace('-', '_')}" for name in _SETTINGS},
}
_OWNED_BY_SUMMARY = _OWNED | {
    "dependency": "the summary waits for its folds",
    **dict.fromkeys(("nodes", *_NTASKS, "cpus-per-task"), "the summary is one process"),
    "requeue": "it is set for the summary job",
    "no-requeue": "submit again with dfer resume, or run dfer report",
}
_OWNED_BY = {"sbatch": _OWNED_BY_FOLDS, "summary": _OWNED_BY_SUMMARY}


def read_options(options: SbatchOptions, key: str) -> SbatchOptions:
    """Return options with names as ``sbatch`` writes them.

    Parameters
    ----------
    options : dict
        From the name, with or without leading dashes, to the value; ``true`` for an option
        without one, ``false`` or ``null`` for one that is not sent.
    key : str
        The setting of the cluster: ``sbatch`` for the folds, ``summary`` for the summary job.

    Raises
    ------
    UserError
        If an option is set by this program: the text says which setting to use instead.
    """
    owned = _OWNED_BY[key]
    read: SbatchOptions = {}
    for option, value in options.items():
        where, name = f"cluster.{key}.{option}", option.lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UserError(f"{where}: give the long name of an option of sbatch")
        # sbatch takes any unambiguous beginning of a name, such as --out
        begun = [taken for taken in owned if taken.startswith(name)]
        if begun:
            taken = next(taken for taken in (name, *begun) if taken in owned)
            raise UserError(f"{where}: dfer sets --{taken}; {owned[taken]}")
        read[name] = _FLAGS.get(str(value).lower(), value)
    return read


def sent(options: SbatchOptions) -> SbatchOptions:
    """Return the options that are sent, named as Submitit names its parameters."""
    return {name.replace("-", "_"): value for name, value in options.items() if value is not False}


def arguments(options: Mapping[str, object]) -> list[str]:
    """Return parameters of Submitit as arguments of ``sbatch``; True is an option without a value.

    Options that are None are left out.
    """
    names = {key: f"--{key.replace('_', '-')}" for key in options if options[key] is not None}
    return [
        name if options[key] is True else f"{name}={options[key]}" for key, name in names.items()
    ]


def count_gpus(gres: str) -> int:
    """Return the GPUs in a list of generic resources, such as ``gpu:a100:4,nvme:1``."""
    count = 0
    for item in re.sub(r"\(.*?\)", "", gres).removeprefix("gres:").split(","):
        name, *rest = item.strip().split(":")
        if name == "gpu":
            count += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return count
