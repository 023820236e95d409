"""Lines of the log."""

from __future__ import annotations

import sys
from contextlib import suppress


def tell(line: str) -> None:
    """Print a line to the log at once. A full disk under the log is no reason to stop."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
