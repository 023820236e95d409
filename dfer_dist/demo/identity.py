"""People of the drawn faces."""

from __future__ import annotations

import numpy as np

from dfer_dist.demo.renderer import floats

STREAM = 70  # keeps the generator of identities apart from those of clips
SKINS = ((255, 222, 196), (243, 199, 164), (219, 166, 128), (183, 128, 92), (148, 100, 70))
HAIRS = ((30, 24, 22), (64, 42, 30), (104, 68, 42), (198, 158, 94), (156, 76, 40), (152, 150, 148))
IRISES = ((70, 45, 30), (45, 70, 110), (60, 95, 60), (90, 80, 60))


class Identity:
    """Appearance of the person of a number, which does not depend on the seed of the data set.

    Lengths are relative to a plain face if no unit is given; colours are RGB in 0..255.
    """

    def __init__(self, number: int) -> None:
        # the order of these random numbers is part of the appearance
        rng = np.random.default_rng([STREAM, number])
        u = rng.uniform
        place, shades = u(0, len(SKINS) - 1), np.array(SKINS, np.float32).T
        plain = np.array([np.interp(place, range(len(SKINS)), shade) for shade in shades])
        self.skin = floats(np.clip(plain + rng.normal(0, 5, 3), 0, 255))
        bearded = rng.random() < 0.25
        hair = np.array(HAIRS[rng.integers(len(HAIRS))]) * u(0.85, 1.1)
        self.hair = floats(np.clip(hair, 0, 255))
        self.iris = floats(IRISES[rng.integers(len(IRISES))])
        self.shirt = floats(u(30, 220, 3))
        self.width = u(0.70, 0.82)  # half the head's width, half head heights
        self.jaw = u(0.10, 0.30)  # how much the jaw narrows towards the chin
        self.eye_gap = u(0.92, 1.08)
        self.eye_width = u(0.88, 1.15)
        self.eye_open = u(0.85, 1.15)
        self.brow_height = u(-0.03, 0.03)  # half head heights, up
        self.brow_thick = u(0.75, 1.35)
        self.brow_arch = u(0.02, 0.08)  # half head heights
        self.nose_width = u(0.85, 1.25)
        self.nose_length = u(0.9, 1.1)
        self.mouth_width = u(0.88, 1.12)
        self.mouth_height = u(-0.03, 0.03)  # half head heights, down
        self.lips = u(0.75, 1.35)
        self.hair_volume = u(1.04, 1.18)
        # y at which the hair ends, half head heights
        self.hair_end = (-0.15, 0.35, 1.1)[rng.integers(3)]
        # y of the hair over the forehead; NaN for a bald head
        self.hairline = float("nan") if rng.random() < 0.12 else u(-0.80, -0.62)
        self.parting = u(-0.25, 0.25)  # slope of the hairline
        self.beard = u(0.35, 0.7) if bearded else 0.0  # darkness in 0..1, 0 for none
        self.moustache = bearded and rng.random() < 0.6
        self.glasses = rng.random() < 0.2
        self.lines = u(0.0, 0.25)  # folds of a face at rest, 0..1
