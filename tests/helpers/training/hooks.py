"""Faults to inject into a rank.

A test appends a call to a module of a run's own copy of the code; none of this is in the product.
A hook with a ``mark`` takes effect once: it creates that file, which spares the restarted rank.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import torch


def once(mark: Path) -> bool:
    """Return whether this is the first call for ``mark`` on any rank and in any attempt."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def kill_in_save(checkpoint: Any, mark: str, stage: str, step: int) -> None:
    """SIGKILL rank 0 while it writes the first checkpoint from ``step`` on.

    ``stage`` is ``before`` the tensors, ``between`` the two files, before the checkpoint is
    ``complete``, or before the ``pointer`` is moved.
    """
    save_tensors, write_json, set_pointer = (
        checkpoint.save_tensors,
        checkpoint.write_json,
        checkpoint.set_pointer,
    )

    def die(path: Path) -> None:
        name = path.parent.name if stage != "pointer" else path.name
        if int(name.split("-")[1]) >= step and once(Path(mark)):
            os.kill(os.getpid(), signal.SIGKILL)

    def save_tensors_(tensors: Any, path: Path) -> None:
        if path.name == {"before": checkpoint.MODEL, "between": checkpoint.OPTIMIZER}.get(stage):
            die(path)
        save_tensors(tensors, path)

    def write_json_(path: Path, obj: Any) -> None:
        if stage == "complete" and path.name == checkpoint.COMPLETE:
            die(path)
        write_json(path, obj)

    def set_pointer_(folder: Path, name: str, target: Path) -> None:
        if stage == "pointer" and name == "LATEST":
            die(target)
        set_pointer(folder, name, target)

    checkpoint.save_tensors, checkpoint.write_json, checkpoint.set_pointer = (
        save_tensors_,
        write_json_,
        set_pointer_,
    )


def full_disk_at(checkpoint: Any, mark: str, step: int, times: int) -> None:
    """Fail the first ``times`` writes of the checkpoint of ``step`` with a full disk."""
    write = checkpoint.write

    def write_(target: Path, *args: Any, **more: Any) -> None:
        if int(target.name.split("-")[1]) == step and any(
            once(Path(f"{mark}-{i}")) for i in range(times)
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(target, *args, **more)

    checkpoint.write = write_


def allow_fp16_on_cpu() -> None:
    """Let DeepSpeed train in float16 on a processor without float16 units, at 1 GFLOP/s."""
    torch.ops.mkldnn._is_mkldnn_fp16_supported = lambda: True  # type: ignore[assignment]


def begin_with_loss_scale(loss_scale: Any, scale: float) -> None:
    """Begin with a loss scale that is too large."""
    replace_scaler = loss_scale.replace_scaler

    def replace_scaler_(optimizer: Any) -> Any:
        scaler = replace_scaler(optimizer)
        scaler.next_scale = scale
        return scaler

    loss_scale.replace_scaler = replace_scaler_


def poison(stream: Any, key: str) -> None:
    """Put a NaN into the training pixels of the clip ``key``, or of all clips if it is ``*``."""
    pixels = stream.Batch.pixels

    def pixels_(self: Any, device: Any) -> Any:
        frames = pixels(self, device).float() / 255
        for i, own in enumerate(self.keys):
            if key in (own, "*") and torch.is_grad_enabled():
                frames[i, 0, 0, 0, 0] = torch.nan
        return frames

    stream.Batch.pixels = pixels_


def slow(meter: Any, seconds: float) -> None:
    """Make every step take ``seconds`` longer."""
    end_step = meter.Meter.end_step

    def end_step_(self: Any, clips: int) -> None:
        time.sleep(seconds)
        end_step(self, clips)

    meter.Meter.end_step = end_step_


def fail(meter: Any, rank: int, step: int) -> None:
    """Raise an error on ``rank`` in the ``step``-th step of every attempt."""
    end_step = meter.Meter.end_step
    steps = iter(range(1, step))

    def end_step_(self: Any, clips: int) -> None:
        if os.environ["RANK"] == str(rank) and next(steps, None) is None:
            raise ValueError("a fault of the program")
        end_step(self, clips)

    meter.Meter.end_step = end_step_


def refuse(shards: Any, fold: int) -> None:
    """Let fold ``fold`` fail with an error that the user can fix."""
    test_shards = shards.Index.test_shards

    def test_shards_(self: Any, number: int) -> Any:
        if number == fold:
            raise shards.UserError(f"fold {fold} is broken")
        return test_shards(self, number)

    shards.Index.test_shards = test_shards_


def fail_to_import(node: str) -> None:
    """Fail to import a package on one node of a cluster."""
    if socket.gethostname() == node:
        raise ModuleNotFoundError("No module named 'numbers_of_this_node'")
