"""Reading and writing settings: typed defaults, YAML files, ``key=value`` arguments.

Loading is strict: an unknown key or a value of the wrong type is a
:class:`~dfer_dist.utils.errors.UserError` that names the key, and the nearest known one.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dfer_dist.config.checks import check_values
from dfer_dist.config.schema import RENAMED_KEYS, Config, walk_settings
from dfer_dist.utils.errors import UserError

T = TypeVar("T")
# A file in configs/ that is not an experiment: the metrics of papers.
PUBLISHED = "published"


def config_dir() -> Path:
    """Return the folder of the experiments: the package's ``configs``.

    In a checkout it is a link to the top-level ``configs/``.
    """
    return Path(__file__).resolve().parents[1] / "configs"


def find_config(name: str, kind: str = "") -> Path:
    """Return the path of a YAML file.

    Parameters
    ----------
    name : str
        A path, or a name in ``configs/`` (an experiment) or ``configs/KIND/``.
    kind : str
        The folder in ``configs/``.

    Raises
    ------
    UserError
        If the file does not exist; the message lists the known names.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    known = {file.stem: file for file in sorted((config_dir() / kind).glob("*.yaml"))}
    if not kind:
        known.pop(PUBLISHED, None)
    if name in known:
        return known[name]
    raise UserError(
        f"no {kind or 'experiment'} '{name}': give a YAML file or one of "
        f"{', '.join(sorted(known))}{_nearest(name, known)}"
    )


def make_as(schema: type[T], values: DictConfig, source: str) -> T:
    """Return an object of the dataclass ``schema``: its defaults, replaced by ``values``.

    ``source`` says in messages where these are from.

    Raises
    ------
    UserError
        For an unknown key or a value of the wrong type.
    """
    made = OmegaConf.to_object(_merge(OmegaConf.structured(schema), values, source))
    assert isinstance(made, schema)
    return made


def load_config(experiment: str, overrides: Sequence[str] = ()) -> Config:
    """Return the settings of an experiment, checked against each other.

    They are the defaults, replaced by the experiment's YAML file, replaced by ``overrides``.

    Parameters
    ----------
    experiment : str
        A name in ``configs/`` or the path of a YAML file.
    overrides : sequence of str
        Arguments such as ``train.epochs=3``.

    Raises
    ------
    UserError
        For an unknown key, a wrong type, a value out of range, or an unknown experiment.
    """
    path = find_config(experiment)
    return _build(read_yaml(path), path, overrides)


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the settings stored with a run, a checkpoint or an exported model.

    Files of earlier versions are read too: :data:`~dfer_dist.config.schema.RENAMED_KEYS`.

    Parameters
    ----------
    path : Path
        A file that :func:`dump_config` filled.
    overrides : sequence of str
        Arguments such as ``data.shards=DIR``, by their present names.

    Raises
    ------
    UserError
        As for :func:`load_config`.
    """
    stored = read_yaml(path)
    for old, new in RENAMED_KEYS.items():
        group, _, name = old.rpartition(".")
        if name in (stored.get(group) or ()):
            OmegaConf.update(stored, new, stored[group].pop(name))
    return _build(stored, path, overrides)


_SHARDS = "data.shards"
_TEXT_KEYS = {k for k, f, _ in walk_settings(Config()) if f.type in ("str", "str | None")}


@cache
def _defaults() -> DictConfig:
    tree = OmegaConf.structured(Config)
    assert isinstance(tree, DictConfig)
    return tree


def _build(settings: DictConfig, path: Path, overrides: Sequence[str]) -> Config:
    """Return the defaults, replaced by ``settings`` of the file ``path``, then ``overrides``."""
    tree = _merge(copy.deepcopy(_defaults()), settings, str(path))
    for argument in overrides:
        tree = _merge(tree, _parse(argument), f"'{argument}'")
    try:
        missing = sorted(OmegaConf.missing_keys(tree))
        if missing:
            raise UserError(f"no value for {', '.join(missing)}: give {missing[0]}=…")
        config = OmegaConf.to_object(tree)
    # Such as ${oc.env:NAME} without that variable.
    except OmegaConfBaseException as e:
        raise UserError(f"{e.full_key}: {_one_line(e)}") from e
    assert isinstance(config, Config)
    # A folder whose name is a number.
    if isinstance(config.data.shards, int | float):
        config.data.shards = str(config.data.shards)
    check_values(config)
    return config


def _parse(argument: str) -> DictConfig:
    """Return the setting in an argument; text stays as it is, such as a folder 0123."""
    key, eq, value = argument.partition("=")
    if not eq or not key:
        raise UserError(f"'{argument}' is not of the form key=value, such as train.epochs=3")
    is_list = value.startswith("[") and value.endswith("]")
    is_text = key in _TEXT_KEYS or (key == _SHARDS and not is_list)
    if is_text and value not in ("null", "~") and value[:1] not in "'\"":
        patch = OmegaConf.create({})
        OmegaConf.update(patch, key, value)
        return patch
    try:
        return OmegaConf.from_dotlist([argument])
    # The YAML parser's own errors have no common base with OmegaConf's.
    except Exception as e:
        raise UserError(f"'{argument}' cannot be read: {_one_line(e)}") from e


def dump_config(config: Config) -> str:
    """Return all settings as YAML text, defaults included."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_yaml(path: Path) -> DictConfig:
    """Return the settings in a file; a relative path of the backbone's sizes starts at the file."""
    try:
        loaded = OmegaConf.load(path)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1
        raise UserError(f"{path} cannot be read as YAML: line {line}: {e.problem}") from e
    # other errors of YAML, and OSError
    except Exception as e:
        raise UserError(f"{path} cannot be read as YAML: {_one_line(e)}") from e
    if isinstance(loaded, ListConfig):
        raise UserError(f"{path} must hold keys and values, not a list")
    backbone = OmegaConf.select(loaded, "model.backbone", throw_on_missing=False)
    if isinstance(backbone, str) and backbone.endswith(".json"):
        family, colon, file = backbone.rpartition(":")
        loaded.model.backbone = f"{family}{colon}{path.resolve().parent / file}"
    return loaded


def _merge(tree: DictConfig, patch: DictConfig, source: str) -> DictConfig:
    try:
        merged = OmegaConf.unsafe_merge(tree, patch)
    except ConfigKeyError as e:
        # its key ends at the first part that is unknown, and begins in the item of a list
        known = str(e.full_key)
        key = next((leaf for leaf in _leaves(patch) if leaf.startswith(known)), known)
        hint = _nearest(key, _leaves(tree))
        if key in RENAMED_KEYS:
            hint = f"; it is now called '{RENAMED_KEYS[key]}'"
        raise UserError(f"{source}: unknown key '{key}'{hint}") from e
    except (OmegaConfBaseException, TypeError) as e:
        where = getattr(e, "full_key", None)
        fault = _other_kind(tree, patch) or f"{where or 'a value'}: {_one_line(e)}"
        if ":" in str(where):
            fault = f"'{where}' has no value: put a space after the colon, as in {{dfew: 1}}"
        raise UserError(f"{source}: {fault}") from e
    assert isinstance(merged, DictConfig)
    return merged


def _other_kind(tree: DictConfig, patch: DictConfig, prefix: str = "") -> str | None:
    """Return what is wrong with the first value that is of another kind than its setting."""
    if tree._is_none():
        return None
    for name in map(str, patch):
        setting, given = tree._get_node(name), patch._get_node(name)
        # A key that the user chose, or null: OmegaConf's own message says more.
        if setting is None or given is None or given._is_none():
            continue
        if _kind(setting) != _kind(given):
            return f"'{prefix}{name}' is {_kind(setting)}, not {_kind(given)}"
        if isinstance(setting, DictConfig) and isinstance(given, DictConfig):
            fault = _other_kind(setting, given, f"{prefix}{name}.")
            if fault is not None:
                return fault
    return None


def _kind(node: Any) -> str:
    if isinstance(node, DictConfig):
        return "a group of settings"
    return "a list" if isinstance(node, ListConfig) else "a single value"


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if isinstance(node, DictConfig) and len(node):
        return [
            leaf for k in map(str, node) for leaf in _leaves(node._get_node(k), f"{prefix}{k}.")
        ]
    return [prefix[:-1]] if prefix else []


def _nearest(word: str, known: Collection[str]) -> str:
    """Return a hint for a mistyped name: the nearest known one, by its whole or its last part."""
    by_last = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(word, known, n=1)
    close = close or difflib.get_close_matches(word.rpartition(".")[2], by_last, n=1)
    return f"; did you mean '{by_last.get(close[0], close[0])}'?" if close else ""


def _one_line(e: BaseException) -> str:
    return str(e).strip().partition("\n")[0] or type(e).__name__
