"""How fast this machine trains, tests and saves, held against the plain way and a floor.

``dfer bench step``, ``eval`` and ``save``.

Each way lives in a process of its own (``python -m dfer_dist.bench.step --config FILE --way
NAME``), which answers a line such as ``train`` with the seconds that took. The parent lets them
take turns, since other people's work comes and goes on a shared machine, and the median counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from dfer_dist.bench.loader import make_clips
from dfer_dist.bench.matrix_products import Products
from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Config, split_batch
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.distributed.process_group import Ranks, exit_process, init_distributed, peak_memory
from dfer_dist.evaluation.evaluate import clip_logits
from dfer_dist.models.backbone import clip_config
from dfer_dist.models.build import build_model, resolve_image_size
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.models.outputs import OutputsModule
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.estimate import data_size
from dfer_dist.planning.measure import in_use
from dfer_dist.planning.step_costs import model_flops
from dfer_dist.training.engine import Engine, build_engine
from dfer_dist.training.losses import Objective
from dfer_dist.utils.errors import UserError

PLAIN = Path(__file__).parents[2] / "benchmarks" / "plain_step.py"


class Ours:
    """The engine of a run on one rank, with random weights and made-up clips.

    Methods may return figures of their own.
    """

    def __init__(
        self, config: Config, classes: tuple[str, ...], ranks: Ranks, folder: Path
    ) -> None:
        model = build_model(
            replace(config.model, pretrained="none"),
            classes,
            config.data.num_frames,
            resolve_image_size(config),
        )
        self.engine: Engine = build_engine(
            OutputsModule(model), param_groups(model), config, ranks, 1000
        )
        self.objective = Objective(config, [1] * len(classes), ranks.device)
        self.config, self.device = config, ranks.device
        self.clips, self.labels = _made_up(config, self.engine.micro_batch, len(classes))
        self.test_clips = _made_up(config, config.eval.batch, len(classes))[0]
        if ranks.device.type == "cuda":  # as the loader hands them out
            self.clips, self.test_clips = self.clips.pin_memory(), self.test_clips.pin_memory()
        self.products = {"train": Products(), "test": Products()}
        self.text: Tensor | None = None
        self.checkpointer = AsyncCheckpointer(
            folder / "checkpoints", config, ranks, len(self.engine.trained), None
        )
        self.saves = 0
        self.folder = folder
        self.stream: Iterator[Batch] | None = None

    def train(self) -> None:
        """One optimizer step."""
        valid = torch.ones(len(self.labels), dtype=torch.bool)
        self._step(
            (self.clips.to(self.device, non_blocking=True), self.labels, valid)
            for _ in range(self.engine.accumulation)
        )

    def fed(self) -> dict[str, float]:
        """One optimizer step on made clips that one loader worker loads.

        For how long it waited for them.
        """
        if self.stream is None:
            size, batch = resolve_image_size(self.config), self.config.train.global_batch
            index = make_clips(self.folder / "fed", 5 * max(4, batch), size)
            data = replace(self.config.data, workers=1, image_size=size)
            plan = EpochPlan(all_clips(index, range(len(index.shards))), 0, 0, batch, data.block)
            self.stream = train_loader(
                index, data, plan, epochs=1 << 30, micro_batch=self.engine.micro_batch
            )
        waits: list[float] = []
        self._step(self._waiting(self.stream, waits))
        return {"waited": sum(waits)}

    def _waiting(
        self, stream: Iterator[Batch], waits: list[float]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for _ in range(self.engine.accumulation):
            begin = time.perf_counter()
            batch = next(stream)
            waits.append(time.perf_counter() - begin)
            yield batch.pixels(self.device), batch.labels, batch.valid

    def _step(self, micro_batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        self.engine.set_learning_rates(0)
        for frames, labels, valid in micro_batches:
            losses = self.objective(self.engine.deepspeed(frames), labels, valid)
            self.engine.micro_step(losses.mean())
        losses.tolist()

    @torch.no_grad()
    def test(self) -> None:
        """One batch, by class texts that were read before."""
        engine = self.engine.deepspeed
        engine.eval()
        model = engine.module.model
        self.text = model.text_features() if self.text is None else self.text
        text = self.text
        clip_logits(
            lambda frames: model.merge_polarities(engine(frames, text)),
            self.test_clips.to(self.device, non_blocking=True),
            1,
        ).cpu()
        engine.train()

    def save(self) -> dict[str, float]:
        """A checkpoint, until it stands; for how long training is held up by it, and its bytes."""
        begin = time.perf_counter()
        self.saves += 1
        self.checkpointer.save(self.engine, {"step": self.saves, "skipped_steps": 0})
        held = time.perf_counter() - begin
        self.checkpointer.join()
        (written,) = checkpoint.complete(self.checkpointer.folder)[-1:]
        return {
            "held_seconds": held,
            "bytes": float(sum(f.stat().st_size for f in written.iterdir())),
        }

    def write(self) -> None:
        """As many bytes as a checkpoint has, and nothing but them."""
        (written,) = checkpoint.complete(self.checkpointer.folder)[-1:]
        block, file = bytes(2**20), self.checkpointer.folder / "bytes"
        with file.open("wb", buffering=0) as f:
            for _ in range(sum(x.stat().st_size for x in written.iterdir()) // len(block)):
                f.write(block)
            os.fsync(f)
        file.unlink()

    def take_down(self, what: str) -> None:
        """Take down the matrix products of ``what``."""
        with self.products[what]:
            getattr(self, what)()

    def multiply(self, what: str) -> dict[str, float]:
        """The matrix products of ``what``, alone."""
        return {"seconds": self.products[what].seconds(self.device)}


class Plain:
    """``benchmarks/plain_step.py`` on the same made-up clips, as float32."""

    def __init__(
        self, config: Config, classes: tuple[str, ...], ranks: Ranks, folder: Path
    ) -> None:
        spec = importlib.util.spec_from_file_location(PLAIN.stem, PLAIN)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        texts = [own[0] for own in polarity_texts(classes, config.model)["positive"]]
        sizes = clip_config(config.model.backbone)
        sizes["vision_cfg"]["image_size"] = resolve_image_size(config)
        self.step = module.PlainStep(
            sizes, texts, config.data.num_frames, config.model.context_tokens, ranks.device
        )
        clips, labels = _made_up(config, config.train.global_batch, len(classes))
        self.clips, self.labels, self.folder = (
            (clips / 255).to(ranks.device),
            labels.to(ranks.device),
            folder,
        )

    def train(self) -> None:
        self.step.train(self.clips, self.labels)

    def test(self) -> None:
        self.step.test(self.clips)

    def save(self) -> None:
        self.step.save(self.folder / "plain.pth")


def _made_up(config: Config, clips: int, classes: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [clips, T, 3, S, S] of noise, and labels."""
    size = resolve_image_size(config)
    shape = (clips, config.data.num_frames, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(clips) % classes


def serve(config: Config, way: str, folder: Path, out: TextIO) -> None:
    """Answer lines on standard input, each a method and perhaps its argument, until there are no
    more.
    """
    ranks = init_distributed(config.train.device)
    import deepspeed  # noqa: F401  (so that it is not counted)
    import open_clip  # noqa: F401

    before = in_use(ranks)
    own = (Plain if way == "plain" else Ours)(config, data_size(config).classes, ranks, folder)
    for line in sys.stdin:
        method, *arguments = line.split()
        answer = _time(partial(getattr(own, method), *arguments), ranks)
        print(
            json.dumps({"peak_bytes": peak_memory(ranks.device) - before, **answer}),
            file=out,
            flush=True,
        )


def _time(work: Callable[[], dict[str, float] | None], ranks: Ranks) -> dict[str, float]:
    begin = time.perf_counter()
    own = work() or {}
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    return {"seconds": time.perf_counter() - begin, **own}


class Way:
    """The process of one way, asked line by line."""

    def __init__(self, folder: Path, config: Config, way: str) -> None:
        file = folder / f"{way}.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "dfer_dist.bench.step",
            "--config",
            str(file),
            "--way",
            way,
        ]
        self.log = folder / f"{way}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def ask(self, what: str) -> dict[str, float]:
        """Raises UserError with the last line of its log if the process has died."""
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        line = next(
            (x for x in self.process.stdout if x.startswith("{")), ""
        )  # importing DeepSpeed may print
        if not line:
            said = (
                self.log.read_text().strip().splitlines()
                or ["without a word, as when memory runs out: fewer clips, or frames"]
            )[-1]
            raise UserError(f"the measured process has died: {said}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


# what is asked of our process and, once in the first round, to prepare it; the floor of each
_WORK = {
    "train": ("multiply train", "take_down train"),
    "test": ("multiply test", "take_down test"),
    "save": ("write", ""),
}


def measure(
    config: Config,
    what: Sequence[str],
    rounds: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Let the ways take turns.

    Parameters
    ----------
    what : of ``train`` (a step), ``test`` (a batch) and ``save`` (after a training step)
    rounds : int
        Turns that each way takes after one for warming up.
    folder : Path
        For settings, logs and checkpoints.

    Returns
    -------
    dict of each to dict
        ``ours``, ``floor`` and, in a checkout, ``baseline``; ``recomputing`` for ``train``, with
        activation checkpointing if the settings have none, and ``fed``, ours by one loader worker,
        with the seconds it ``waited``. Each has the medians of ``seconds`` and what else was
        answered, and but for a save ``clips_per_s``; the floor has no ``peak_bytes``. ``flops``,
        but for a save: operations of the model's own
        (:func:`~dfer_dist.planning.step_costs.model_flops`).
    """
    ways = {"ours": config}
    if what == ["train"] and not config.model.checkpoint_image:
        ways["recomputing"] = replace(
            config, model=replace(config.model, checkpoint_image=True, checkpoint_temporal=True)
        )
    if PLAIN.is_file():
        ways["plain"] = config
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        processes = {}
        for name, own in ways.items():
            processes[name] = Way(folder, own, name)
            stack.callback(processes[name].close)
            if what == ["save"]:
                processes[name].ask("train")
        for r in range(rounds + 1):
            for kind in what:
                for name, process in processes.items():
                    taken.setdefault((kind, name), []).append(process.ask(kind))
                floor, prepare = _WORK[kind]
                if r == 0 and prepare:
                    processes["ours"].ask(prepare)
                taken.setdefault((kind, "floor"), []).append(processes["ours"].ask(floor))
            progress(r + 1, rounds + 1)
        if what == ["train"]:  # last, since its clips take memory too
            taken["train", "fed"] = [processes["ours"].ask("fed") for _ in range(rounds + 1)]
    return {kind: _medians(taken, kind, config) for kind in what}


def _medians(
    taken: Mapping[tuple[str, str], list[dict[str, float]]], kind: str, config: Config
) -> dict[str, Any]:
    figures: dict[str, Any] = {"baseline": None}
    if kind != "save":
        figures["flops"] = _flops(config, train=kind == "train")
    for (own, name), answers in taken.items():
        if own != kind:
            continue
        row = {key: float(np.median([a[key] for a in answers[1:]])) for key in answers[-1]}
        row["peak_bytes"] = answers[-1]["peak_bytes"]
        if name == "floor":
            del row["peak_bytes"]
        if kind != "save":
            clips = (
                config.eval.batch
                if kind == "test" and name != "plain"
                else config.train.global_batch
            )
            row["clips_per_s"] = clips / row["seconds"]
        figures["baseline" if name == "plain" else name] = row
    return figures


def _flops(config: Config, train: bool) -> int:
    """Operations of a step, or of a test batch."""
    micro, accumulation = split_batch(config, 1) if train else (config.eval.batch, 1)
    return accumulation * model_flops(config, data_size(config).classes, micro, train)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved settings")
    parser.add_argument("--way", choices=["ours", "recomputing", "plain"], required=True)
    args = parser.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    serve(read_config(args.config), args.way, args.config.parent, out)
    exit_process(0)


if __name__ == "__main__":
    main()
