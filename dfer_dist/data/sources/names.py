"""Names of clips and classes: what a file system allows, and the keys that are made of it."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# the name of a tar member has at most 100 bytes, its suffix included
_MAX_KEY = 90
_HASH_DIGITS = 16
_NO_KEY = re.compile(r"[^A-Za-z0-9_-]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# what operating systems, file servers and programs leave in folders; hidden names start with a dot
_SYSTEM = {
    # of file servers
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "~snapshot",
    # of Windows
    "$recycle.bin",
    "recycled",
    "recycler",
    "system volume information",
    "lost.dir",
    "desktop.ini",
    "thumbs.db",
    "ehthumbs.db",
    # of macOS
    "__macosx",
    "icon\r",
    "network trash folder",
    "temporary items",
    "lost+found",
    "__pycache__",
}
# of Synology, of a repaired Windows disk, and of documents that are open
_SYSTEM_PATTERN = re.compile(r"@syno.*|found\.\d{3}|~\$.*|thumbs\.db:.*")


def is_system(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that a system made, such as @eaDir."""
    lower = name.lower()
    return name.startswith(".") or lower in _SYSTEM or bool(_SYSTEM_PATTERN.fullmatch(lower))


def printable(name: str) -> str:
    r"""Return a name as text: bytes that are no UTF-8 and control characters become ``\xNN``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def plain_name(name: str) -> str:
    """Return a name such that a list and a file system agree on it.

    Names may be in GB18030, as after unpacking a Chinese archive, and their accents in two forms.
    """
    data = os.fsencode(name)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("gb18030", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def make_keys(sources: Sequence[str]) -> list[str]:
    """Return the key in the shards of each clip of a set, whose names all differ.

    A key is the name with _ for / and for every character other than letters, digits, - and _. If
    that is too long, or the same for several clips, it ends with a hash of the name.
    """
    keys = [_plain_key(source) for source in sources]
    counts = Counter(keys)
    for i, (source, key) in enumerate(zip(sources, keys, strict=True)):
        if counts[key] > 1 or len(key) > _MAX_KEY:
            keys[i] = _hashed_key(source)
    return keys


def possible_keys(source: str) -> tuple[str, str]:
    """Return the keys that :func:`make_keys` may have made of a clip's name."""
    return _plain_key(source), _hashed_key(source)


def _plain_key(source: str) -> str:
    return _NO_KEY.sub("_", source.strip("/")) or "_"


def _hashed_key(source: str) -> str:
    digest = hashlib.sha256(source.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{_plain_key(source)[: _MAX_KEY - _HASH_DIGITS - 1]}-{digest}"
