from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.faces.contact_sheet import draw_sheet
from dfer_dist.data.video.decode import Video
from dfer_dist.utils.errors import UserError
from tests.helpers.data.videos import draw, encode, two_heads


def test_sheet_shows_eight_frames_and_their_crops(tmp_path: Path) -> None:
    video = Video(encode(tmp_path / "a.mp4", draw(two_heads(24))))
    sheet = np.asarray(draw_sheet(video))
    assert sheet.shape[1] == 8 * 160
    green = (sheet == (60, 230, 90)).all(-1).reshape(len(sheet), 8, 160).sum((0, 2))
    assert (green > 200).tolist() == [True, True, True, True, False, False, True, True]


def test_sheet_of_a_video_without_a_face_is_rejected(tmp_path: Path) -> None:
    video = Video(encode(tmp_path / "a.mp4", draw([[] for _ in range(12)])))
    with pytest.raises(UserError, match="no face in any of 12 frames"):
        draw_sheet(video)
