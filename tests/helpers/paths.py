"""Where the checkout, the helper scripts, the shared files and the ``dfer`` command are."""

from __future__ import annotations

import sys
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
SHARED = ROOT.parent / "shared"
DFER = str(Path(sys.executable).with_name("dfer"))
