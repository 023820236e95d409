"""Errors that a user can fix, and lists in messages."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """An error that the user can fix; its one line says what is wrong and what to do.

    Commands print the message and exit with status 2; with ``--debug`` they show the traceback.
    """


def is_disk_full(error: BaseException) -> bool:
    """Return whether a full disk or a quota caused an error, of safetensors' own kind too."""
    texts = map(os.strerror, _DISK_FULL)
    return getattr(error, "errno", None) in _DISK_FULL or any(text in str(error) for text in texts)


def first_of(items: Sequence[object], count: int, separator: str = ", ") -> str:
    """Return the first ``count`` items, and how many more there are."""
    shown = separator.join(map(str, items[:count]))
    return shown + f" and {len(items) - count} more" * (len(items) > count)
