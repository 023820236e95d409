"""``dfer verify``: is a packed set whole, and if not, what to copy again."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch.console import ProgressBar

_SHOWN = 5  # keys of damaged clips on a line


def verify(
    location: Annotated[str, typer.Argument(help="Folder of shards, or its URL.", metavar="DIR")],
) -> None:
    """Check every byte of a packed set against its index. Names what to copy again and ends with status 1 if anything is damaged.

    Example: [bold]dfer verify data/dfew[/bold]
    """
    from rich.console import Console

    from dfer_dist.data.verify import verify as check

    console = Console(highlight=False)
    with ProgressBar(console, "verify shards") as advance:
        index, damage = check(location, advance)
    for d in damage:
        keys = f"; clips hit: {', '.join(d.clips[:_SHOWN])}" if d.clips else ""
        more = f" and {len(d.clips) - _SHOWN} more" if len(d.clips) > _SHOWN else ""
        console.print(f"copy again {d.file}: {d.reason}{keys}{more}", markup=False, soft_wrap=True)
    if index:
        clips = sum(s.clips for s in index.shards)
        state = f"{len(damage)} files are damaged" if damage else "all is whole"
        console.print(f"{len(index.shards)} shards, {clips} clips: {state}")
    if damage:
        sys.exit(1)
