"""Reading and writing settings: typed defaults, YAML differences, ``key=value`` words.

Loading is strict: an unknown key or a value of a wrong type is a :class:`~dfer_dist.UserError` that names the key and,
where one is near, the key that was probably meant.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dfer_dist.config.schema import Config, check_values
from dfer_dist.utils.errors import UserError

T = TypeVar("T")
PUBLISHED = "published"  # a file in configs/ that is no experiment: figures of papers


def config_dirs() -> list[Path]:
    """Folders searched for experiments: the checkout's ``configs/``, then the copy inside an installed package."""
    here = Path(__file__).resolve().parents[1]
    checkout = [here.parent / "configs"] if (here.parent / "setup.cfg").is_file() else []
    return [d for d in (*checkout, here / "configs") if d.is_dir()]


def find_config(name: str, kind: str = "") -> Path:
    """A YAML file, given as a name in ``configs/`` (an experiment) or ``configs/KIND/``, or as a path.

    Raises
    ------
    UserError
        If there is no such file; the text lists the names there are.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    known: dict[str, Path] = {}
    for folder in config_dirs():
        for file in sorted((folder / kind).glob("*.yaml")):
            known.setdefault(file.stem, file)
    if not kind:
        known.pop(PUBLISHED, None)
    if name in known:
        return known[name]
    raise UserError(
        f"no {kind or 'experiment'} '{name}': give a YAML file or one of {', '.join(sorted(known))}{_nearest(name, known)}"
    )


def load_as(schema: type[T], path: Path, values: dict[str, Any]) -> T:
    """An object of the dataclass ``schema``: its defaults, then the YAML file's values, then ``values``.

    Raises
    ------
    UserError
        Unknown key or wrong type.
    """
    tree = _merge(OmegaConf.structured(schema), _read_yaml(path), str(path))
    made = OmegaConf.to_object(_merge(tree, OmegaConf.create(values), "command line"))
    assert isinstance(made, schema)
    return made


def load_config(experiment: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Typed defaults, then the experiment's YAML, then ``key=value`` words, checked against each other.

    Parameters
    ----------
    experiment : str
        A name in ``configs/`` or the path of a YAML file.
    overrides : sequence of str
        Words such as ``train.epochs=3``.

    Raises
    ------
    UserError
        Unknown key, wrong type, value out of range, or no such experiment.
    """
    path = find_config(experiment)
    tree = _merge(OmegaConf.structured(Config), _read_yaml(path), str(path))
    for word in overrides:
        key, eq, _ = word.partition("=")
        if not eq or not key:
            raise UserError(f"'{word}' is not of the form key=value, such as train.epochs=3")
        try:
            patch = OmegaConf.from_dotlist([word])
        except Exception as e:  # the YAML parser's own errors have no common base with OmegaConf's
            raise UserError(f"'{word}' cannot be read: {_one_line(e)}") from e
        tree = _merge(tree, patch, f"'{word}'")
    return _finish(tree)


def read_config(path: Path) -> Config:
    """The resolved settings of a run, as :func:`write_config` left them."""
    return _finish(_merge(OmegaConf.structured(Config), _read_yaml(path), str(path)))


def dump_config(config: Config) -> str:
    """The whole tree as YAML text, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_yaml(path: Path) -> DictConfig:
    """The file's own keys; a backbone's sizes, where they are a file named relatively, lie beside it."""
    try:
        loaded = OmegaConf.load(path)
    except Exception as e:  # yaml.YAMLError and OSError
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
    """The default that a key stands for; None for a key of the user's own, such as a class name below model.sentences."""
    node: Any = tree
    for depth, part in enumerate(dotted.split(".")):
        if isinstance(node, DictConfig) and get_origin(node._metadata.ref_type) is dict:
            return None
        if not isinstance(node, DictConfig):
            raise UserError(
                f"{source}: '{'.'.join(dotted.split('.')[:depth])}' is a single value, it has no '{part}'"
            )
        if part not in node.keys():  # noqa: SIM118 (`in` the node itself hides keys without a value)
            raise UserError(f"{source}: unknown key '{dotted}'{_nearest(dotted, _leaves(tree))}")
        node = node._get_node(part)
    return node


def _nearest(word: str, known: Any) -> str:
    """A hint for a mistyped word: the nearest known one, by its whole name or by its last part."""
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
    except OmegaConfBaseException as e:  # such as ${oc.env:NAME} without that variable
        raise UserError(f"{e.full_key}: {_one_line(e)}") from e
    assert isinstance(config, Config)
    check_values(config)
    return config
