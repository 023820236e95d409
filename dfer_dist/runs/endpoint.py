"""The record of a test of a model at an endpoint, and what is no class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

#: In place of the class where a model at an endpoint names none. No clip is of these classes.
REFUSED, UNREADABLE, FAILED = NO_CLASS = ("(refused)", "(unreadable)", "(failed)")


def own_classes(classes: Sequence[str]) -> list[str]:
    """Return the classes that clips can be of: those not in :data:`NO_CLASS`."""
    return [name for name in classes if name not in NO_CLASS]


@dataclass(frozen=True)
class EndpointTest:
    """How the clips of a fold were sent to a model at an endpoint.

    ``prompt`` is the system's message. ``requests`` include repeated ones, those of clips without
    an answer aside. Tokens are 0 where the server does not count them. ``urls`` are those that
    answers came from, without user and credential; earlier versions did not record them.
    """

    model: str
    prompt: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    urls: list[str] = field(default_factory=list)
