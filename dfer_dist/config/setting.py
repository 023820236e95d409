"""The fields of the settings tree: default, help text, allowed range and source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

_KEY = "setting"


@dataclass(frozen=True)
class SettingInfo:
    """What is known of a setting in addition to its name, type and default.

    Attributes
    ----------
    help : str
        One sentence.
    at_least, above : float, optional
        The lowest value, and the value that must be exceeded.
    at_most, below : float, optional
        The highest value, and the value that must not be reached.
    choices : mapping of str to str
        A sentence on each value of an enumeration.
    source : str
        The paper that the setting comes from.
    neutral : bool
        The setting can change no result, up to the last bit of a sum.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Mapping[str, str] | None = None
    source: str = ""
    neutral: bool = False

    def find_fault(self, value: Any) -> str | None:
        """Return how a number must be, if it is not, such as ``must be at least 1``."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self._contains(value):
            return None
        return f"must be {self.range_text()}"

    def _contains(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def range_text(self) -> str:
        """Return the allowed range, such as ``at least 0 and below 1``; empty if any value is."""
        limits = (
            ("at least", self.at_least),
            ("greater than", self.above),
            ("at most", self.at_most),
            ("less than", self.below),
        )
        return " and ".join(f"{name} {limit:g}" for name, limit in limits if limit is not None)


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    default_factory: Callable[[], Any] | Any = MISSING,
    **info: Any,
) -> Any:
    """Return a dataclass field with a :class:`SettingInfo`.

    Parameters
    ----------
    default, default_factory
        As for :func:`dataclasses.field`.
    help : str
        One sentence.
    **info
        Further arguments of :class:`SettingInfo`.
    """
    metadata = {_KEY: SettingInfo(help, **info)}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def info_of(f: Field[Any]) -> SettingInfo:
    """Return what is known of a field made by :func:`setting`."""
    info = f.metadata[_KEY]
    assert isinstance(info, SettingInfo)
    return info
