"""Count the faces that each detector of ``dfer pack --faces`` finds on pictures of packages.

``python benchmarks/detectors.py`` prints two tables in Markdown for docs/guides/videos.md. Faces are
two portraits (NASA's of Eileen Collins in scikit-image, the US Navy's of Grace Hopper in
matplotlib; both public domain), turned, scaled, covered, blurred and darkened; 100 faces of
Labeled Faces in the Wild, 25 x 25 pixels, in scikit-image; and drawn ones of the demo. A face counts
as found if the point between the eyes is right to half the distance of the eyes, and else as a
false one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageFilter
from skimage import data
from sklearn.datasets import load_sample_images

from dfer_dist.data.faces.alignment import FacePlacement, face_pose, pose_matrix, warp
from dfer_dist.data.faces.tracking import DETECTORS, track_face
from dfer_dist.demo.faces import render_clip

SIZE = 480
SCENES = (
    *("brick", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "horse", "moon", "page"),
    *("retina", "rocket", "text"),
)


class Picture(NamedTuple):
    """A picture, uint8 [H, W, 3], and the point between the eyes and their distance, if any."""

    pixels: np.ndarray
    eyes: tuple[float, float, float] | None


def portraits() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return photographs with the pose of the face, which is easy to find in them."""
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photographs: list[np.ndarray] = [data.astronaut(), np.asarray(Image.open(file).convert("RGB"))]
    return [(pixels, face_pose(track_face([pixels]).points[0])) for pixels in photographs]


def place(
    distance: float = 60.0,
    degrees: float = 0.0,
    change: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> Iterator[Picture]:
    """Yield the portraits with the eyes at a distance (pixels of SIZE) and an angle."""
    placement = FacePlacement(distance / SIZE, 0.45)
    for pixels, pose in portraits():
        turned = pose - [0, 0, 0, math.radians(degrees)]
        picture = Image.fromarray(warp(pixels, pose_matrix(turned, placement, SIZE), SIZE))
        yield Picture(np.asarray(change(picture)), ((SIZE - 1) / 2, 0.45 * SIZE - 0.5, distance))


def cover(box: tuple[int, int, int, int]) -> Callable[[Image.Image], Image.Image]:
    """Return a function that covers a part of a portrait with grey."""

    def change(image: Image.Image) -> Image.Image:
        image.paste((128, 128, 128), box)
        return image

    return change


def small_faces(part: slice) -> Iterator[Picture]:
    """Yield crops of 25 x 25 pixels, enlarged to 150 on grey: 100 faces, then 100 without one."""
    for crop in data.lfw_subset()[part]:
        grey = Image.fromarray((crop.clip(0, 1) * 255).astype(np.uint8))
        canvas = Image.new("RGB", (320, 320), (110, 110, 110))
        canvas.paste(grey.resize((150, 150), Image.Resampling.BICUBIC), (85, 85))
        # these crops have the eyes here, to some pixels
        eyes = (160.0, 142.0, 62.0) if part.start == 0 else None
        yield Picture(np.asarray(canvas), eyes)


def drawn_faces() -> Iterator[Picture]:
    """Yield a frame of each of 35 clips of the demo, 128 x 128 pixels."""
    for number in range(35):
        clip = render_clip(number % 7, number, (number, number), 128)
        middle = len(clip.frames) // 2
        pose = face_pose(clip.landmarks[middle])
        yield Picture(clip.frames[middle], (pose[0], pose[1], math.exp(pose[2])))


def scenes() -> Iterator[Picture]:
    """Yield photographs and scans without people."""
    pictures = [getattr(data, name)() for name in SCENES] + list(load_sample_images().images)
    for pixels in pictures:
        pixels = (pixels * 255).astype(np.uint8) if pixels.dtype == bool else pixels
        yield Picture(np.asarray(Image.fromarray(pixels).convert("RGB")), None)


def many(*groups: Iterable[Picture]) -> list[Picture]:
    """Return the pictures of several groups."""
    return [picture for group in groups for picture in group]


def blur(image: Image.Image) -> Image.Image:
    """Return a blurred picture."""
    return image.filter(ImageFilter.GaussianBlur(6))


def darken(image: Image.Image) -> Image.Image:
    """Return a picture with an eighth of its brightness."""
    return image.point(lambda value: value // 8)


def all_groups() -> dict[str, list[Picture]]:
    """Return the pictures by group."""
    lower, side = cover((140, 260, 340, 400)), cover((240, 100, 380, 400))
    return {
        "portraits, upright, eyes 20 to 120 pixels apart": many(
            *(place(distance) for distance in (20, 30, 45, 60, 90, 120))
        ),
        "tilted by 15 or 30 degrees": many(*(place(degrees=d) for d in (-30, -15, 15, 30))),
        "tilted by 45 or 60 degrees": many(*(place(degrees=d) for d in (-60, -45, 45, 60))),
        "tilted by 75 or 90 degrees": many(*(place(degrees=d) for d in (-90, -75, 75, 90))),
        "eyes 12 or 16 pixels apart": many(*(place(distance) for distance in (12, 16))),
        "mouth and nose covered": many(*(place(degrees=d, change=lower) for d in (-10, 0, 10))),
        "left half covered": many(*(place(degrees=d, change=side) for d in (-10, 0, 10))),
        "blurred": many(*(place(degrees=d, change=blur) for d in (-10, 0, 10))),
        "dark": many(*(place(degrees=d, change=darken) for d in (-10, 0, 10))),
        "Labeled Faces in the Wild, 25 x 25 pixels": many(small_faces(slice(0, 100))),
        "drawn faces of the demo": many(drawn_faces()),
        "crops without a face, 25 x 25 pixels": many(small_faces(slice(100, 200))),
        "photographs and scans without people": many(scenes()),
    }


def count(pictures: list[Picture], detector: str) -> tuple[int, int]:
    """Return the numbers of faces that are found and of false ones."""
    num_found = num_false = 0
    for pixels, eyes in pictures:
        track = track_face([pixels], detector)
        if not track.found[0]:
            continue
        pose = face_pose(track.points[0])
        is_right = eyes is not None and math.dist(pose[:2], eyes[:2]) < eyes[2] / 2
        num_found += is_right
        num_false += not is_right
    return num_found, num_false


def seconds(detector: str, num_faces: int) -> float:
    """Return the processor seconds a frame of 60 frames of 960 x 540, with a steady face or none."""
    frame = np.full((540, 960, 3), 110, np.uint8)
    if num_faces:
        frame[30:510, 240:720] = next(iter(place())).pixels
    start = time.process_time()
    track = track_face([frame] * 60, detector)
    assert track.found.all() == bool(num_faces)
    return (time.process_time() - start) / 60


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    head = " | ".join(f"`{name}` found | false" for name in DETECTORS)
    print(f"| pictures | number | {head} |\n|---|---|{'---|' * 2 * len(DETECTORS)}")
    for name, pictures in all_groups().items():
        counts = [count(pictures, detector) for detector in DETECTORS]
        print(f"| {name} | {len(pictures)} |", end="")
        print("".join(f" {found} | {false} |" for found, false in counts))
    print(
        f"\n| processor seconds a frame of 960 x 540 | {' | '.join(f'`{d}`' for d in DETECTORS)} |"
    )
    print("|---|" + "---|" * len(DETECTORS))
    for name, num_faces in (("one face, tracked", 1), ("no face, searched in each frame", 0)):
        times = " | ".join(f"{seconds(detector, num_faces):.3f}" for detector in DETECTORS)
        print(f"| {name} | {times} |")


if __name__ == "__main__":
    main()
