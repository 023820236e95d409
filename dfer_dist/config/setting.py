"""The fields of the settings tree: default, help text, allowed range and source."""

from __future__ import annotations

import operator
from dataclasses import Field, dataclass, field
from enum import Enum
from typing import Any

_KEY = "setting"
_LIMITS = {
    "at_least": ("at least", operator.ge),
    "above": ("greater than", operator.gt),
    "at_most": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


class Choice(Enum):
    """An enumeration whose members are known by name and have a sentence about them as value."""

    @classmethod
    def _missing_(cls, value: object) -> Choice | None:
        """Return the member of a name: ``Precision("bf16")``."""
        return cls.__members__.get(str(value))


@dataclass(frozen=True)
class SettingInfo:
    """What is known of a setting in addition to its name, type and default.

    Attributes
    ----------
    help : str
        One sentence.
    limits : dict of str to float
        The allowed range, by ``at_least``, ``above``, ``at_most`` and ``below``.
    source : str
        The paper that the setting comes from.
    neutral : bool
        The setting can change no result, up to the last bit of a sum.
    later : bool
        Runs of earlier versions lack the setting, and its default does what they did. At its
        default it is left out of the configuration hash, so theirs stays the same.
    """

    help: str
    limits: dict[str, float]
    source: str
    neutral: bool
    later: bool

    def find_fault(self, value: Any) -> str | None:
        """Return how a number must be, if it is not, such as ``must be at least 1``."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if all(_LIMITS[name][1](value, limit) for name, limit in self.limits.items()):
            return None
        return f"must be {self.range_text()}"

    def range_text(self) -> str:
        """Return the allowed range, such as ``at least 0 and below 1``; empty if any value is."""
        return " and ".join(
            f"{_LIMITS[name][0]} {_text(limit)}" for name, limit in self.limits.items()
        )


def _text(limit: float) -> str:
    """Return a limit with all digits of an integer."""
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def setting(
    default: Any,
    help: str = "",
    *,
    source: str = "",
    neutral: bool = False,
    later: bool = False,
    **limits: float,
) -> Any:
    """Return a dataclass field with a :class:`SettingInfo`.

    Parameters
    ----------
    default
        The default; a list is copied for each object.
    help : str
        One sentence; by default the docstring of the enumeration that ``default`` is of. The value
        of each of its members is a sentence on that choice.
    source, neutral, later, **limits
        As the attributes of :class:`SettingInfo`.
    """
    if isinstance(default, Choice):
        help = help or type(default).__doc__ or ""
    metadata = {_KEY: SettingInfo(help, limits, source, neutral, later)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def info_of(f: Field[Any]) -> SettingInfo:
    """Return what is known of a field made by :func:`setting`."""
    info: SettingInfo = f.metadata[_KEY]
    return info
