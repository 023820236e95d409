"""One thing that ``dfer doctor`` looks at: fine, worth knowing, or wrong with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def filesystem(path: Path) -> str:
    """The kind of file system a folder lies on, such as ``ext4`` or ``nfs4``, from Linux's table of mounts."""
    place, kind, longest = path.resolve(), "unknown", -1
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(
            before.split()[4].encode().decode("unicode_escape")
        )  # a space is written as \\040
        if (
            place.is_relative_to(mount) and len(mount.parts) >= longest
        ):  # of mounts on one place the last counts
            kind, longest = after.split()[0], len(mount.parts)
    return kind


def on_network(kind: str) -> bool:
    """Whether a kind of file system is one that machines share over a network."""
    return any(word in kind for word in _NETWORK)
