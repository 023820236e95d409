"""Captions of drawn faces: for pretraining the demo's CLIP, and for clips of the demo.

For the pretraining every frame shows action units drawn at random, each on its own: no combination
that a class of the demo has is preferred, nothing changes over time, and no sentence names an
emotion. The people are others than the demo's. The phrases are those of the class texts
(:data:`dfer_dist.models.class_texts.DESCRIPTIONS`) and others for the same movements.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfer_dist.data.captions.label_leakage import label_words
from dfer_dist.demo.face_parts import AUS
from dfer_dist.demo.faces import IDENTITIES, Ranges, render_units
from dfer_dist.demo.renderer import Array

# As in a studio: heads nearly straight, even light, a good camera. The demo's faces are turned, lit
# from anywhere, blurred and noisy, so that what is learned here helps there, and does not do all
# the work.
STUDIO = Ranges(
    yaw=6,
    pitch=4,
    roll=4,
    turn_drift=2,
    scale=0.05,
    gain=(0.95, 1.05),
    slope=(0.0, 0.1),
    tint=0.02,
    blur=(0.0, 0.0),
    noise=(0.5, 2.0),
)
PEOPLE_FROM = IDENTITIES  # the demo's are those before
MAX_MOVEMENTS = 3  # in a sentence
VISIBLE = 0.25  # intensity from which a movement is named

# Phrases for a movement, by the units that it needs and those that must be absent.
MOVEMENTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("AU1 AU2", "AU4"): ("brows lifted high", "raised brows", "raised eyebrows", "both brows up"),
    ("AU1 AU2 AU4", ""): ("brows raised and drawn together", "brows up and pinched in the middle"),
    ("AU1", "AU2"): (
        "inner ends of the brows drawn up",
        "lifted inner brows",
        "brows that slant up to the middle",
    ),
    ("AU2", "AU1"): ("outer ends of the brows raised", "lifted outer brows"),
    ("AU4", "AU1"): (
        "brows pulled down and together",
        "brows drawn together",
        "lowered brows",
        "a furrow between the brows",
    ),
    ("AU5", "AU7"): ("eyes opened wide", "wide eyes", "wide open eyes", "lifted upper lids"),
    ("AU5 AU7", ""): ("tense lids around wide eyes", "a hard stare"),
    ("AU6", ""): (
        "lifted cheeks",
        "cheeks pushed towards the eyes",
        "small folds beside the eyes",
        "red cheeks pushed up",
    ),
    ("AU7", "AU5"): ("narrowed eyes", "tense lids", "half closed eyes", "a hard stare"),
    ("AU9", ""): ("a crinkled nose", "a wrinkled nose", "folds across the nose"),
    ("AU10", ""): ("the upper lip pulled up", "a lifted upper lip", "upper teeth that show"),
    ("AU12", ""): ("lip corners pulled up and back", "lip corners drawn up", "a wide smile"),
    ("AU15", ""): ("sinking lip corners", "lip corners turned down", "lip corners pulled down"),
    ("AU17", ""): ("a raised chin", "a wrinkled chin", "the lower lip pushed up"),
    ("AU20", ""): ("lips stretched sideways", "stretched lips"),
    ("AU23", ""): (
        "lips pressed thin",
        "thin tight lips",
        "lips pressed together and a clenched jaw",
    ),
    ("AU25", "AU26"): ("lips slightly apart", "parted lips"),
    ("AU26", ""): ("a dropped jaw", "an open mouth", "a rounded mouth", "a mouth wide open"),
    ("AU43", ""): ("lowered lids", "a lowered gaze", "a lowered, dull gaze", "drooping lids"),
    ("tears", ""): ("tears on the cheeks", "tears below the eyes", "wet cheeks"),
}
# Phrases for a part of the face at rest, by its units.
STILL: dict[str, tuple[str, ...]] = {
    "AU1 AU2 AU4": ("an even brow", "brows at rest"),
    "AU5 AU7 AU43": ("calm eyes", "eyes at rest"),
    "AU10 AU12 AU15 AU17 AU20 AU23 AU25 AU26": (
        "lips lightly closed",
        "a mouth at rest",
        "lips at rest",
    ),
}
AT_REST = ("a face at rest", "no visible tension", "a still face")
TEMPLATES = (
    "{}",
    "{}.",
    "a face with {}.",
    "a person with {}.",
    "a photo of a face with {}.",
    "a person with an expression of {}",
)
NEVER_TOGETHER = (("AU5", "AU43"), ("AU12", "AU15"), ("AU23", "AU26"), ("AU23", "AU25"))


class Person(NamedTuple):
    """Frames uint8 [T, size, size, 3] of one person, and a few captions of each."""

    frames: NDArray[np.uint8]
    captions: list[list[str]]


def draw_units(frames: int, rng: np.random.Generator) -> Array:
    """Draw independent frames: intensities [frames, len(AUS)] in 0..1; a few are at rest."""
    active = rng.random((frames, len(AUS))) < rng.choice(
        [0, 0.15, 0.3, 0.45], (frames, 1), p=[0.06, 0.34, 0.3, 0.3]
    )
    for one, other in NEVER_TOGETHER:
        active[:, AUS.index(other)] &= ~active[:, AUS.index(one)]
    units = np.where(active, rng.uniform(0.15, 1, active.shape), rng.uniform(0, 0.12, active.shape))
    units[:, AUS.index("tears")] *= active[:, AUS.index("tears")]
    return units.astype(np.float32)


def describe(units: Array, rng: np.random.Generator) -> str:
    """Return a random sentence about the movements of a frame, ``units`` [len(AUS)].

    Some movements are left out.
    """
    seen = {name for name, value in zip(AUS, units, strict=True) if value >= VISIBLE}
    shown, hidden = list[str](), list[str]()
    for (needed, without), choices in MOVEMENTS.items():
        phrase = str(rng.choice(choices))
        if _applies(needed, without, seen):
            shown.append(phrase)
        elif not set(needed.split()) & seen:
            hidden.append(phrase)
    still = [
        str(rng.choice(choices))
        for names, choices in STILL.items()
        if not set(names.split()) & seen
    ]
    if not seen:
        still.append(str(rng.choice(AT_REST)))
    phrases = [phrase for phrase in shown if rng.random() < 0.85]
    phrases += [phrase for phrase in still if rng.random() < 0.2]
    phrases = phrases or shown or still
    if hidden and rng.random() < 0.2:
        absent = str(rng.choice(hidden))
        phrases.append(f"no {re.sub('^(a|an|the) ', '', absent)}")
    phrases = [phrases[i] for i in rng.permutation(len(phrases))[:MAX_MOVEMENTS]]
    separator = _last_separator(rng)
    if len(phrases) > 1:
        phrases = [", ".join(phrases[:-1]), phrases[-1]]
    return str(rng.choice(TEMPLATES)).format(separator.join(phrases))


def _last_separator(rng: np.random.Generator) -> str:
    """Return a random separator of the last two phrases of a sentence."""
    if rng.random() < 0.3:
        return " and "
    if rng.random() < 0.5:
        return ", and "
    return ", "


def _applies(needed: str, without: str, seen: set[str]) -> bool:
    return set(needed.split()) <= seen and not set(without.split()) & seen


def describe_clip(track: Array, rng: np.random.Generator) -> str:
    """Return a random caption of a clip, ``track`` [T, len(AUS)], that names no label.

    A sentence for each third of the clip, in order of time, about what shows in half of the frames
    of that third: of the third in which most moves the :data:`MAX_MOVEMENTS` strongest movements,
    the strongest first; of the others one. Thirds at rest in a row share a sentence. Of a clip that
    is at rest throughout, the two stillest parts of the face are named, the stillest first. Short,
    since the demo's text tower has read single sentences.
    """
    medians = (np.median(part, axis=0).tolist() for part in np.array_split(track, 3))
    thirds = [dict(zip(AUS, values, strict=True)) for values in medians]
    moving = [_movements(units, rng) for units in thirds]
    if not any(moving):
        strengths = {
            names: max(units[name] for units in thirds for name in names.split()) for names in STILL
        }
        phrases = [str(rng.choice(AT_REST))]
        for names in sorted(STILL, key=strengths.__getitem__)[:2]:
            # "calm" names a class
            choices = [phrase for phrase in STILL[names] if not label_words(phrase)]
            phrases.append(str(rng.choice(choices)))
        return f"{', '.join(phrases)}."
    fullest = max(range(len(moving)), key=lambda i: sum(strength for strength, _ in moving[i]))
    sentences = list[str]()
    for i, movements in enumerate(moving):
        if movements:
            shown = movements[: MAX_MOVEMENTS if i == fullest else 1]
            sentences.append(f"{', '.join(phrase for _, phrase in shown)}.")
        elif not i or moving[i - 1]:
            sentences.append(f"{rng.choice(AT_REST)}.")
    return " ".join(sentences)


def _movements(units: dict[str, float], rng: np.random.Generator) -> list[tuple[float, str]]:
    """Return strength and phrase of each visible movement, the strongest first.

    A movement is as strong as the weakest unit that it needs.
    """
    seen = {name for name, value in units.items() if value >= VISIBLE}
    found = [
        (min(units[name] for name in needed.split()), str(rng.choice(choices)))
        for (needed, without), choices in MOVEMENTS.items()
        if _applies(needed, without, seen)
    ]
    return sorted(found, reverse=True)


def draw_person(number: int, seed: int, frames: int, captions: int, size: int) -> Person:
    """Draw frames of a person, each with other movements. The same arguments give the same bytes.

    ``number`` counts from the first person who is not in the demo.
    """
    rng = np.random.default_rng([seed, number])
    units = draw_units(frames, rng)
    phrases = [[describe(row, rng) for _ in range(captions)] for row in units]
    return Person(render_units(units, PEOPLE_FROM + number, rng, size, STUDIO)[0], phrases)
