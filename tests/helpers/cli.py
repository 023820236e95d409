"""Running ``dfer`` as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DFER = Path(sys.executable).parent / "dfer"


Done = subprocess.CompletedProcess[str]


def dfer(*words: object, cwd: Path, **env: str) -> Done:
    own = {"COLUMNS": "200", "DFER_DEBUG": "", **env}
    return subprocess.run(
        [str(DFER), *map(str, words)],
        cwd=cwd,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def check_refusal(done: Done, *parts: str) -> None:
    """One line for the person, and nothing else on stderr."""
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout
    for part in parts:
        assert part in done.stderr
