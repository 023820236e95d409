"""The plot of what predictions rest on."""

from __future__ import annotations

import numpy as np
import pytest

from dfer_dist.reporting.plots.explained import ExplainedRow, explained_figure


@pytest.mark.parametrize("count", [4, 16])
def test_frames_heat_and_weights_are_drawn(count: int) -> None:
    rng = np.random.default_rng(0)
    rows = [
        ExplainedRow(
            title,
            rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8),
            rng.dirichlet(np.ones(count)),
            rng.random((count, 4, 4)),
        )
        for title in ("0.0 to 3.0 s: $fear", "1.0 to 4.0 s: anger")
    ]
    figure = explained_figure("a video", rows)
    for i, row in enumerate(rows):
        frames, weights = figure.axes[2 * i : 2 * i + 2]
        assert frames.get_title(loc="left") == row.title
        assert np.array_equal(frames.images[0].get_array(), row.frames[0])
        assert np.array_equal(frames.images[1].get_array(), row.heat[0])
        assert [bar.get_height() for bar in weights.patches] == row.weights.tolist()
    figure.canvas.draw()
    left, right = figure.get_window_extent().intervalx
    caption = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
    assert left <= caption.x0 and caption.x1 <= right
