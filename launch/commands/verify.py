"""``dfer verify``: find damage in packed shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from launch.console import ProgressBar, new_console, print_line

_MAX_KEYS = 5  # damaged clips named on a line


def verify(
    location: Annotated[
        str, typer.Argument(help="Folder of shards, or its URL.", metavar="SHARDS")
    ],
) -> None:
    """Check every byte of packed shards.

    Names the files to copy again, and exits with status 1 if any is damaged.

    Example: [bold]dfer verify data/dfew[/bold]
    """
    from dfer_dist.data.verify import verify as find_damage

    console = new_console()
    with ProgressBar(console, "verify shards") as progress:
        index, damaged = find_damage(location, progress)
    for file in damaged:
        print_line(console, f"copy again {file.file}: {file.reason}{_affected(file.clips)}")
    if index:
        num_clips = sum(shard.clips for shard in index.shards)
        state = f"{len(damaged)} files are damaged" if damaged else "no file is damaged"
        console.print(f"{len(index.shards)} shards, {num_clips} clips: {state}")
    if damaged:
        sys.exit(1)


def _affected(keys: Sequence[str]) -> str:
    """Return the first clips of a damaged file for its line."""
    if not keys:
        return ""
    text = f"; affected clips: {', '.join(keys[:_MAX_KEYS])}"
    if len(keys) > _MAX_KEYS:
        text += f" and {len(keys) - _MAX_KEYS} more"
    return text
