"""What the text tower reads for a class: its name, or a sentence about the face."""

from __future__ import annotations

from collections.abc import Sequence

from dfer_dist import UserError
from dfer_dist.config import ClassText

# The seven classes of DFEW and FERV39k, then the four that MAFW adds. Each sentence names visible facial movements only.
DESCRIPTIONS = {
    "happiness": "lip corners pulled up and back, lifted cheeks, and small folds beside the eyes.",
    "sadness": "inner ends of the brows drawn up, sinking lip corners, and a lowered, dull gaze.",
    "neutral": "a face at rest, lips lightly closed, an even brow, and no visible tension.",
    "anger": "brows pulled down and together, a hard stare, lips pressed thin, and a clenched jaw.",
    "surprise": "brows lifted high, eyes opened wide, a dropped jaw, and a rounded mouth.",
    "disgust": "a crinkled nose, the upper lip pulled up, and cheeks pushed towards half closed eyes.",
    "fear": "brows raised and drawn together, tense lids around wide eyes, and lips stretched sideways.",
    "contempt": "one corner of the mouth tightened and lifted, a raised chin, and a sideways glance.",
    "anxiety": "restless eyes, brows pinched in the middle, lips bitten or pressed, and a tense jaw.",
    "helplessness": "lifted inner brows, eyes that look away, slack lips slightly apart, and a hanging head.",
    "disappointment": "lips pushed together with corners turned down, drooping lids, and a falling gaze.",
}


def class_texts(classes: Sequence[str], kind: ClassText) -> list[str]:
    """The text of each class, in the order given.

    A text ends with a full stop, as the authors' do; nothing is appended to it later.

    Raises
    ------
    UserError
        For a class without a description.
    """
    if kind is ClassText.names:
        return [f"{name}." for name in classes]
    unknown = [name for name in classes if name not in DESCRIPTIONS]
    if unknown:
        raise UserError(
            f"no description for class {', '.join(map(repr, unknown))}: set model.text=names, "
            f"or use the class names {', '.join(DESCRIPTIONS)}"
        )
    return [DESCRIPTIONS[name] for name in classes]
