"""Portable checkpoints: independent of the number of ranks and of the ZeRO stage, complete or absent.

``checkpoints/step-00000120/`` holds ``model.safetensors`` (float32 master weights of what is trained), ``optimizer.safetensors``
(moments by parameter name, as ``MOMENT:NAME``), ``state.json``, ``config.yaml`` and, last, the mark ``COMPLETE``. Frozen
weights are not stored: ``state.json`` keeps a checksum of them, which is asserted when they have been loaded again. Only a
checkpoint that no pretrained file can complete, a converted one, has them in ``frozen.safetensors``.
``LATEST`` and ``BEST`` are files that name a step's folder and are moved by rename.

DeepSpeed's own format is not used: in 0.19.8 its universal loading left frozen parameters at their fresh initialisation and,
under ZeRO-3, copied group 0's learning rate into all groups; saving is not atomic; loading unpickles.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfer_dist import UserError
from dfer_dist.config import Config, Optimizer
from dfer_dist.configfile import dump_config, read_config
from dfer_dist.engine import Engine
from dfer_dist.ranks import Ranks
from dfer_dist.rundir import fsync_dir, read_json, write_json, write_text

MODEL, OPTIMIZER, STATE, CONFIG, COMPLETE = "model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "COMPLETE"
FROZEN = "frozen.safetensors"  # not in every checkpoint

_MOMENTS = {Optimizer.sgd: ("momentum_buffer",), Optimizer.adamw: ("exp_avg", "exp_avg_sq")}


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
            digest.update(name.encode() + p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, engine: Engine, config: Config, state: dict[str, Any], ranks: Ranks) -> Path:
    """Write ``folder/step-N`` and move LATEST to it. Collective: every rank must call it at the same step.

    Parameters
    ----------
    folder : Path
        The fold's ``checkpoints`` folder.
    state : dict
        Goes into ``state.json``; ``state["step"]`` (steps done) names the checkpoint.
    """
    target = folder / f"step-{state['step']:08d}"
    # gathering runs on all ranks; the copies are kept on rank 0 only
    weights = _gather(engine, ranks, lambda p: safe_get_full_fp32_param(p))
    moments: dict[str, Tensor] = {}
    if state["step"] > state["skipped_steps"]:  # before the first step torch has made no moments
        _link_moments(engine)
        for key in _MOMENTS[config.optim.name]:
            own = _gather(engine, ranks, lambda p, key=key: safe_get_full_optimizer_state(p, key))
            moments |= {f"{key}:{name}": value for name, value in own.items()}
    if ranks.is_main and not (target / COMPLETE).exists():
        write(target, weights, moments, config, state)
    if ranks.is_main:
        point(folder, "LATEST", target)
    ranks.share(None)  # nobody goes on, or leaves, before the checkpoint stands
    return target


def _gather(engine: Engine, ranks: Ranks, get: Any) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, p in engine.trained.items():
        value = get(p)
        if ranks.is_main:
            out[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    return out


def write(
    target: Path,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    config: Config,
    state: dict[str, Any],
    frozen: dict[str, Tensor] | None = None,
    texts: dict[str, str] | None = None,
) -> None:
    """Write one checkpoint folder, whole or not at all, in the place of an incomplete one.

    Parameters
    ----------
    frozen : dict of name to tensor, optional
        Weights that are not trained, to be stored in full.
    texts : dict of name to str, optional
        Further files for the folder.
    """
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(weights, temporary / MODEL)
    save_file(moments, temporary / OPTIMIZER)
    if frozen:
        save_file(frozen, temporary / FROZEN)
    for name, text in (texts or {}).items():
        write_text(temporary / name, text)
    for name in (MODEL, OPTIMIZER, *([FROZEN] if frozen else [])):
        with (temporary / name).open("rb") as f:
            os.fsync(f.fileno())
    write_text(temporary / CONFIG, dump_config(config))
    write_json(temporary / STATE, state)
    write_text(temporary / COMPLETE, "")
    if target.exists():  # a folder without its mark: left by a crash
        shutil.rmtree(target)
    temporary.rename(target)
    fsync_dir(target.parent)


def point(folder: Path, name: str, target: Path) -> None:
    """Let the pointer ``name`` (LATEST or BEST) name ``target``."""
    write_text(folder / name, target.name + "\n")


def pointed(folder: Path, name: str) -> Path | None:
    """The complete checkpoint a pointer names, or None."""
    file = folder / name
    target = folder / file.read_text().strip() if file.is_file() else None
    return target if target and (target / COMPLETE).is_file() else None


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from: what LATEST names, or None where nothing was ever saved.

    If that one has lost its mark, the last complete one stands in, and a line says so.

    Raises
    ------
    UserError
        If checkpoints were written and none of them is complete.
    """
    found = pointed(folder, "LATEST")
    if found or not (folder / "LATEST").is_file():
        return found
    complete = sorted(d for d in folder.glob("step-*") if (d / COMPLETE).is_file())
    named = (folder / "LATEST").read_text().strip()
    if not complete:
        raise UserError(f"{folder}: LATEST names {named}, which is not complete; remove {folder.parent} to train from the start")
    print(f"checkpoint {named} is not complete: going on from {complete[-1].name}", file=sys.stderr, flush=True)
    return complete[-1]


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last ``keep`` complete checkpoints and those that LATEST and BEST name."""
    spare = {pointed(folder, "LATEST"), pointed(folder, "BEST")}
    complete = sorted(d for d in folder.glob("step-*") if (d / COMPLETE).is_file())
    for old in complete[:-keep]:
        if old not in spare:
            shutil.rmtree(old)


def read(path: Path, weights_only: bool = False) -> Checkpoint:
    """Read a checkpoint folder, or the one that LATEST names in a folder of checkpoints.

    Raises
    ------
    UserError
        If there is no complete checkpoint or a file of it is damaged.
    """
    if path.name in ("LATEST", "BEST") or not (path / COMPLETE).is_file():
        found = pointed(path.parent, path.name) if path.name in ("LATEST", "BEST") else pointed(path, "LATEST")
        if found is None:
            raise UserError(f"{path} is no complete checkpoint: give a folder such as runs/NAME/fold-1/checkpoints/step-00000120")
        path = found
    try:
        model = load_file(path / MODEL)
        optimizer = {} if weights_only else load_file(path / OPTIMIZER)
        frozen = load_file(path / FROZEN) if (path / FROZEN).exists() else {}
    except (OSError, SafetensorError) as e:
        raise UserError(f"checkpoint {path} is damaged: {e}") from e
    return Checkpoint(path, read_config(path / CONFIG), read_json(path / STATE), model, optimizer, frozen)


def load_weights(model: nn.Module, trained: dict[str, nn.Parameter], checkpoint: Checkpoint) -> None:
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
        raise UserError(f"checkpoint {path} is of another model: {odd[0]} is {side} ({len(odd)} such names)")
    for name, p in wanted.items():
        if p.shape != weights[name].shape:
            have, want = tuple(weights[name].shape), tuple(p.shape)
            raise UserError(f"checkpoint {path} is of another model: {name} has shape {have}, not {want}")
    model.load_state_dict(weights, strict=False)  # not a plain copy: a model may have to follow with what it derived
    if frozen_checksum(model, trained) != checkpoint.state["frozen_sha256"]:
        raise UserError(
            f"checkpoint {path}: the frozen weights are not those it was trained with (other pretrained file or seed)"
        )


def restore(engine: Engine, checkpoint: Checkpoint, config: Config, ranks: Ranks) -> None:
    """Bring an engine to the state of a checkpoint whose weights its model was built with. Collective.

    DeepSpeed made the masters from weights rounded to bf16, so they are set again; moments are made as zeros first, since
    SGD has none before its first step.
    """
    _make_moments(engine, config.optim.name)
    step = float(checkpoint.state["step"])
    for state in engine.deepspeed.optimizer.optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step - checkpoint.state["skipped_steps"])
    for name, p in engine.trained.items():
        _set(p, checkpoint.model[name], None, ranks)
        for key in _MOMENTS[config.optim.name] if checkpoint.optimizer else ():  # none were saved before the first step
            _set(p, checkpoint.optimizer[f"{key}:{name}"], key, ranks)


def replace_weights(engine: Engine, checkpoint: Checkpoint) -> None:
    """Exchange the weights that forward passes use, leaving masters and moments alone: for evaluating BEST after training."""
    import deepspeed

    for name, p in engine.trained.items():
        with deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=hasattr(p, "ds_id")), torch.no_grad():
            p.copy_(checkpoint.model[name])


def _make_moments(engine: Engine, name: Optimizer) -> None:
    zero = engine.deepspeed.optimizer
    masters = [p for group in zero.optimizer.param_groups for p in group["params"]]
    # ZeRO-3 lends its masters to the inner optimizer for the length of a step only
    for p in getattr(zero, "fp32_partitioned_groups_flat", masters):
        state = zero.optimizer.state[p]
        for key in _MOMENTS[name]:
            state[key] = torch.zeros_like(p)
        if name is Optimizer.adamw:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device if p.is_cuda else "cpu")
    _link_moments(engine)


def _link_moments(engine: Engine) -> None:
    """Let stages 1 and 2 find their views of the moments, which torch makes at the first step (ZeRO-3 keeps no views)."""
    zero = engine.deepspeed.optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _set(p: nn.Parameter, value: Tensor, moment: str | None, ranks: Ranks) -> None:
    """Set a parameter's float32 master, or one of its moments, from a full tensor."""
    if not hasattr(p, "ds_id"):
        value = value.to(p.device)
        safe_set_full_optimizer_state(p, value, moment) if moment else safe_set_full_fp32_param(p, value)
        return
    # ZeRO-3: DeepSpeed's setter of full tensors fails on sizes that the world size does not divide, so pad and cut here
    part = p.ds_tensor.numel()  # type: ignore[attr-defined]
    flat = torch.zeros(part * ranks.world)
    flat[: value.numel()] = value.flatten()
    own = flat[ranks.rank * part : (ranks.rank + 1) * part].to(ranks.device)
    safe_set_local_optimizer_state(p, own, moment) if moment else safe_set_local_fp32_param(p, own)
