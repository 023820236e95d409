"""What a model is asked about a clip, and which class its answer names.

An answer counts only if it names one class of the set and no other. Of a JSON object the value of
``class`` has to be that name. Any other text has to contain the name as a whole word, of one class
only and without a negation. Upper and lower case, punctuation and reasoning in ``<think>`` do not
matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress

from dfer_dist.data.captions.endpoint import Completion
from dfer_dist.runs.endpoint import REFUSED, UNREADABLE
from dfer_dist.utils.errors import UserError

SYSTEM = (
    "You are shown frames of one face, in order of time, taken from a short video clip. Choose the "
    "facial expression that the person shows. The possible expressions are: {names}. Answer with "
    'nothing but a JSON object, {{"class": "NAME"}}, in which NAME is one of them, as written here.'
)

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)
# of texts as of _plain: "isn't" is "isn t"
_NEGATION = re.compile(r"\b(?:not|no|nor|never|neither|cannot|without|t)\b")
_REFUSAL = re.compile(
    r"(?:(?:i m |i am )?(?:very |so )?sorry|(?:i m |i am )?(?:unable|not able)|"
    r"i (?:can t|cannot|can not|won t|will not|must decline|decline)|as an ai)\b"
)


def system_prompt(classes: Sequence[str]) -> str:
    """Return the prompt that lists the classes.

    Raises
    ------
    UserError
        If the names of two classes differ in case or punctuation only.
    """
    if len({_plain(name) for name in classes} - {""}) < len(classes):
        raise UserError(
            f"--endpoint: answers cannot tell apart the classes {', '.join(classes)}: names must "
            "differ in more than case and punctuation"
        )
    return SYSTEM.format(names=", ".join(classes))


def answered_class(answer: Completion, classes: Sequence[str]) -> str:
    """Return the class that an answer names, else :data:`REFUSED` or :data:`UNREADABLE`.

    It is a refusal if the server says so, or if the text begins as one ("I'm sorry", "I cannot").
    """
    if answer.refused:
        return REFUSED
    text = _THOUGHT.sub(" ", answer.text).strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    names = {_plain(name): name for name in classes}
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return names.get(_plain(str(found.get("class"))), UNREADABLE)
    plain = _plain(text)
    # the longest first: a compound class contains the names of others
    choices = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    named = set(re.findall(rf"(?<!\S)(?:{choices})(?!\S)", plain))
    if len(named) == 1 and not _NEGATION.search(plain):
        return names[named.pop()]
    if _REFUSAL.match(plain):
        return REFUSED
    return UNREADABLE


def _plain(text: str) -> str:
    """Return a text in lower case, with single spaces in place of punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
