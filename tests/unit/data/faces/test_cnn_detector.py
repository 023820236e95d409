from __future__ import annotations

import importlib.metadata
from pathlib import Path

import dlib
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dfer_dist.data.faces.cnn_detector import WINDOW_WIDTH, CnnDetector, read_network

PACKAGE = importlib.metadata.distribution("face-recognition-models")
FILE = Path(str(PACKAGE.locate_file("face_recognition_models/models/mmod_human_face_detector.dat")))


@pytest.fixture(scope="module")
def detector() -> CnnDetector:
    return CnnDetector(FILE)


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """260 x 260 pixels around the face of the astronaut."""
    return Image.fromarray(data.astronaut()).crop((90, 0, 350, 260))


@pytest.mark.parametrize("degrees", [0, 20])
def test_boxes_and_scores_are_those_of_dlib(
    detector: CnnDetector, portrait: Image.Image, degrees: int
) -> None:
    pixels = np.array(portrait.rotate(degrees))
    (face,) = detector.detect(pixels)
    (expected,) = dlib.cnn_face_detection_model_v1(str(FILE))(pixels, 0)
    center = expected.rect.center()
    # sizes in the two pyramids differ by a pixel, and a step is 8 pixels
    assert abs(face.x - center.x) < 12 and abs(face.y - center.y) < 12
    assert face.width == pytest.approx(expected.rect.width(), rel=0.21)
    assert face.score == pytest.approx(expected.confidence, abs=0.06)


def test_each_of_two_faces_is_found_once(detector: CnnDetector, portrait: Image.Image) -> None:
    small = portrait.resize((180, 180))
    canvas = Image.new("RGB", (460, 260), (100, 100, 100))
    canvas.paste(portrait, (0, 0))
    canvas.paste(small, (270, 40))
    left, right = sorted(detector.detect(np.array(canvas)))
    assert abs(left.x - 130) < 15 and abs(right.x - 358) < 15
    # 96 and 66 pixels wide, where the second is smaller than the window
    assert right.width <= WINDOW_WIDTH < left.width
    assert detector.detect(np.array(canvas), 5.0) == []


@pytest.mark.parametrize("shape", [(300, 200, 3), (40, 30, 3), (1, 300, 3)])
def test_no_face_in_noise_and_tiny_pictures(
    detector: CnnDetector, shape: tuple[int, int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert detector.detect(noise) == []


def test_file_of_another_network_is_an_error() -> None:
    content = FILE.read_bytes()
    with pytest.raises(ValueError, match="version 3"):
        read_network(content.replace(b"con_4\1\2", b"con_4\1\3"))


def test_network_gives_a_score_every_eight_pixels() -> None:
    scores = read_network(FILE.read_bytes())(torch.zeros(1, 3, 101, 109))
    assert scores.shape == (1, 1, 10, 11)
