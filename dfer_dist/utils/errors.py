"""Errors that a user can fix."""

from __future__ import annotations

import errno
import os

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """An error that the user can fix; its one line says what is wrong and what to do.

    Commands print the message and exit with status 2; with ``--debug`` they show the traceback.
    """


def is_disk_full(error: BaseException) -> bool:
    """Return whether a full disk or a quota caused an error, of safetensors' own kind too."""
    texts = map(os.strerror, _DISK_FULL)
    return getattr(error, "errno", None) in _DISK_FULL or any(text in str(error) for text in texts)
