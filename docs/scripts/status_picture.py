"""Take a picture of the current ``dfer status``.

``python docs/scripts/status_picture.py runs/demo docs/images/status.svg``
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from dfer_dist.runs.layout import RunDir
from launch.console import console as terminal
from launch.slurm.status import get_run_state, query_squeue_for, render

WIDTH = 100  # columns


def main() -> None:
    run, picture = RunDir(Path(sys.argv[1]).resolve()), Path(sys.argv[2])
    console = Console(
        record=True, width=WIDTH, force_terminal=True, highlight=False, file=io.StringIO()
    )
    # the table is fitted to the terminal of the commands
    terminal.width = WIDTH
    console.print(render([get_run_state(run, query_squeue_for(run))]))
    svg = console.export_svg(title=f"dfer status {sys.argv[1]}")
    # rich links fonts on a server, which a picture in a page may not load. Any font of fixed width
    # puts the text in the same place.
    picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
