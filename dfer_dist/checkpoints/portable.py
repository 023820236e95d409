"""Portable checkpoints: independent of the number of ranks and of the ZeRO stage.

A checkpoint is complete or absent. ``checkpoints/step-00000120/`` holds

- ``model.safetensors``: float32 master weights of what is trained,
- ``ema.safetensors``: with ``train.ema``, the moving average of these weights, which is tested,
- ``optimizer.safetensors``: moments by parameter name, as ``MOMENT:NAME``,
- ``state.json`` and ``config.yaml``,
- ``COMPLETE``, which is written last, with the sha256 of each file.

Frozen weights are not stored. ``state.json`` has their checksum, which is checked when they have
been loaded again. Only a checkpoint that no pretrained file can complete, a converted one, has them
in ``frozen.safetensors``. ``LATEST`` and ``BEST`` are files that name a checkpoint's folder; they
are replaced by rename. :mod:`dfer_dist.checkpoints.optimizer_state` gathers these tensors from an
engine and restores them, :mod:`dfer_dist.checkpoints.async_checkpointer` writes them while training
continues.

DeepSpeed's own format is not used. In version 0.19.8 its universal loading left frozen parameters
at their fresh initialization and, under ZeRO-3, copied group 0's learning rate into all groups;
saving is not atomic; loading unpickles.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfer_dist.checkpoints.state import CheckpointInfo
from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Config
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, fsync, read_json, sha256_file, write_json, write_text

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
AVERAGE = "ema.safetensors"
STATE, CONFIG, COMPLETE = "state.json", "config.yaml", "COMPLETE"
# Only in converted checkpoints.
FROZEN = "frozen.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, read into memory.

    Attributes
    ----------
    path : Path
        Its folder.
    config : Config
        The settings of the run.
    state : dict
        The content of ``state.json``.
    model : dict of str to float32 Tensor
        Trained weights by parameter name: their moving average where there is one and only weights
        were asked for.
    optimizer : dict of str to float32 Tensor
        Moments by ``MOMENT:NAME``; empty if only weights were asked for.
    frozen : dict of str to float32 Tensor
        Frozen weights; empty if the folder has none.
    ema : dict of str to float32 Tensor
        The moving average of the trained weights, to resume with; empty if there is none or only
        weights were asked for.
    """

    path: Path
    config: Config
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    frozen: dict[str, Tensor]
    ema: dict[str, Tensor]

    @property
    def info(self) -> CheckpointInfo:
        """The typed part of ``state``."""
        return CheckpointInfo.from_json(self.state, str(self.path / STATE))


def frozen_checksum(model: nn.Module, trained: Container[str]) -> str:
    """Return the sha256 over names and bytes of every parameter that is not trained.

    Call it before DeepSpeed casts or shards the parameters.
    """
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        if name not in trained:
            digest.update(
                name.encode() + p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def write(
    target: Path,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    config: Config,
    state: dict[str, Any],
    frozen: dict[str, Tensor] | None = None,
    texts: dict[str, str] | None = None,
    ema: dict[str, Tensor] | None = None,
) -> None:
    """Write one checkpoint folder, completely or not at all; replace an existing one.

    Parameters
    ----------
    weights, moments, ema : dict of str to float32 Tensor
        As :func:`~dfer_dist.checkpoints.optimizer_state.gather` returns them.
    state : dict
        The content of ``state.json``.
    frozen : dict of str to Tensor, optional
        Weights that are not trained, to be stored in full.
    texts : dict of str to str, optional
        Names and contents of further files.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; nothing is left behind then.
    """
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_tensors(weights, temporary / MODEL)
        save_tensors(moments, temporary / OPTIMIZER)
        for tensors, name in ((frozen, FROZEN), (ema, AVERAGE)):
            if tensors:
                save_tensors(tensors, temporary / name)
        for name, text in (texts or {}).items():
            write_text(temporary / name, text)
        write_text(temporary / CONFIG, dump_config(config))
        write_json(temporary / STATE, state)
        hashes = {file.name: sha256_file(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / COMPLETE, {"sha256": hashes})
        _replace(target, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(target.parent)


def _replace(target: Path, temporary: Path) -> None:
    """Rename ``temporary`` to ``target``; :func:`newest` repairs an interruption."""
    old = target.with_name(f".old-{target.name}")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors atomically as safetensors.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written.
    """
    try:
        # For its mode too: safetensors writes files that only their owner may read.
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
    # Its error for any failure to write.
    except SafetensorError as e:
        raise OSError(f"{path}: {e}") from e


def set_pointer(folder: Path, name: str, target: Path) -> None:
    """Let the pointer ``name`` (LATEST or BEST) point to ``target``."""
    if read_pointer(folder, name) != target:
        write_text(folder / name, target.name + "\n")


def read_pointer(folder: Path, name: str) -> Path | None:
    """Return the complete checkpoint that a pointer points to, or None."""
    if (folder / name).is_file():
        target = folder / (folder / name).read_text().strip()
        if (target / COMPLETE).is_file():
            return target
    return None


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints that have their ``COMPLETE`` file, oldest first."""
    return sorted(d for d in folder.glob("step-*") if (d / COMPLETE).is_file())


def newest(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: the last complete and undamaged one.

    None if nothing was ever saved. A damaged checkpoint is renamed to ``damaged-step-…`` and
    logged. Files that a killed process left half written are removed.

    Raises
    ------
    UserError
        If all of them are damaged.
    """
    _remove_leftovers(folder)
    damaged = 0
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = find_corruption(path)
        if fault is None:
            if damaged:
                logger.info(f"resuming from {path.name}")
            return path
        damaged += 1
        logger.warning(
            f"checkpoint {path.name} is damaged ({fault}): put aside as damaged-{path.name}"
        )
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if damaged or (folder / "LATEST").is_file():
        raise UserError(
            f"{folder} has no undamaged checkpoint: remove {folder.parent} to train from the start"
        )
    return None


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written, and undo a half-done replacement."""
    for old in folder.glob(".old-step-*"):
        # The kill came between the two renames that replace a checkpoint, or after them.
        target = folder / old.name.removeprefix(".old-")
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for left in (*folder.glob(".step-*"), *folder.glob(".LATEST.*"), *folder.glob(".BEST.*")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def find_corruption(path: Path, names: Sequence[str] | None = None) -> str | None:
    """Return what is wrong with a checkpoint folder, or None.

    Every file is compared with the sha256 that was taken when it was written.

    Parameters
    ----------
    path : Path
        The checkpoint's folder.
    names : sequence of str, optional
        Check these files only.
    """
    if not (path / COMPLETE).is_file():
        return f"{COMPLETE} is missing"
    try:
        wanted = read_json(path / COMPLETE)["sha256"]
    except (UserError, KeyError):
        return f"{COMPLETE} cannot be read"
    for name, sha256 in wanted.items():
        if names is not None and name not in names:
            continue
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_file(path / name) != sha256:
            return f"{name} is not what was written"
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last ``keep`` complete checkpoints.

    Those that LATEST and BEST point to are kept, and the best one by each that is kept. Where one
    cannot be removed or read, the others are kept for now.
    """
    spare = {read_pointer(folder, "LATEST"), read_pointer(folder, "BEST")}
    found = complete(folder)
    try:
        for kept in {*found[-keep:], *filter(None, spare)}:
            best = read_json(kept / STATE).get("best")
            if best:
                spare.add(step_folder(folder, best["step"]))
        for old in sorted(set(found[:-keep]) - spare):
            going = old.with_name(f".{old.name}-going")
            # By then the folder must not have its name: one with COMPLETE counts as complete.
            old.rename(going)
            shutil.rmtree(going)
    except (OSError, UserError) as e:
        logger.warning(f"old checkpoints are kept for now: {e}")


def step_folder(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` steps."""
    return folder / f"step-{step:08d}"


def read(path: Path, weights_only: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : Path
        A checkpoint's folder, LATEST or BEST next to it, or the folder of LATEST.
    weights_only : bool
        Read what is tested: the moving average of the weights where there is one, and no moments.

    Raises
    ------
    UserError
        If the checkpoint is not complete or a file of it is damaged.
    """
    path = _resolve(path)
    files = (MODEL, AVERAGE, FROZEN, CONFIG, STATE) if weights_only else None
    fault = find_corruption(path, files)
    if fault:
        raise UserError(f"checkpoint {path} is damaged: {fault}")
    ema, frozen = (
        load_file(path / name) if (path / name).exists() else {} for name in (AVERAGE, FROZEN)
    )
    return Checkpoint(
        path=path,
        config=read_config(path / CONFIG),
        state=read_json(path / STATE),
        model=ema if ema and weights_only else load_file(path / MODEL),
        optimizer={} if weights_only else load_file(path / OPTIMIZER),
        frozen=frozen,
        ema={} if weights_only else ema,
    )


def _resolve(path: Path) -> Path:
    """Return the checkpoint's folder that a path or a pointer means."""
    if path.name in ("LATEST", "BEST"):
        found = read_pointer(path.parent, path.name)
    elif (path / COMPLETE).is_file():
        found = path
    else:
        found = read_pointer(path, "LATEST")
    if found is None:
        raise UserError(
            f"{path} is no complete checkpoint: give a folder such as "
            "runs/NAME/fold-1/checkpoints/step-00000120"
        )
    return found


def load_weights(
    model: nn.Module, trained: Mapping[str, nn.Parameter], checkpoint: Checkpoint
) -> None:
    """Load a checkpoint's weights into a model that no engine has wrapped.

    Parameters
    ----------
    model : nn.Module
        The model.
    trained : dict of str to nn.Parameter
        Its trained parameters by name.
    checkpoint : Checkpoint
        What is loaded.

    Raises
    ------
    UserError
        If names, shapes or frozen weights are those of another model.
    """
    path = checkpoint.path
    weights = checkpoint.model | checkpoint.frozen
    wanted = dict(model.named_parameters()) if checkpoint.frozen else trained
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    expected = {name: tuple(p.shape) for name, p in wanted.items()}
    names = sorted(shapes.keys() | expected.keys())
    different = [name for name in names if shapes.get(name) != expected.get(name)]
    if different:
        name = different[0]
        raise UserError(
            f"checkpoint {path} is of another model: the shape of {name} is "
            f"{shapes.get(name, 'none')} in it and {expected.get(name, 'none')} in the model "
            f"({len(different)} such names); use the settings it was trained with"
        )
    # Not a plain copy: a model may have to update what it derived from its weights.
    model.load_state_dict(weights, strict=False)
    if frozen_checksum(model, trained) != checkpoint.info.frozen_sha256:
        raise UserError(
            f"checkpoint {path}: the frozen weights are not those it was trained with "
            "(other pretrained file or seed)"
        )
