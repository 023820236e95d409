"""Compound classes: a class whose name joins the names of others with ``+``.

``anger+disgust`` is compound in a list of classes that has ``anger`` and ``disgust`` too; in any
other list it is a name like all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SEPARATOR = "+"

#: The 32 compound classes of MAFW (Liu et al., ACM MM 2022), pairs before triples. The names of
#: emotions are in the order of its annotation table, as in its lists.
MAFW_COMPOUND = (
    "anger+disgust",
    "anger+sadness",
    "anger+surprise",
    "anger+anxiety",
    "anger+helplessness",
    "disgust+sadness",
    "disgust+surprise",
    "disgust+contempt",
    "disgust+anxiety",
    "disgust+helplessness",
    "disgust+disappointment",
    "fear+sadness",
    "fear+surprise",
    "fear+anxiety",
    "happiness+surprise",
    "happiness+contempt",
    "sadness+surprise",
    "sadness+anxiety",
    "sadness+helplessness",
    "sadness+disappointment",
    "surprise+anxiety",
    "anxiety+helplessness",
    "helplessness+disappointment",
    "anger+disgust+contempt",
    "anger+disgust+anxiety",
    "disgust+anxiety+helplessness",
    "disgust+helplessness+disappointment",
    "fear+sadness+anxiety",
    "fear+surprise+anxiety",
    "sadness+anxiety+helplessness",
    "sadness+helplessness+disappointment",
    "anxiety+helplessness+disappointment",
)


def components(name: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that a compound class joins; of a single class itself."""
    parts = tuple(name.split(SEPARATOR))
    return parts if all(part in classes for part in parts) else (name,)


def single_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that are not compound, in their order."""
    return tuple(name for name in classes if components(name, classes) == (name,))


def membership(classes: Sequence[str]) -> NDArray[np.bool_]:
    """Return which single classes each class consists of.

    Parameters
    ----------
    classes : sequence of C str

    Returns
    -------
    bool [C, S]
        S single classes; an identity matrix without compound classes.
    """
    singles = single_classes(classes)
    return np.array([[s in components(name, classes) for s in singles] for name in classes])
