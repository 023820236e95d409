"""Checkpoints in the layouts of VideoMAE and MAE-DFER, and what their authors compute from them.

Written from the public code of MCG-NJU/VideoMAE and sunlicai/MAE-DFER (modeling_finetune.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HIDDEN, LAYERS, HEADS, PATCH, TUBELET = 128, 192, 2, 2, 8, 2
REGION = (1, 2, 4)
State = dict[str, Tensor]


def made_state(regions: int = 0) -> State:
    """Return random weights of a fine-tuned model, of MAE-DFER's kind with ``regions``."""
    torch.manual_seed(regions)
    state = {
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, TUBELET, PATCH, PATCH) * 0.05,
        "patch_embed.proj.bias": torch.randn(WIDTH) * 0.1,
        **_norm("fc_norm"),
        "head.weight": torch.randn(7, WIDTH),
        "head.bias": torch.randn(7),
    }
    if regions:
        state["lg_region_tokens"] = torch.randn(regions, WIDTH)
    for i in range(LAYERS):
        block = f"blocks.{i}"
        if regions:
            state |= _norm(f"{block}.first_attn_norm0") | _norm(f"{block}.second_attn_norm0")
            state |= _norm(f"{block}.third_attn_norm0") | _norm(f"{block}.third_attn_norm1")
            for attn in ("first_attn", "second_attn", "third_attn"):
                state |= _attention(f"{block}.{attn}", ("q", "kv"))
        else:
            state |= _norm(f"{block}.norm1") | _attention(f"{block}.attn", ("qkv",))
        state |= _norm(f"{block}.norm2")
        state |= _linear(f"{block}.mlp.fc1", HIDDEN, WIDTH)
        state |= _linear(f"{block}.mlp.fc2", WIDTH, HIDDEN)
    return state


def _norm(name: str) -> State:
    return {
        f"{name}.weight": 1 + 0.1 * torch.randn(WIDTH),
        f"{name}.bias": 0.1 * torch.randn(WIDTH),
    }


def _linear(name: str, rows: int, columns: int) -> State:
    return {
        f"{name}.weight": torch.randn(rows, columns) * columns**-0.5,
        f"{name}.bias": 0.1 * torch.randn(rows),
    }


def _attention(name: str, products: tuple[str, ...]) -> State:
    weights = {
        f"{name}.{own}.weight": torch.randn(len(own) * WIDTH, WIDTH) * WIDTH**-0.5
        for own in products
    }
    biases = {f"{name}.{own}": 0.1 * torch.randn(WIDTH) for own in ("q_bias", "v_bias")}
    return weights | biases | _linear(f"{name}.proj", WIDTH, WIDTH)


def pretrained(state: State) -> State:
    """Return the state of a model before fine-tuning: an encoder with its norm, and a decoder."""
    encoder = {
        f"encoder.{name}": tensor
        for name, tensor in state.items()
        if not name.startswith(("head.", "fc_norm."))
    }
    others = {
        "mask_token": torch.zeros(1, 1, 8),
        "encoder_to_decoder.weight": torch.randn(8, WIDTH),
        "decoder.blocks.0.norm1.weight": torch.ones(8),
        "decoder.head.weight": torch.randn(4, 8),
    }
    return encoder | _norm("encoder.norm") | others


def save_checkpoint(path: Path, state: State, key: str | None = "model", **args: Any) -> Path:
    """Write a file as the authors' training programs do, with a class that torch does not know."""
    content: dict[str, Any] = dict(state)
    if key:
        content = {
            key: state,
            "optimizer": {"state": {}},
            "epoch": 49,
            "args": argparse.Namespace(lr=1e-3, **args),
        }
    torch.save(content, path)
    return path


def positions(count: int) -> Tensor:
    """``get_sinusoid_encoding_table`` of the authors' code."""
    table = np.array(
        [[p / np.power(10000, 2 * (j // 2) / WIDTH) for j in range(WIDTH)] for p in range(count)]
    )
    table[:, 0::2] = np.sin(table[:, 0::2])
    table[:, 1::2] = np.cos(table[:, 1::2])
    return torch.tensor(table, dtype=torch.float32)


def features(state: State, clips: Tensor, pooled: str = "regions") -> Tensor:
    """What the authors' model gives to its classifier: [B, T, 3, H, W] -> [B, WIDTH]."""
    stride = (TUBELET, PATCH, PATCH)
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = F.conv3d(clips.transpose(1, 2), weight, bias, stride)
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    x = x + positions(x.shape[1])
    if "lg_region_tokens" in state:
        x = _regions(state, x, grid, pooled)
    else:
        for i in range(LAYERS):
            block = f"blocks.{i}"
            y = _normed(state, f"{block}.norm1", x)
            x = x + _attend(state, f"{block}.attn", y, y)
            x = x + _mlp(state, block, x)
    return _normed(state, "fc_norm", x.mean(1))


def _regions(state: State, x: Tensor, grid: torch.Size, pooled: str) -> Tensor:
    """Blocks of MAE-DFER, one region after the other."""
    (t, h, w), clips = REGION, x.unflatten(1, grid)
    pieces = [
        clips[:, i : i + t, j : j + h, k : k + w].flatten(1, 3)
        for i in range(0, grid[0], t)
        for j in range(0, grid[1], h)
        for k in range(0, grid[2], w)
    ]
    tokens = state["lg_region_tokens"].expand(len(x), -1, -1)
    pieces = [torch.cat([tokens[:, r : r + 1], piece], 1) for r, piece in enumerate(pieces)]
    for i in range(LAYERS):
        block = f"blocks.{i}"
        for r, piece in enumerate(pieces):
            y = _normed(state, f"{block}.first_attn_norm0", piece)
            pieces[r] = piece + _attend(state, f"{block}.first_attn", y, y)
        tokens = torch.stack([piece[:, 0] for piece in pieces], 1)
        y = _normed(state, f"{block}.second_attn_norm0", tokens)
        tokens = tokens + _attend(state, f"{block}.second_attn", y, y)
        context = _normed(state, f"{block}.third_attn_norm1", tokens)
        for r, piece in enumerate(pieces):
            patches = piece[:, 1:]
            y = _normed(state, f"{block}.third_attn_norm0", patches)
            patches = patches + _attend(state, f"{block}.third_attn", y, context)
            piece = torch.cat([tokens[:, r : r + 1], patches], 1)
            pieces[r] = piece + _mlp(state, block, piece)
    chosen = {"regions": slice(0, 1), "patches": slice(1, None), "all": slice(None)}[pooled]
    return torch.cat([piece[:, chosen] for piece in pieces], 1)


def _normed(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def _mlp(state: State, block: str, x: Tensor) -> Tensor:
    y = _normed(state, f"{block}.norm2", x)
    y = F.gelu(F.linear(y, state[f"{block}.mlp.fc1.weight"], state[f"{block}.mlp.fc1.bias"]))
    return F.linear(y, state[f"{block}.mlp.fc2.weight"], state[f"{block}.mlp.fc2.bias"])


def _attend(state: State, name: str, x: Tensor, context: Tensor) -> Tensor:
    if f"{name}.qkv.weight" in state:
        wq, wk, wv = state[f"{name}.qkv.weight"].chunk(3)
    else:
        wq, (wk, wv) = state[f"{name}.q.weight"], state[f"{name}.kv.weight"].chunk(2)
    q = F.linear(x, wq, state[f"{name}.q_bias"]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    k = F.linear(context, wk).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    v = F.linear(context, wv, state[f"{name}.v_bias"]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    weights = ((q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return F.linear(mixed, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"])
