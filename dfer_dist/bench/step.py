"""How fast this machine trains, tests and saves, next to an upper bound and to plain PyTorch.

``dfer bench step``, ``eval`` and ``save``.

Each variant runs in a process of its own (:mod:`dfer_dist.bench.step_variants`). The variants
alternate, since a shared machine is noisy, and medians are reported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.bench.step_variants import PLAIN_SCRIPT
from dfer_dist.config.load import dump_config
from dfer_dist.config.schema import Config, split_batch
from dfer_dist.models.flops import model_flops
from dfer_dist.planning.estimate import data_size
from dfer_dist.utils.errors import UserError

_NO_MESSAGE = "without a word, as when memory runs out: fewer clips, or frames"
# Measurements of each call, by what was measured and the row of the results.
_Measurements = dict[tuple[str, str], list[dict[str, float]]]


class Variant:
    """The process of one variant, which answers line by line."""

    def __init__(self, folder: Path, config: Config, name: str) -> None:
        file = folder / f"{name}.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-m", "dfer_dist.bench.step_variants", str(file), name]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def call(self, method: str) -> dict[str, float]:
        """Call a method with its arguments, as one line of text, and return its measurements.

        Raises
        ------
        UserError
            With the last line of its log, if the process has died.
        """
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.write(method + "\n")
            self.process.stdin.flush()
        # Importing DeepSpeed may print other lines.
        line = next((x for x in self.process.stdout if x.startswith("{")), "")
        if not line:
            lines = self.log.read_text().strip().splitlines() or [_NO_MESSAGE]
            raise UserError(f"the measured process has died: {lines[-1]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


# What measures the upper bound of each kind.
_BOUNDS = {"train": "multiply train", "test": "multiply test", "save": "write"}


def measure(
    config: Config,
    kinds: Sequence[str],
    rounds: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measure all variants in turn.

    Parameters
    ----------
    kinds : of ``train`` (a step), ``test`` (a batch) and ``save`` (after a training step)
    rounds : int
        Rounds of each variant after one for warming up.
    folder : Path
        For settings, logs and checkpoints.

    Returns
    -------
    dict of each kind to dict
        ``ours``, ``floor`` (the upper bound) and, in a checkout, ``baseline``; ``recomputing`` for
        ``train``, with activation checkpointing if the settings have none, and ``fed``, ours by one
        loader worker, with the seconds it ``waited``. Each has the medians of ``seconds`` and of
        what else was measured, and but for a save ``clips_per_s``; ``floor`` has no ``peak_bytes``.
        ``flops``, but for a save: operations of the model's own
        (:func:`~dfer_dist.models.flops.model_flops`).
    """
    measured: _Measurements = defaultdict(list)
    with ExitStack() as stack:
        variants = {}
        for name, settings in _variants(config, kinds).items():
            variants[name] = Variant(folder, settings, name)
            stack.callback(variants[name].close)
            if kinds == ["save"]:
                variants[name].call("train")
        for r in range(rounds + 1):
            for kind in kinds:
                for name, variant in variants.items():
                    measured[kind, name].append(variant.call(kind))
                measured[kind, "floor"].append(variants["ours"].call(_BOUNDS[kind]))
            progress(r + 1, rounds + 1)
        # Last, since its clips take memory too.
        if kinds == ["train"]:
            measured["train", "fed"] = [variants["ours"].call("fed") for _ in range(rounds + 1)]
    results: dict[str, dict[str, Any]] = {kind: {"baseline": None} for kind in kinds}
    for kind in {"train", "test"} & results.keys():
        results[kind]["flops"] = _flops(config, train=kind == "train")
    for (kind, name), calls in measured.items():
        results[kind][name] = _medians(calls, kind, name, config)
    return results


def _variants(config: Config, kinds: Sequence[str]) -> dict[str, Config]:
    """Return the settings of each variant."""
    if config.model.modalities:
        raise UserError(
            f"model.modalities={config.model.modalities}: dfer bench generates frames only; "
            "add model.modalities=[]"
        )
    variants = {"ours": config}
    if kinds == ["train"] and not config.model.checkpoint_image:
        model = replace(config.model, checkpoint_image=True, checkpoint_temporal=True)
        variants["recomputing"] = replace(config, model=model)
    if PLAIN_SCRIPT.is_file():
        variants["baseline"] = config
    return variants


def _medians(
    calls: list[dict[str, float]], kind: str, name: str, config: Config
) -> dict[str, float]:
    # The first round warms up.
    row = {key: float(np.median([call[key] for call in calls[1:]])) for key in calls[-1]}
    row["peak_bytes"] = calls[-1]["peak_bytes"]
    if name == "floor":
        del row["peak_bytes"]
    clips = config.train.global_batch
    if kind == "test" and name != "baseline":
        clips = config.eval.batch
    if kind != "save":
        row["clips_per_s"] = clips / row["seconds"]
    return row


def _flops(config: Config, train: bool) -> int:
    """Return the operations of a step, or of a test batch."""
    micro, accumulation = config.eval.batch, 1
    if train:
        micro, accumulation = split_batch(config, 1)
    return accumulation * model_flops(config, data_size(config).classes, micro, train)
