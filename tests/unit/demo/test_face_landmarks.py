from __future__ import annotations

import numpy as np
import pytest

from dfer_dist.demo.faces import render_clip


def test_rendered_landmarks_follow_the_action_units() -> None:
    happy, alarmed = render_clip(0, 3, 5, 64), render_clip(4, 3, 5, 64)
    for clip, sign in ((happy, 1), (alarmed, -1)):
        rest, apex = (
            clip.landmarks[clip.intensity.argmin()],
            clip.landmarks[clip.intensity.argmax()],
        )
        width = [np.hypot(*(p[54] - p[48])) / np.hypot(*(p[45] - p[36])) for p in (rest, apex)]
        # a smile widens the mouth, a dropped jaw narrows it
        assert (width[1] - width[0]) * sign > 0.05
    opening = [np.hypot(*(p[66] - p[62])) for p in alarmed.landmarks]
    assert np.argmax(opening) == pytest.approx(alarmed.intensity.argmax(), abs=2)
