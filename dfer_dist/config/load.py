"""Reading and writing settings: typed defaults, YAML files, ``key=value`` arguments.

Loading is strict: an unknown key or a value of the wrong type is a
:class:`~dfer_dist.utils.errors.UserError` that names the key, and the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dfer_dist.config.checks import check_values
from dfer_dist.config.schema import RENAMED_KEYS, Config
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


def load_as(schema: type[T], path: Path, values: dict[str, Any]) -> T:
    """Return an object of the dataclass ``schema``.

    Its values are the defaults, replaced by those in the YAML file, replaced by ``values``.

    Raises
    ------
    UserError
        For an unknown key or a value of the wrong type.
    """
    tree = _merge(OmegaConf.structured(schema), _read_yaml(path), str(path))
    made = OmegaConf.to_object(_merge(tree, OmegaConf.create(values), "command line"))
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
    tree = _merge(OmegaConf.structured(Config), _read_yaml(path), str(path))
    return _finish(_override(tree, overrides))


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
    stored = _read_yaml(path)
    _rename_keys(stored)
    tree = _merge(OmegaConf.structured(Config), stored, str(path))
    return _finish(_override(tree, overrides))


def _rename_keys(stored: DictConfig) -> None:
    """Give settings that were renamed since version 1 their present names."""
    for old, new in RENAMED_KEYS.items():
        group_name, _, old_name = old.rpartition(".")
        group = stored.get(group_name)
        if isinstance(group, DictConfig) and old_name in group:
            group[new.rpartition(".")[2]] = group.pop(old_name)


def _override(tree: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return ``tree`` with ``key=value`` arguments merged into it."""
    for argument in overrides:
        key, eq, _ = argument.partition("=")
        if not eq or not key:
            raise UserError(f"'{argument}' is not of the form key=value, such as train.epochs=3")
        try:
            patch = OmegaConf.from_dotlist([argument])
        # The YAML parser's own errors have no common base with OmegaConf's.
        except Exception as e:
            raise UserError(f"'{argument}' cannot be read: {_one_line(e)}") from e
        tree = _merge(tree, patch, f"'{argument}'")
    return tree


def dump_config(config: Config) -> str:
    """Return all settings as YAML text, defaults included."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_yaml(path: Path) -> DictConfig:
    """Return the settings in a file; a relative path of the backbone's sizes starts at the file."""
    try:
        loaded = OmegaConf.load(path)
    # yaml.YAMLError and OSError
    except Exception as e:
        raise UserError(f"{path} cannot be read as YAML: {_one_line(e)}") from e
    if isinstance(loaded, ListConfig):
        raise UserError(f"{path} must hold keys and values, not a list")
    backbone = OmegaConf.select(loaded, "model.backbone", throw_on_missing=False)
    if isinstance(backbone, str) and backbone.endswith(".json"):
        loaded.model.backbone = str(path.resolve().parent / backbone)
    return loaded


def _merge(tree: DictConfig, patch: DictConfig, source: str) -> DictConfig:
    for key in _leaves(patch):
        known = _check_known(tree, key, source)
        if isinstance(known, DictConfig) and isinstance(
            OmegaConf.select(patch, key, throw_on_resolution_failure=False), ListConfig
        ):
            raise UserError(f"{source}: {key}: must hold keys and values, not a list")
    try:
        merged = OmegaConf.merge(tree, patch)
    except OmegaConfBaseException as e:
        where = getattr(e, "full_key", None)
        raise UserError(f"{source}: {f'{where}: ' if where else ''}{_one_line(e)}") from e
    assert isinstance(merged, DictConfig)
    return merged


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if isinstance(node, DictConfig) and len(node):
        return [
            leaf for k in map(str, node) for leaf in _leaves(node._get_node(k), f"{prefix}{k}.")
        ]
    return [prefix[:-1]] if prefix else []


def _check_known(tree: DictConfig, dotted: str, source: str) -> Any:
    """Return the default of a key; None below a dictionary, such as ``model.sentences``."""
    node: Any = tree
    for depth, part in enumerate(dotted.split(".")):
        if isinstance(node, DictConfig) and get_origin(node._metadata.ref_type) is dict:
            return None
        if not isinstance(node, DictConfig):
            above = ".".join(dotted.split(".")[:depth])
            raise UserError(f"{source}: '{above}' is a single value, it has no '{part}'")
        # `in` the node itself hides keys without a value.
        if part not in node.keys():  # noqa: SIM118
            raise UserError(f"{source}: unknown key '{dotted}'{_suggest_key(dotted, tree)}")
        node = node._get_node(part)
    return node


def _suggest_key(key: str, tree: DictConfig) -> str:
    """Return a hint about an unknown key: its present name, or the nearest known one."""
    if key in RENAMED_KEYS:
        return f"; it is now called '{RENAMED_KEYS[key]}'"
    return _nearest(key, _leaves(tree))


def _nearest(word: str, known: Any) -> str:
    """Return a hint for a mistyped name: the nearest known one, by its whole or its last part."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close:
        last = {n.rsplit(".", 1)[-1]: n for n in names}
        close = [
            last[m]
            for m in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
        ]
    return f"; did you mean '{close[0]}'?" if close else ""


def _one_line(e: BaseException) -> str:
    return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__


def _finish(tree: DictConfig) -> Config:
    try:
        missing = sorted(OmegaConf.missing_keys(tree))
        if missing:
            raise UserError(f"no value for {', '.join(missing)}: give {missing[0]}=…")
        config = OmegaConf.to_object(tree)
    # Such as ${oc.env:NAME} without that variable.
    except OmegaConfBaseException as e:
        raise UserError(f"{e.full_key}: {_one_line(e)}") from e
    assert isinstance(config, Config)
    check_values(config)
    return config
