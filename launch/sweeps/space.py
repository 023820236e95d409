"""The space of a search: a YAML file with the values that settings may have.

::

    optim.lr_image: {low: 1.0e-6, high: 1.0e-4, log: true}
    train.epochs: {low: 10, high: 50, int: true}
    train.label_smoothing: [0.0, 0.1]
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from dfer_dist.config.applicable import idle_settings
from dfer_dist.config.load import load_config, read_yaml
from dfer_dist.config.schema import NEUTRAL, Config, flatten
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_FORM = "give {low: …, high: …}, with log: true or int: true, or a list of choices"
# Settings that a search may not choose, and why.
_FIXED = {
    "data.folds_hash": "the search sets it",
    "train.seed": "the best one would be luck; dfer crossval --seeds says how much seeds vary",
    "train.selection": "scores of different selections are not comparable",
}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float = MISSING
    high: float = MISSING
    log: bool = False
    int: bool = False

    def round(self, value: float) -> float:
        """Return a value with four digits, which is what a trial is trained with."""
        if self.int:
            return round(value)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """The values of each setting: a range, or choices as the command line writes them."""

    values: dict[str, Range | list[str]]
    stored: dict[str, Any]  # as in the file

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions by setting."""
        from optuna import distributions as of

        found: dict[str, BaseDistribution] = {}
        for key, own in self.values.items():
            if isinstance(own, list):
                found[key] = of.CategoricalDistribution(own)
            elif own.int:
                found[key] = of.IntDistribution(int(own.low), int(own.high), own.log)
            else:
                found[key] = of.FloatDistribution(own.low, own.high, own.log)
        return found

    def settings(self, params: Mapping[str, Any]) -> list[str]:
        """Return a trial's parameters as settings, such as ``optim.lr_image=3.2e-05``."""
        texts = []
        for key, value in params.items():
            own = self.values[key]
            if isinstance(own, Range):
                value = own.round(value)
            texts.append(f"{key}={value}")
        return texts


def read_space(path: Path, experiment: str, overrides: Sequence[str]) -> Space:
    """Read a space for an experiment with ``overrides``.

    Raises
    ------
    UserError
        If the file is missing, is no mapping or is empty, names a setting that is unknown, changes
        no score, cannot matter or is given in ``overrides``, or has a value that the setting may
        not have.
    """
    stored = OmegaConf.to_container(read_yaml(path))
    assert isinstance(stored, dict)
    if not stored:
        raise UserError(f"{path} is empty: for each setting {_FORM}")
    given = {text.partition("=")[0] for text in overrides}
    values: dict[str, Range | list[str]] = {}
    changes: list[dict[str, Any]] = [{}]
    known = flatten(Config())
    for key, raw in stored.items():
        key = str(key)
        source = f"{path}: {key}"
        if any(name.startswith(f"{key}.") for name in known):
            name = _first_leaf(key, raw, known)
            raise UserError(f"{source} is a group of settings: write {name}: … for each of them")
        own = values[key] = _parse(raw, source)
        _check_key(key, source, given)
        samples: list[Any] = (
            own if isinstance(own, list) else [own.round(own.low), own.round(own.high)]
        )
        try:
            for value in samples:
                made = flatten(load_config(experiment, [*overrides, f"{key}={value}"]))
                changes.append({key: made[key]})
        except UserError as e:
            # 1.0 is none
            hint = "; add int: true" * ("to Integer" in str(e))
            raise UserError(f"{source}: {e}{hint}") from e
    _check_effect(set(values), flatten(load_config(experiment, overrides)), changes, path)
    return Space(values, {str(key): raw for key, raw in stored.items()})


def _first_leaf(name: str, raw: Any, known: Collection[str]) -> str:
    """Return the name of the first setting in a group."""
    while isinstance(raw, dict) and raw and name not in known:
        key, raw = next(iter(raw.items()))
        name += f".{key}"
    return name


def _parse(raw: Any, source: str) -> Range | list[str]:
    if isinstance(raw, list):
        texts = [_text(value) for value in raw]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise UserError(f"{source}: give two choices or more, each once")
        return texts
    try:
        own = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Range), raw))
    # of OmegaConf, which has several
    except Exception as e:
        raise UserError(f"{source}: {_FORM}") from e
    assert isinstance(own, Range)
    if not own.low < own.high:
        raise UserError(f"{source}: low={own.low:g} is not below high={own.high:g}")
    if own.log and own.low <= 0:
        raise UserError(f"{source}: low={own.low:g} has no logarithm: give a number above 0")
    if own.int and (own.low % 1 or own.high % 1):
        raise UserError(f"{source}: with int: true low and high are whole numbers")
    return own


def _text(value: Any) -> str:
    """Return a choice as the command line writes it."""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _check_key(key: str, source: str, given: set[str]) -> None:
    if key in _FIXED:
        raise UserError(f"{source} is not to be searched: {_FIXED[key]}")
    if key in NEUTRAL:
        raise UserError(f"{source} changes no score: leave it out")
    if key in given:
        raise UserError(f"{source} is in the space: leave the argument {key}=… out")


def _check_effect(
    keys: set[str], base: dict[str, Any], changes: list[dict[str, Any]], path: Path
) -> None:
    """Refuse settings that cannot matter, whatever the others are."""
    # no condition needs more than two of them
    pairs = combinations_with_replacement(changes, 2)
    idle = keys.intersection(*(idle_settings(base | a | b) for a, b in pairs))
    if idle:
        raise UserError(
            f"{path}: {', '.join(sorted(idle))}: without effect in this experiment, whatever the "
            "other settings of the space are: leave it out"
        )
