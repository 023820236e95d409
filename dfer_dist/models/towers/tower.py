"""What is known of a backbone before and after it is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dfer_dist.models.tokenizer import TextTokenizer
from dfer_dist.models.towers.text import HubTextTower, TextTower


@dataclass(frozen=True)
class BackboneInfo:
    """A backbone before it is built.

    Attributes
    ----------
    name : str
        As ``model.backbone``.
    image_size : int
        Side of the frames that it was trained on, pixels.
    mean, std : tuple of 3 float
        Mean and standard deviation of the pixels that it was trained on, in 0..1.
    has_text : bool
        Whether there is a text tower.
    is_video : bool
        Whether the tower reads clips rather than single frames.
    """

    name: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_text: bool
    is_video: bool = False


@dataclass(frozen=True)
class Backbone:
    """The towers of a backbone.

    Attributes
    ----------
    info : BackboneInfo
    image : nn.Module
        The image tower [N, 3, H, W] -> [N, E], or the video tower [B, T, 3, H, W] -> [B, E]. It has
        ``output_dim``, E, and ``set_grad_checkpointing``.
    text : TextTower or HubTextTower, optional
    tokenizer : TextTokenizer, optional
        That of the text tower.
    sha256 : str, optional
        Of the file with the weights; None for random weights.
    temperature : float
        1 / logit scale of the weights; 1 without a text tower.
    logit_bias : float
        Added to logits; the same for all classes, so that it changes no probability.
    """

    info: BackboneInfo
    image: Any
    text: TextTower | HubTextTower | None = None
    tokenizer: TextTokenizer | None = None
    sha256: str | None = None
    temperature: float = 1.0
    logit_bias: float = 0.0


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a question after the known name that is most like a wrong one, if one is."""
    by_lower = {own.lower(): own for own in known}
    for near in difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4):
        return f"; did you mean '{prefix}{by_lower[near]}'?"
    return ""


def one_line(e: BaseException) -> str:
    """Return the message of a library's error in one line."""
    return " ".join(str(e).split())[:200] or type(e).__name__


def unreadable_weights(e: BaseException) -> str:
    """Return why a file of weights cannot be read, in one line.

    torch's own message advises to unpickle the file all the same.
    """
    text = one_line(e)
    if "weights_only" in text or "weights-only" in text.lower():
        return "it holds more than tensors, which is never unpickled"
    if isinstance(e, AttributeError | TypeError):
        return f"it holds no tensors by name ({text})"
    return text
