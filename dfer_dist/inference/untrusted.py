"""Checkpoints of other programs, read without running any code that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from dfer_dist.utils.errors import UserError


class _Inert:
    """Placeholder of any class or function that a file names: it takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        # what argparse saw, in checkpoints that hold it
        self.state = state if isinstance(state, dict) else {}


def read_untrusted(path: Path, kind: str) -> Any:
    """Return the content of a file of ``torch.save``.

    torch's restricted unpickler refuses classes that it does not know. Such names are bound to a
    placeholder first, so that nothing is imported or called by name.

    Parameters
    ----------
    path : Path
    kind : str
        What the file should be, for the error: "a checkpoint of DFER-CLIP".

    Raises
    ------
    UserError
        If the restricted unpickler refuses it all the same.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in named]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile file can fail in any way: zip, pickle, sizes, types.
    except Exception as e:
        # torch advises to execute the file, before it says what is wrong
        text = str(e).rpartition("trusted source.")[2].rpartition("WeightsUnpickler error:")[2]
        reason = " ".join(text.partition("Check the documentation")[0].split())[:160]
        reason = reason or type(e).__name__
        raise UserError(f"{path} cannot be read as {kind}: {reason}") from e


def arguments(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the command line that a program stored in its checkpoint under ``args``, or {}."""
    args = loaded.get("args")
    return args.state if isinstance(args, _Inert) and hasattr(args, "state") else {}


def is_state(found: object) -> TypeGuard[dict[str, Tensor]]:
    """Return whether this is a ``state_dict`` with at least one tensor."""
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    )
