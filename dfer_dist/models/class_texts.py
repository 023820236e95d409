"""Texts of the classes: their names, or sentences about the face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfer_dist.config.schema import ClassText, Head, HeadInit, ModelConfig, Output, TextPolarity
from dfer_dist.data.sources.compound import components, single_classes
from dfer_dist.utils.errors import UserError

# The seven classes of DFEW and FERV39k, then the four that MAFW adds. Each sentence names visible
# facial movements only.
DESCRIPTIONS = {
    "happiness": "lip corners pulled up and back, lifted cheeks, and small folds beside the eyes.",
    "sadness": "inner ends of the brows drawn up, sinking lip corners, and a lowered, dull gaze.",
    "neutral": "a face at rest, lips lightly closed, an even brow, and no visible tension.",
    "anger": "brows pulled down and together, a hard stare, lips pressed thin, and a clenched jaw.",
    "surprise": "brows lifted high, eyes opened wide, a dropped jaw, and a rounded mouth.",
    "disgust": "a crinkled nose, the upper lip pulled up, and cheeks pushed towards half closed "
    "eyes.",
    "fear": "brows raised and drawn together, tense lids around wide eyes, and lips "
    "stretched sideways.",
    "contempt": "one corner of the mouth tightened and lifted, a raised chin, and a sideways "
    "glance.",
    "anxiety": "restless eyes, brows pinched in the middle, lips bitten or pressed, and a tense "
    "jaw.",
    "helplessness": "lifted inner brows, eyes that look away, slack lips slightly apart, and a "
    "hanging head.",
    "disappointment": "lips pushed together with corners turned down, drooping lids, and a falling "
    "gaze.",
}

_TEMPLATES = {
    ClassText.names: "{}.",
    ClassText.sentence: "an expression of {}.",
    # FineCLIPER's texts.
    ClassText.person: "a person with an expression of {}",
}


def output_classes(classes: Sequence[str], cfg: ModelConfig) -> tuple[str, ...]:
    """Return the classes that a model has logits of: single ones only of sigmoid outputs."""
    return single_classes(classes) if cfg.output is Output.sigmoid else tuple(classes)


def polarity_texts(classes: Sequence[str], cfg: ModelConfig) -> dict[str, list[list[str]]]:
    """Return the sentences of each output by polarity; none of a linear head that needs no text.

    ``positive``, and with ``model.text_polarity=both`` also ``negative``.

    Raises
    ------
    UserError
        As :func:`class_texts`.
    """
    classes = output_classes(classes, cfg)
    if cfg.head is Head.linear and cfg.head_init is not HeadInit.text:
        return {"positive": [[] for _ in classes]}
    texts = {"positive": class_texts(classes, cfg.text, cfg.sentences)}
    if cfg.text_polarity is TextPolarity.both:
        own = cfg.negative_sentences
        texts["negative"] = [
            [f"a person with an expression of no {_plain_name(name, classes, 'or')}"]
            for name in classes
        ]
        if own is not None:
            texts["negative"] = _own_texts(classes, own, "model.negative_sentences")
    return texts


def class_texts(
    classes: Sequence[str], kind: ClassText, own: Mapping[str, Sequence[str]] | None = None
) -> list[list[str]]:
    """Return the sentences of each class, in the given order: one, or as many as ``own`` has.

    The built-in ones end with a full stop, as those of DFER-CLIP's authors. Nothing is appended.
    A compound class such as ``anger+disgust`` reads ``anger and disgust``; its description is
    those of its components.

    Parameters
    ----------
    own : mapping of class name to sentences, optional
        Overrides ``kind``.

    Raises
    ------
    UserError
        If a class has no description, or ``own`` has other classes.
    """
    if own is not None:
        return _own_texts(classes, own, "model.sentences")
    if kind in _TEMPLATES:
        return [[_TEMPLATES[kind].format(_plain_name(name, classes))] for name in classes]
    parts = {name: components(name, classes) for name in classes}
    unknown = [name for name in classes if not DESCRIPTIONS.keys() >= set(parts[name])]
    if unknown:
        raise UserError(
            f"no description for class {', '.join(map(repr, unknown))}: set model.text=sentence, "
            f"give each class one as in model.sentences.{unknown[0]}=[TEXT], or use the class "
            f"names {', '.join(DESCRIPTIONS)}"
        )
    texts = {name: DESCRIPTIONS[name] for own in parts.values() for name in own}
    return [["; ".join(texts[p].rstrip(".") for p in own) + "."] for own in parts.values()]


def _plain_name(name: str, classes: Sequence[str], last: str = "and") -> str:
    """Return a compound class in plain English: ``anger, disgust and contempt``."""
    return f" {last} ".join(", ".join(components(name, classes)).rsplit(", ", 1))


def _own_texts(
    classes: Sequence[str], own: Mapping[str, Sequence[str]], key: str
) -> list[list[str]]:
    missing, unknown = [c for c in classes if c not in own], [c for c in own if c not in classes]
    if missing or unknown:
        wrong = f"has {(unknown or missing)[0]!r}, no class of the data"
        if missing:
            names = ", ".join(map(repr, missing))
            wrong = f"has nothing for class {names}: add {key}.{missing[0]}=[TEXT]"
        raise UserError(f"{key} {wrong}; name each of {', '.join(classes)} once")
    return [list(own[name]) for name in classes]
