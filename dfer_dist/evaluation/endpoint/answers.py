"""What a model is asked about a clip, and which class its answer names.

An answer counts only if, without its reasoning, it is nothing but

* a JSON object whose ``class`` is the name of a class, or
* the name itself, alone or after a lead-in: "expression", "emotion", "class", "answer" or "label",
  with or without "is" after it, and "the" or "my", "final", "correct", "facial" or "person's"
  before it ("The final answer is").

Upper and lower case, punctuation, Markdown and a code fence do not matter. Any other text names no
class, whatever names are in it. Reasoning ends at the last ``</think>`` or ``</thinking>``, also
without a tag that opens it; one that is opened after that never ends, and the answer is unreadable.
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

_REASONED = re.compile(r".*</think(?:ing)?\s*>", re.DOTALL | re.IGNORECASE)
_REASONING = re.compile(r"<think(?:ing)?\b[^>]*>", re.IGNORECASE)
_FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)
# of texts as of _plain: "can't" is "can t"
_LEAD_IN = re.compile(
    r"^(?:the |my )?(?:(?:final|correct|facial|person s) )?"
    r"(?:expression|emotion|class|answer|label)(?: is)? "
)
_REFUSAL = re.compile(
    r"^(?:sorry|apologies|unable|not able)\b|\bas an ai\b|"
    r"\b(?:i|we) (?:\w+ ){0,2}(?:sorry|apologi[sz]e|unable|not able|can t|cannot|can not|won t|"
    r"will not|decline|refuse)\b"
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

    It is a refusal if the server says so, or if the text names no class and has a phrase of
    refusal ("I'm sorry", "I am unable").
    """
    if answer.refused:
        return REFUSED
    text = _REASONED.sub("", answer.text).strip()
    if _REASONING.search(text):
        return UNREADABLE
    if fenced := _FENCE.match(text):
        text = fenced[1]
    names = {_plain(name): name for name in classes}
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            value = found.get("class")
            if isinstance(value, str):
                return names.get(_plain(value), UNREADABLE)
            return UNREADABLE
    plain = _plain(text)
    for name in (plain, _LEAD_IN.sub("", plain)):
        if name in names:
            return names[name]
    if _REFUSAL.search(plain):
        return REFUSED
    return UNREADABLE


def _plain(text: str) -> str:
    """Return a text in lower case, with single spaces in place of punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
