"""webdataset's tar writer and file opener, without the torch that its package imports.

``import webdataset`` runs the package's ``__init__``, which imports torch for its data loaders and
takes seconds. ``webdataset.writer`` and ``webdataset.gopen`` need none of it, so they are loaded
here from the same files as modules of a package of another name. They import each other by relative
names only (webdataset 1.0). An exported model reads no shards: import this inside functions.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_PACKAGE = "_webdataset_without_torch"


def _load(module: str) -> Any:
    """Return a module of webdataset without running the package's ``__init__``."""
    if _PACKAGE not in sys.modules:
        spec = find_spec("webdataset")
        if spec is None:
            raise ModuleNotFoundError("No module named 'webdataset'", name="webdataset")
        package = ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[_PACKAGE] = package
    return import_module(f"{_PACKAGE}.{module}")


TarWriter = _load("writer").TarWriter
gopen = _load("gopen").gopen
