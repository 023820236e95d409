"""Versions of this package and of other installed ones."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package_version() -> str:
    """Return the version of this package.

    It is ``unknown`` where the package is not installed: an exported model brings its own copy.
    """
    return installed_version("dfer_dist") or "unknown"
