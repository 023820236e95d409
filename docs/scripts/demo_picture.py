"""Draw one clip of each class of the demo data set.

``python docs/scripts/demo_picture.py docs/images/demo_classes.png``
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfer_dist.data.sources.records import SEVEN
from dfer_dist.demo.faces import IDENTITIES, render_clip


def contact_sheet(path: Path, size: int = 64) -> None:
    """Write a picture with a row for each class: name, frames of a clip, and intensity."""
    seed, columns = 7, 8
    left, right, side = 104, 96, 2 * size
    sheet = Image.new("RGB", (left + columns * side + right, len(SEVEN) * side), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for label, name in enumerate(SEVEN):
        clip = render_clip(label, (seed + 10 * label) % IDENTITIES, (seed, label), size)
        top = label * side
        draw.text((8, top + side / 2), name, "black", font, anchor="lm")
        for column in range(columns):
            frame = Image.fromarray(clip.frames[int((column + 0.5) / columns * len(clip.frames))])
            frame = frame.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(frame, (left + column * side, top))
        x = np.linspace(left + columns * side + 10, sheet.width - 10, len(clip.intensity))
        y = top + side * (0.7 - 0.4 * clip.intensity)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), "black", 2)
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    contact_sheet(Path(sys.argv[1]))
