"""NCCL's flight recorder: the last collectives of a rank, kept when it hangs."""

from __future__ import annotations

import os
from pathlib import Path

from torch._C import _distributed_c10d

_NAMES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")  # the second in older versions
_COLLECTIVES = "2000"


def enable() -> None:
    """Let torch record the last 2,000 collectives; call it before the process group is made.

    A size that the user has set is kept.
    """
    if not any(name in os.environ for name in _NAMES):
        os.environ[_NAMES[0]] = _COLLECTIVES


def dump(path: Path) -> None:
    """Write the record, with the Python stack of each collective, as ``torchfrtrace`` reads it.

    It is a pickle, as torch makes it. Nothing here reads it.
    """
    # Not in the stubs of torch.
    path.write_bytes(_distributed_c10d._dump_nccl_trace())  # type: ignore[attr-defined]
