"""What is predicted from the logits of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfer_dist.config.schema import Output
from dfer_dist.inference.predict import VideoPrediction


def prediction(output: Output) -> VideoPrediction:
    """Three windows, the last without a face."""
    logits = np.array([[2.0, 1.0, -1.0], [-1.0, -2.0, -3.0], [np.nan] * 3], np.float32)
    spans = np.array([[0.0, 1], [1, 2], [2, 3]])
    return VideoPrediction(
        Path("v.mp4"), ("anger", "disgust", "fear"), spans, logits, None, 3.0, output=output
    )


def test_sigmoid_outputs_name_all_classes_above_a_half_or_the_top_one() -> None:
    video = prediction(Output.sigmoid)
    assert video.top == ["anger+disgust", "anger", ""]
    assert video.probabilities[:2] == pytest.approx(1 / (1 + np.exp(-video.logits[:2])))
    assert video.overall == pytest.approx(video.probabilities[:2].mean(0))
    # 0.57, 0.43 and 0.16: their mean, not the windows' classes
    assert video.prediction(video.overall) == "anger"
    rows = video.csv().splitlines()
    assert rows[0] == "start,end,prediction,anger,disgust,fear"
    assert rows[1] == "0.000,1.000,anger+disgust,0.880797,0.731059,0.268941"


def test_softmax_outputs_name_the_top_class() -> None:
    video = prediction(Output.softmax)
    assert video.top == ["anger", "anger", ""]
    assert video.probabilities[:2].sum(1) == pytest.approx(1)
