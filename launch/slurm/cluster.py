"""Settings of a cluster: ``configs/cluster/NAME.yaml``, and ``cluster.KEY=VALUE`` in a command.

They say where a run is trained, not what is trained, so they are part of neither its
configuration nor its hash. Values are read as plain text and converted by the type of their
field: ``${VAR}`` is left to the shell, and ``16:00`` stays a time.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from dfer_dist.utils.errors import UserError
from launch.slurm.sbatch_options import SbatchOptions, read_options

LOCAL = "local"  # this machine
PREFIX = "cluster."
_MIN_TRAINING_SECONDS = 60  # of a job, before its signal
_NULL = ("", "~", "null")
_SCRATCH = "DFER_SCRATCH"
_LEAST = {
    **dict.fromkeys(("nodes", "cpus_per_task", "time_minutes", "tasks_per_node"), 1),
    **dict.fromkeys(("gpus_per_node", "notice_seconds", "max_requeues"), 0),
}


@dataclass(frozen=True)
class Cluster:
    """Resources of the job that trains a fold, and how its nodes are set up."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1  # of each fold
    gpus_per_node: int = 0
    tasks_per_node: int | None = None  # ranks; null: one for each GPU, or one
    cpus_per_task: int = 8
    memory_gb: float | None = None  # of each node; null: Slurm's default
    time_minutes: int = 1440  # a fold that needs longer is requeued and resumes
    notice_seconds: int = 120  # Slurm sends USR2 this long before the time limit
    max_requeues: int = 30  # of each fold
    # folder on the nodes' own disks, such as $SLURM_TMPDIR: shards are copied there, once a node
    scratch: str | None = None
    setup: list[str] = field(default_factory=list)  # shell lines, such as `module load cuda`
    environment: dict[str, str] = field(default_factory=dict)  # variables of the job
    sbatch: SbatchOptions = field(default_factory=dict)  # further options of the folds' jobs
    summary: SbatchOptions = field(default_factory=dict)  # options of the summary job
    settings: list[str] = field(default_factory=list)  # of every experiment on this cluster

    @property
    def tasks(self) -> int:
        """Ranks on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Ranks of each fold."""
        return self.nodes * self.tasks

    @property
    def scratch_variable(self) -> str | None:
        """The scratch folder without braces, which OmegaConf would interpolate in a config.

        It is a variable of the job if only a shell can read it, as in ``${SLURM_TMPDIR:-/tmp}``.
        """
        plain = self.scratch and re.sub(r"\$\{(\w+)\}(?!\w)", r"$\1", self.scratch)
        return f"${_SCRATCH}" if plain and "${" in plain else plain

    @property
    def variables(self) -> dict[str, str]:
        """What the batch script exports: the environment, and scratch if only a shell reads it."""
        if self.scratch and self.scratch_variable == f"${_SCRATCH}":
            return self.environment | {_SCRATCH: self.scratch}
        return self.environment

    def all_settings(self, experiment: str, overrides: Sequence[str]) -> list[str]:
        """Return the settings of an experiment on this cluster.

        The command's own win over the cluster's; the last ones copy shards to the nodes' own disks,
        if they have scratch.
        """
        settings = [*self.settings, *overrides]
        return [*settings, *self._staging_settings(experiment, settings)]

    def _staging_settings(self, experiment: str, overrides: Sequence[str]) -> list[str]:
        # imports OmegaConf, which `dfer --help` need not wait for
        from dfer_dist.config.load import load_config
        from dfer_dist.data.shards.store import is_remote, resolve_location

        if not self.scratch:
            return []
        data = load_config(experiment, overrides).data
        cache = f"data.cache={self.scratch_variable}"
        if all(map(is_remote, data.locations)):
            return [cache]
        copied = [
            own if is_remote(own) else Path(resolve_location(own)).as_uri()
            for own in data.locations
        ]
        shards = copied[0] if isinstance(data.shards, str) else json.dumps(copied)
        return [f"data.shards={shards}", cache]


_DEFAULTS = Cluster()


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate settings of the experiment from ``cluster.KEY=VALUE``."""
    settings = [text for text in overrides if not text.startswith(PREFIX)]
    return settings, [text for text in overrides if text.startswith(PREFIX)]


def load_cluster(name: str, overrides: Sequence[str] = ()) -> Cluster:
    """Load a cluster's file and apply overrides to it.

    Parameters
    ----------
    name : str
        A name in ``configs/cluster/`` or the path of a YAML file.
    overrides : sequence of str
        Such as ``cluster.nodes=4``.

    Raises
    ------
    UserError
        No such file, an unknown key, a value of a wrong type, or values that exclude each other.
    """
    # imports OmegaConf, which `dfer --help` need not wait for
    from dfer_dist.config.load import find_config

    path = find_config(name, "cluster")
    settings: dict[str, Any] = {}
    _update(settings, _read_mapping(path), f"{path}: ")
    for text in overrides:
        _update(settings, _parse_override(text), PREFIX)
    return _build(settings)


def restore_cluster(settings: dict[str, Any], source: Path) -> Cluster:
    """Return the cluster that ``dataclasses.asdict`` turned into ``settings``, by any version.

    Raises
    ------
    UserError
        As for :func:`load_cluster`.
    """
    converted: dict[str, Any] = {}
    _update(converted, settings, f"{source}: settings.")
    return _build(converted)


class _TextLoader(yaml.BaseLoader):
    """YAML in which every scalar is its text and a repeated key is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise yaml.YAMLError(f"the key '{repeated}' is given twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _parse_yaml(text: str | bytes, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_TextLoader)
    except yaml.YAMLError as e:
        raise UserError(f"{source} cannot be read as YAML: {' '.join(str(e).split())}") from e


def _read_mapping(path: Path) -> dict[str, Any]:
    content = _parse_yaml(path.read_bytes(), str(path))
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, such as nodes: 2")
    return content


def _parse_override(text: str) -> dict[str, Any]:
    """Parse ``cluster.nodes=4``, or ``cluster.environment.NAME=VALUE``."""
    key, equals, value = text.partition("=")
    name, dot, entry = key.removeprefix(PREFIX).partition(".")
    if not (equals and name and (entry or not dot)):
        raise UserError(f"'{text}' is not of the form cluster.KEY=VALUE, such as cluster.nodes=4")
    content = _parse_yaml(value, f"'{text}'")
    if content is None:
        content = ""
    if entry:
        content = {entry: content}
    return {name: content}


def _update(settings: dict[str, Any], new: dict[str, Any], source: str) -> None:
    """Convert ``new`` and put it into ``settings``; mappings are merged."""
    types = {f.name: str(f.type).removesuffix(" | None") for f in fields(Cluster)}
    for key, value in new.items():
        if key not in types:
            close = difflib.get_close_matches(str(key), types, n=1)
            hint = f"known are {', '.join(types)}; an option of sbatch is given as sbatch.{key}"
            if close:
                hint = f"did you mean '{close[0]}'?"
            raise UserError(f"{source}{key}: unknown key; {hint}")
        converted = getattr(_DEFAULTS, key)
        if value not in (None, *_NULL) or isinstance(converted, int):
            convert = _to_minutes if key == "time_minutes" else _CONVERTERS[types[key]]
            converted = convert(value, f"{source}{key}")
        if key in _MAPPINGS:
            converted = settings.get(key, {}) | converted
        settings[key] = converted


def _build(settings: dict[str, Any]) -> Cluster:
    for key in ("sbatch", "summary"):
        settings[key] = read_options(settings.get(key, {}), key)
    cluster = Cluster(**settings)
    _check(cluster)
    return cluster


def _to_number(number: type[float], name: str, value: object, where: str) -> float:
    try:
        return number(str(value))
    except ValueError as e:
        hint = ""
        if where.endswith("gpus_per_node") and ":" in str(value):
            hint = f"; give the type as sbatch.gres=gpu:{value} too"
        raise UserError(f"{where}={value}: must be {name}{hint}") from e


def _to_minutes(value: object, where: str) -> int:
    """Convert minutes, or a time as ``sbatch`` takes it, such as ``1-12:00:00``."""
    text = str(value)
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise UserError(f"{where}={text}: must be whole minutes, or a time such as 1-12:00:00")
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    # hours come first only after days, or before minutes and seconds
    if not days and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return 1440 * int(days or 0) + 60 * hours + minutes + (seconds > 0)


def _to_text(value: object, where: str) -> str:
    if isinstance(value, dict | list):
        raise UserError(f"{where}={value}: must be a single value")
    return str(value)


def _to_lines(value: object, where: str) -> list[str]:
    lines = value if isinstance(value, list) else [value]
    return [_to_text(line, where) for line in lines]


def _to_texts(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise UserError(f"{where}={value}: must hold keys and values; give {where}.KEY=VALUE")
    return {str(key): _to_text(text, f"{where}.{key}") for key, text in value.items()}


# by the type of a field
_CONVERTERS: dict[str, Callable[[object, str], Any]] = {
    "int": partial(_to_number, int, "a whole number"),
    "float": partial(_to_number, float, "a number"),
    "str": _to_text,
    "list[str]": _to_lines,
    "dict[str, str]": _to_texts,
    "SbatchOptions": _to_texts,
}
_MAPPINGS = ("environment", "sbatch", "summary")


def _check(cluster: Cluster) -> None:
    for key, least in _LEAST.items():
        number = getattr(cluster, key)
        if number is not None and number < least:
            raise UserError(f"{PREFIX}{key}={number}: must be at least {least}")
    if cluster.gpus_per_node and cluster.tasks != cluster.gpus_per_node:
        raise UserError(
            f"cluster.tasks_per_node={cluster.tasks} with cluster.gpus_per_node="
            f"{cluster.gpus_per_node}: each GPU needs one rank; leave tasks_per_node out"
        )
    _check_environment(cluster)
    if 60 * cluster.time_minutes < cluster.notice_seconds + _MIN_TRAINING_SECONDS:
        raise UserError(
            f"cluster.time_minutes={cluster.time_minutes} with cluster.notice_seconds="
            f"{cluster.notice_seconds}: ranks would be preempted before they had trained for "
            f"{_MIN_TRAINING_SECONDS} s; give more time or less notice"
        )


def _check_environment(cluster: Cluster) -> None:
    for name in cluster.environment:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(
                f"cluster.environment.{name}: no shell exports a variable of this name: give "
                "letters, digits and _, no digit first"
            )
    texts = (*cluster.environment, *cluster.setup)
    if any(re.search("MLFLOW_TRACKING_(PASSWORD|TOKEN)", text) for text in texts):
        raise UserError(
            "cluster.environment, cluster.setup: a password would be written into the run's "
            "folder; export MLFLOW_TRACKING_PASSWORD in the shell that submits: jobs inherit it"
        )
