"""Count every backbone and write ``sizes.csv``, after an update of open_clip or timm.

``python -m tests.helpers.models.backbone_sizes``
"""

from __future__ import annotations

from dataclasses import astuple, fields

import open_clip

from dfer_dist.models.towers.catalog import SIZES, Sizes, count, names_of_timm
from dfer_dist.models.towers.open_clip_models import refusal
from dfer_dist.utils.files import write_text


def main() -> None:
    """Write the sizes of all that :func:`~dfer_dist.models.towers.catalog.find` lists."""
    accepted = [n for n in open_clip.list_models() if not refusal(open_clip.get_model_config(n))]
    lines = [",".join(["name", *(field.name for field in fields(Sizes))])]
    for name in ["tiny", *accepted, *names_of_timm()]:
        sizes = ",".join(map(str, astuple(count(name))))
        lines.append(f"{name},{sizes.replace('None', '')}")
    write_text(SIZES, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
