"""Options of ``sbatch`` that are passed on, and those that have a setting of their own."""

from __future__ import annotations

import re

from dfer_dist.utils.errors import UserError

SbatchOptions = dict[str, str | bool]  # True: an option without a value; False: not sent

_RANKS = "set cluster.nodes, and cluster.gpus_per_node or cluster.tasks_per_node"
_OUTPUT = "output goes into the run's folder; dfer logs prints it"
_REQUEUE = "folds are requeued by their own batch script; set cluster.max_requeues"
_SUBMIT = "dfer crossval submits the batch script itself"

# options that this program sets, and what to do instead
_OWNED = {
    "array": "choose folds with --folds and --max-parallel",
    "chdir": "a job runs the code in its run's folder; set cluster.setup",
    "clusters": "jobs are followed on the default cluster only",
    "error": _OUTPUT,
    "export": "set cluster.environment",
    "export-file": "set cluster.environment",
    "help": _SUBMIT,
    "input": _SUBMIT,
    "job-name": "set --name",
    "no-requeue": "set cluster.max_requeues=0",
    "ntasks": _RANKS,
    "ntasks-per-node": _RANKS,
    "ntasks-per-gpu": _RANKS,
    "open-mode": _OUTPUT,
    "output": _OUTPUT,
    "parsable": _SUBMIT,
    "quiet": _SUBMIT,
    "requeue": _REQUEUE,
    "signal": "set cluster.notice_seconds",
    "test-only": "use --dry-run, or dfer doctor",
    "usage": _SUBMIT,
    "version": _SUBMIT,
    "wait": "use dfer crossval --wait",
    "wrap": _SUBMIT,
}
_OWNED_BY_FOLDS = _OWNED | {
    "account": "set cluster.account",
    "constraint": "set cluster.constraint",
    "cpus-per-task": "set cluster.cpus_per_task",
    "gpus": "set cluster.gpus_per_node",
    "gpus-per-node": "set cluster.gpus_per_node",
    "mem": "set cluster.memory_gb",
    "nodes": "set cluster.nodes",
    "partition": "set cluster.partition",
    "qos": "set cluster.qos",
    "time": "set cluster.time_minutes",
}
_SUMMARY_TASK = "the summary is one process"
_OWNED_BY_SUMMARY = _OWNED | {
    "dependency": "the summary waits for its folds",
    "nodes": _SUMMARY_TASK,
    "ntasks": _SUMMARY_TASK,
    "ntasks-per-node": _SUMMARY_TASK,
    "ntasks-per-gpu": _SUMMARY_TASK,
    "cpus-per-task": _SUMMARY_TASK,
    "requeue": "it is set for the summary job",
    "no-requeue": "submit again with dfer resume, or run dfer report",
}


def read_options(options: SbatchOptions, where: str, summary: bool) -> SbatchOptions:
    """Return options with names as ``sbatch`` writes them.

    Parameters
    ----------
    options : dict
        From the name, with or without leading dashes, to the value; ``true`` for an option
        without one, ``false`` or ``null`` for one that is not sent.
    where : str
        The setting, for errors.
    summary : bool
        Whether they are for the summary job instead of the folds.

    Raises
    ------
    UserError
        If an option is set by this program: the text says which setting to use instead.
    """
    owned = _OWNED_BY_SUMMARY if summary else _OWNED_BY_FOLDS
    read: SbatchOptions = {}
    for key, value in options.items():
        name = key.lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UserError(f"{where}.{key}: give the long name of an option of sbatch")
        # sbatch takes any unambiguous beginning of a name, such as --out
        begun = [option for option in owned if option.startswith(name)]
        if begun:
            taken = name if name in owned else begun[0]
            raise UserError(f"{where}.{key}: dfer sets --{taken}; {owned[taken]}")
        read[name] = _flag(value)
    return read


def _flag(value: str | bool) -> str | bool:
    if isinstance(value, bool):
        return value
    flags = {"true": True, "false": False, "null": False, "~": False, "": False}
    return flags.get(value.lower(), value)


def sent(options: SbatchOptions) -> SbatchOptions:
    """Return the options that are sent, named as Submitit names its parameters."""
    return {name.replace("-", "_"): value for name, value in options.items() if value is not False}


def arguments(options: SbatchOptions) -> list[str]:
    """Return the options as arguments of ``sbatch``."""
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value is not False
    ]


def count_gpus(gres: str) -> int:
    """Return the GPUs in a list of generic resources, such as ``gpu:a100:4,nvme:1``."""
    count = 0
    for item in re.sub(r"\(.*?\)", "", gres).removeprefix("gres:").split(","):
        name, *rest = item.strip().split(":")
        if name == "gpu":
            count += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return count
