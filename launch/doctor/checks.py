"""The result of a check of ``dfer doctor``: fine, worth knowing, or wrong with what to do."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

OK, NOTE, WRONG = "ok", "note", "wrong"


class Result(NamedTuple):
    """A state (``OK``, ``NOTE`` or ``WRONG``) and a text for the user."""

    state: str
    text: str


ok, note, wrong = (partial(Result, state) for state in (OK, NOTE, WRONG))


class Check(NamedTuple):
    """A line of ``dfer doctor``: what was checked, and the result."""

    subject: str
    state: str
    text: str
