"""One thing that ``dfer doctor`` looks at: fine, worth knowing, or wrong with what to do."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WRONG = "ok", "note", "wrong"
_NETWORK = (
    "nfs",
    "lustre",
    "beegfs",
    "gpfs",
    "cifs",
    "smb",
    "ceph",
    "gluster",
    "sshfs",
    "afs",
    "pvfs",
    "orangefs",
    "weka",
    "panfs",
)


@dataclass(frozen=True)
class Check:
    """A line: what was looked at, its state (``OK``, ``NOTE`` or ``WRONG``), and words for a person."""

    what: str
    state: str
    words: str


def on_network(kind: str) -> bool:
    """Whether a kind of file system is one that machines share over a network."""
    return any(word in kind for word in _NETWORK)
