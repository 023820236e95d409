"""The result of a check of ``dfer doctor``: fine, worth knowing, or wrong with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


class Result(NamedTuple):
    """A state (``OK``, ``NOTE`` or ``WRONG``) and a text for the user."""

    state: str
    text: str


@dataclass(frozen=True)
class Check:
    """A line of ``dfer doctor``: what was checked, its state, and a text for the user."""

    subject: str
    state: str
    text: str

    @classmethod
    def of(cls, subject: str, result: Result) -> Check:
        """Return the check of ``subject`` with this result."""
        return cls(subject, result.state, result.text)


def on_network(kind: str) -> bool:
    """Return whether a kind of file system is one that machines share over a network."""
    return any(name in kind for name in _NETWORK)
