"""How fast this machine trains and tests, held against the plain way and against its own matrix products: ``dfer bench step`` and ``eval``.

Each way lives in a process of its own (``python -m dfer_dist.bench_step --config FILE --way NAME``), which answers a line such as ``train`` with the
seconds that took. The parent lets them take turns, since other people's work comes and goes on a shared machine, and the median counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from dfer_dist.config import Config
from dfer_dist.configfile import dump_config, read_config
from dfer_dist.engine import Engine, build_engine
from dfer_dist.evaluate import clip_logits
from dfer_dist.footprint import in_use, peak
from dfer_dist.model import build_model, param_groups, settle_image_size
from dfer_dist.model.text import side_texts
from dfer_dist.objective import Objective
from dfer_dist.planner import data_size
from dfer_dist.products import Products
from dfer_dist.ranks import Ranks, leave, start

PLAIN = Path(__file__).parent.parent / "benchmarks" / "plain_step.py"

Work = Callable[[], object]


class Ours:
    """The engine of a run on one rank, with random weights and made-up clips."""

    def __init__(self, config: Config, classes: tuple[str, ...], ranks: Ranks) -> None:
        model = build_model(replace(config.model, pretrained="none"), classes, config.data.num_frames, settle_image_size(config))
        self.engine: Engine = build_engine(model, param_groups(model), config, ranks, 1000)
        self.objective = Objective(config, [1] * len(classes), ranks.device)
        self.config, self.device = config, ranks.device
        self.clips, self.labels = _made_up(config, self.engine.micro_batch, len(classes))
        self.test_clips = _made_up(config, config.eval.batch, len(classes))[0]
        self.products = {"train": Products(), "test": Products()}
        self.text: Tensor | None = None

    def train(self) -> None:
        """One optimizer step."""
        self.engine.set_learning_rates(0)
        valid = torch.ones(len(self.labels), dtype=torch.bool)
        for _ in range(self.engine.accumulation):
            sides = self.engine.deepspeed(self.clips.to(self.device, non_blocking=True), by_side=True)
            losses = self.objective(sides, self.labels, valid)
            self.engine.micro_step(losses.mean())
        losses.tolist()

    @torch.no_grad()
    def test(self) -> None:
        """One batch, by class texts that were read before."""
        model = self.engine.deepspeed.eval()
        self.text = model.module.text_features() if self.text is None else self.text
        text = self.text
        clip_logits(lambda frames: model(frames, text), self.test_clips.to(self.device), 1).cpu()
        model.train()

    def take_down(self, what: str) -> None:
        with self.products[what]:
            getattr(self, what)()


class Plain:
    """``benchmarks/plain_step.py`` on the same made-up clips, as float32."""

    def __init__(self, config: Config, classes: tuple[str, ...], ranks: Ranks) -> None:
        spec = importlib.util.spec_from_file_location(PLAIN.stem, PLAIN)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        texts = [own[0] for own in side_texts(classes, config.model)["positive"]]
        shape = (settle_image_size(config), config.data.num_frames, config.model.context_tokens)
        self.step = module.PlainStep(config.model.backbone, texts, *shape, ranks.device)
        clips, labels = _made_up(config, config.train.global_batch, len(classes))
        self.clips, self.labels = (clips / 255).to(ranks.device), labels.to(ranks.device)

    def train(self) -> None:
        self.step.train(self.clips, self.labels)

    def test(self) -> None:
        self.step.test(self.clips)


def _made_up(config: Config, clips: int, classes: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [clips, T, 3, S, S] of noise, and labels."""
    size = settle_image_size(config)
    shape = (clips, config.data.num_frames, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(clips) % classes


def serve(config: Config, way: str, out: TextIO) -> None:
    """Answer lines on standard input until there are no more."""
    ranks = start(config.train.device)
    import deepspeed  # noqa: F401  (so that it is not counted)
    import open_clip  # noqa: F401

    before = in_use(ranks)
    classes = data_size(config).classes
    own = (Plain if way == "plain" else Ours)(config, classes, ranks)
    for line in sys.stdin:
        what = line.strip()
        if what.startswith("take down ") and isinstance(own, Ours):
            own.take_down(what.removeprefix("take down "))
            answer: dict[str, float] = {"flops": own.products[what.split()[-1]].flops}
        elif what.startswith("floor ") and isinstance(own, Ours):
            answer = {"seconds": own.products[what.removeprefix("floor ")].seconds(ranks.device)}
        else:
            answer = {"seconds": _time(getattr(own, what), ranks), "peak_bytes": peak(ranks) - before}
        print(json.dumps(answer), file=out, flush=True)


def _time(work: Work, ranks: Ranks) -> float:
    begin = time.perf_counter()
    work()
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    return time.perf_counter() - begin


class Way:
    """The process of one way, asked line by line."""

    def __init__(self, folder: Path, config: Config, way: str) -> None:
        file = folder / f"{way}.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-m", "dfer_dist.bench_step", "--config", str(file), "--way", way]
        self.log = folder / f"{way}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ask(self, what: str) -> dict[str, float]:
        """Raises RuntimeError with the end of its log if the process has died."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the measured process has died: {self.log.read_text()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(
    config: Config, what: Sequence[str], rounds: int, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Time steps of ``train`` and, if asked for, batches of ``test``.

    Parameters
    ----------
    what : of ``train`` and ``test``
    rounds : int
        Turns that each way takes after one for warming up.
    folder : Path
        For settings and logs.

    Returns
    -------
    dict of ``train`` and ``test`` to dict
        ``ours``, ``recomputing`` (with activation checkpointing), ``floor`` and, in a checkout, ``baseline``: medians as ``seconds``,
        ``clips_per_s`` and ``peak_bytes`` (the floor has none). ``flops`` of ours.
    """
    ways = {"ours": config}
    if "train" in what:
        ways["recomputing"] = replace(config, model=replace(config.model, checkpoint_image=True, checkpoint_temporal=True))
    if PLAIN.is_file():
        ways["plain"] = config
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        processes = {}
        for name, own in ways.items():
            processes[name] = Way(folder, own, name)
            stack.callback(processes[name].close)
        flops = {}
        for r in range(rounds + 1):
            for kind in what:
                for name, process in processes.items():
                    if name != "recomputing" or kind == "train":
                        taken.setdefault((kind, name), []).append(process.ask(kind))
                if r == 0:
                    flops[kind] = processes["ours"].ask(f"take down {kind}")["flops"]
                taken.setdefault((kind, "floor"), []).append(processes["ours"].ask(f"floor {kind}"))
            progress(r + 1, rounds + 1)
    return {kind: _medians(taken, kind, config) | {"flops": flops[kind]} for kind in what}


def _medians(taken: Mapping[tuple[str, str], list[dict[str, float]]], kind: str, config: Config) -> dict[str, Any]:
    clips = {"train": config.train.global_batch, "test": config.eval.batch}[kind]
    figures: dict[str, Any] = {"baseline": None}
    for (own, name), answers in taken.items():
        if own == kind:
            seconds = float(np.median([a["seconds"] for a in answers[1:]]))
            count = config.train.global_batch if name == "plain" else clips
            row = {"seconds": seconds, "clips_per_s": count / seconds}
            if "peak_bytes" in answers[-1]:
                row["peak_bytes"] = answers[-1]["peak_bytes"]
            figures["baseline" if name == "plain" else name] = row
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="resolved settings")
    parser.add_argument("--way", choices=["ours", "recomputing", "plain"], required=True)
    args = parser.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    serve(read_config(args.config), args.way, out)
    leave(0)


if __name__ == "__main__":
    main()
