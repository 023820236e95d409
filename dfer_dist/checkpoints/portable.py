"""Portable checkpoints: independent of the number of ranks and of the ZeRO stage, complete or absent.

``checkpoints/step-00000120/`` holds ``model.safetensors`` (float32 master weights of what is trained), ``optimizer.safetensors``
(moments by parameter name, as ``MOMENT:NAME``), ``state.json``, ``config.yaml`` and, last, the mark ``COMPLETE`` with the
sha256 of each file. Frozen weights are not stored: ``state.json`` keeps a checksum of them, which is asserted when they have
been loaded again. Only a checkpoint that no pretrained file can complete, a converted one, has them in ``frozen.safetensors``.
``LATEST`` and ``BEST`` are files that name a step's folder and are moved by rename. :mod:`dfer_dist.checkpoints.optimizer_state` takes these
tensors out of an engine and puts them back, :mod:`dfer_dist.checkpoints.async_checkpointer` writes them while training goes on.

DeepSpeed's own format is not used: in 0.19.8 its universal loading left frozen parameters at their fresh initialisation and,
under ZeRO-3, copied group 0's learning rate into all groups; saving is not atomic; loading unpickles.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Config
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import (
    atomic_path,
    fsync_dir,
    read_json,
    sha256_file,
    write_json,
    write_text,
)

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE, CONFIG, COMPLETE = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "config.yaml",
    "COMPLETE",
)
FROZEN = "frozen.safetensors"  # not in every checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, read into memory. ``optimizer`` is empty where only weights were asked for, ``frozen`` where
    the folder has none."""

    path: Path
    config: Config
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    frozen: dict[str, Tensor]


def frozen_checksum(model: nn.Module, trained: dict[str, nn.Parameter]) -> str:
    """sha256 over names and bytes of every parameter that is not trained; call it before DeepSpeed casts or shards them."""
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
) -> None:
    """Write one checkpoint folder, whole or not at all, in the place of what stood there.

    Parameters
    ----------
    frozen : dict of name to tensor, optional
        Weights that are not trained, to be stored in full.
    texts : dict of name to str, optional
        Further files for the folder.

    Raises
    ------
    OSError
        If there is no room, or no folder to write to; nothing is left behind then.
    """
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _save_tensors(weights, temporary / MODEL)
        _save_tensors(moments, temporary / OPTIMIZER)
        if frozen:
            _save_tensors(frozen, temporary / FROZEN)
        for name, text in (texts or {}).items():
            write_text(temporary / name, text)
        write_text(temporary / CONFIG, dump_config(config))
        write_json(temporary / STATE, state)
        write_json(
            temporary / COMPLETE,
            {"sha256": {f.name: sha256_file(f) for f in sorted(temporary.iterdir())}},
        )
        old = target.with_name(f".old-{target.name}")
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_dir(target.parent)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        with atomic_path(
            path
        ) as temporary:  # for its mode too: safetensors writes what only its owner may read
            save_file(tensors, temporary)
    except SafetensorError as e:  # its own word for any failure to write
        raise OSError(f"{path}: {e}") from e


def set_pointer(folder: Path, name: str, target: Path) -> None:
    """Let the pointer ``name`` (LATEST or BEST) name ``target``."""
    if not (folder / name).is_file() or (folder / name).read_text().strip() != target.name:
        write_text(folder / name, target.name + "\n")


def read_pointer(folder: Path, name: str) -> Path | None:
    """The complete checkpoint a pointer names, or None."""
    file = folder / name
    target = folder / file.read_text().strip() if file.is_file() else None
    return target if target and (target / COMPLETE).is_file() else None


def complete(folder: Path) -> list[Path]:
    """Checkpoints that bear their mark, oldest first."""
    return sorted(d for d in folder.glob("step-*") if (d / COMPLETE).is_file())


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from: the last complete one with no damage, or None where nothing was ever saved.

    A damaged one is put aside as ``damaged-step-…`` and a line says so. What a killed process left half written is removed.

    Raises
    ------
    UserError
        If checkpoints were written and none of them is whole.
    """
    for old in folder.glob(
        ".old-step-*"
    ):  # a kill came between the two renames that put another in its place, or after them
        target = folder / old.name.removeprefix(".old-")
        shutil.rmtree(old) if target.exists() else old.rename(target)
    for left in (*folder.glob(".step-*"), *folder.glob(".LATEST.*"), *folder.glob(".BEST.*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    damaged = 0
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = find_corruption(path)
        if not fault:
            if damaged:
                logger.info(f"going on from {path.name}")
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
            f"{folder} holds no checkpoint that is whole: remove {folder.parent} to train from the start"
        )
    return None


def find_corruption(path: Path, names: Sequence[str] | None = None) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file is held against the sha256 that was taken when it was written.

    Parameters
    ----------
    names : sequence of str, optional
        Look at these files only.
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
    """Remove all but the last ``keep`` complete checkpoints, those that LATEST and BEST name, and the best of each that stays.

    Raises
    ------
    OSError, UserError
        If one cannot be removed, or one that stays cannot be read.
    """
    spare = {read_pointer(folder, "LATEST"), read_pointer(folder, "BEST")}
    found = complete(folder)
    for kept in {*found[-keep:], *filter(None, spare)}:
        best = read_json(kept / STATE).get("best")
        spare |= {step_folder(folder, best["step"])} if best else set()
    for old in found[:-keep]:
        if old not in spare:
            going = old.with_name(f".{old.name}-going")
            old.rename(going)  # a folder with its mark is whole
            shutil.rmtree(going)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` steps done lies."""
    return folder / f"step-{step:08d}"


def read(path: Path, weights_only: bool = False) -> Checkpoint:
    """Read a checkpoint folder, or the one that LATEST names in a folder of checkpoints.

    Raises
    ------
    UserError
        If there is no complete checkpoint or a file of it is damaged.
    """
    if path.name in ("LATEST", "BEST") or not (path / COMPLETE).is_file():
        found = (
            read_pointer(path.parent, path.name)
            if path.name in ("LATEST", "BEST")
            else read_pointer(path, "LATEST")
        )
        if found is None:
            raise UserError(
                f"{path} is no complete checkpoint: give a folder such as runs/NAME/fold-1/checkpoints/step-00000120"
            )
        path = found
    fault = find_corruption(path, (MODEL, FROZEN, CONFIG, STATE) if weights_only else None)
    if fault:
        raise UserError(f"checkpoint {path} is damaged: {fault}")
    model = load_file(path / MODEL)
    optimizer = {} if weights_only else load_file(path / OPTIMIZER)
    frozen = load_file(path / FROZEN) if (path / FROZEN).exists() else {}
    return Checkpoint(
        path, read_config(path / CONFIG), read_json(path / STATE), model, optimizer, frozen
    )


def load_weights(
    model: nn.Module, trained: dict[str, nn.Parameter], checkpoint: Checkpoint
) -> None:
    """Put a checkpoint's weights into a model that no engine has touched, and check that it is the same model.

    Raises
    ------
    UserError
        If names, shapes or frozen weights are those of another model.
    """
    path = checkpoint.path
    weights = checkpoint.model | checkpoint.frozen
    wanted = dict(model.named_parameters()) if checkpoint.frozen else trained
    odd = sorted(wanted.keys() ^ weights.keys())
    if odd:
        side = "only in the checkpoint" if odd[0] in weights else "missing in the checkpoint"
        raise UserError(
            f"checkpoint {path} is of another model: {odd[0]} is {side} ({len(odd)} such names)"
        )
    for name, p in wanted.items():
        if p.shape != weights[name].shape:
            have, want = tuple(weights[name].shape), tuple(p.shape)
            raise UserError(
                f"checkpoint {path} is of another model: {name} has shape {have}, not {want}"
            )
    model.load_state_dict(
        weights, strict=False
    )  # not a plain copy: a model may have to follow with what it derived
    if frozen_checksum(model, trained) != checkpoint.state["frozen_sha256"]:
        raise UserError(
            f"checkpoint {path}: the frozen weights are not those it was trained with (other pretrained file or seed)"
        )
