"""The measured process of one variant of a step: train, test and save on command.

``python -m dfer_dist.bench.step_variants --config FILE --variant NAME`` reads a method and its
arguments from each line of standard input, calls it, and prints its seconds and peak memory as a
JSON line. :mod:`dfer_dist.bench.step` starts it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from dfer_dist.bench.loader import make_clips
from dfer_dist.bench.matrix_products import MatrixProducts
from dfer_dist.checkpoints import portable
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.distributed.process_group import Ranks, exit_process, init_distributed, peak_memory
from dfer_dist.evaluation.evaluate import clip_logits
from dfer_dist.models.backbone import clip_config
from dfer_dist.models.build import build_model, resolve_image_size
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.models.dferclip import OutputsModule
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.estimate import data_size
from dfer_dist.planning.measure import bytes_in_use
from dfer_dist.training.engine import Engine, build_engine
from dfer_dist.training.losses import Objective

VARIANTS = ("ours", "recomputing", "plain")
PLAIN_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plain_step.py"


class OptimizedStep:
    """The engine of a run on one rank, with random weights and random clips.

    Methods may return measurements of their own.
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
        self.clips, self.labels = _random_clips(config, self.engine.micro_batch, len(classes))
        self.test_clips = _random_clips(config, config.eval.batch, len(classes))[0]
        # The loader returns pinned memory too.
        if ranks.device.type == "cuda":
            self.clips, self.test_clips = self.clips.pin_memory(), self.test_clips.pin_memory()
        self.products = {"train": MatrixProducts(), "test": MatrixProducts()}
        self.text: Tensor | None = None
        self.checkpointer = AsyncCheckpointer(
            folder / "checkpoints", config, ranks, len(self.engine.trained), None
        )
        self.saves = 0
        self.folder = folder
        self.stream: Iterator[Batch] | None = None

    def train(self) -> None:
        """Take one optimizer step."""
        valid = torch.ones(len(self.labels), dtype=torch.bool)
        self._step(
            (self.clips.to(self.device, non_blocking=True), self.labels, valid)
            for _ in range(self.engine.accumulation)
        )

    def fed(self) -> dict[str, float]:
        """Take one optimizer step on generated clips that one loader worker loads.

        Returns
        -------
        dict
            Seconds that the step ``waited`` for clips.
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
        """Evaluate one batch, with class texts that are encoded once."""
        engine = self.engine.deepspeed
        engine.eval()
        model = engine.module.model
        if self.text is None:
            self.text = model.text_features()
        text = self.text
        clip_logits(
            lambda frames: model.merge_polarities(engine(frames, text)),
            self.test_clips.to(self.device, non_blocking=True),
            1,
        ).cpu()
        engine.train()

    def save(self) -> dict[str, float]:
        """Save a checkpoint and wait until it is complete.

        Returns
        -------
        dict
            ``held_seconds`` that training waits, and the checkpoint's ``bytes``.
        """
        begin = time.perf_counter()
        self.saves += 1
        self.checkpointer.save(self.engine, {"step": self.saves, "skipped_steps": 0})
        held = time.perf_counter() - begin
        self.checkpointer.join()
        return {"held_seconds": held, "bytes": float(self._checkpoint_bytes())}

    def write(self) -> None:
        """Write as many bytes as a checkpoint has."""
        block, file = bytes(2**20), self.checkpointer.folder / "bytes"
        blocks = self._checkpoint_bytes() // len(block)
        with file.open("wb", buffering=0) as f:
            for _ in range(blocks):
                f.write(block)
            os.fsync(f)
        file.unlink()

    def _checkpoint_bytes(self) -> int:
        (written,) = portable.complete(self.checkpointer.folder)[-1:]
        return sum(f.stat().st_size for f in written.iterdir())

    def record(self, kind: str) -> None:
        """Record the matrix products of ``train`` or ``test``."""
        with self.products[kind]:
            getattr(self, kind)()

    def multiply(self, kind: str) -> dict[str, float]:
        """Compute only the recorded matrix products of ``train`` or ``test``."""
        return {"seconds": self.products[kind].seconds(self.device)}


class PlainStep:
    """``benchmarks/plain_step.py`` on the same random clips, as float32."""

    def __init__(
        self, config: Config, classes: tuple[str, ...], ranks: Ranks, folder: Path
    ) -> None:
        spec = importlib.util.spec_from_file_location(PLAIN_SCRIPT.stem, PLAIN_SCRIPT)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        texts = [own[0] for own in polarity_texts(classes, config.model)["positive"]]
        sizes = clip_config(config.model.backbone)
        sizes["vision_cfg"]["image_size"] = resolve_image_size(config)
        self.step = module.PlainStep(
            sizes, texts, config.data.num_frames, config.model.context_tokens, ranks.device
        )
        clips, labels = _random_clips(config, config.train.global_batch, len(classes))
        self.clips, self.labels = (clips / 255).to(ranks.device), labels.to(ranks.device)
        self.folder = folder

    def train(self) -> None:
        """Take one optimizer step."""
        self.step.train(self.clips, self.labels)

    def test(self) -> None:
        """Classify one batch."""
        self.step.test(self.clips)

    def save(self) -> None:
        """Save weights and optimizer with ``torch.save``."""
        self.step.save(self.folder / "plain.pth")


def _random_clips(config: Config, clips: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return frames of noise, uint8 [clips, T, 3, S, S], and labels."""
    size = resolve_image_size(config)
    shape = (clips, config.data.num_frames, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(clips) % classes


def serve(config: Config, variant: str, folder: Path, out: TextIO) -> None:
    """Call the methods that standard input names until it ends, and print the measurements."""
    ranks = init_distributed(config.train.device)
    # Imported here so that their memory is not counted.
    import deepspeed  # noqa: F401
    import open_clip  # noqa: F401

    before = bytes_in_use(ranks)
    kind: type[OptimizedStep | PlainStep] = OptimizedStep
    if variant == "plain":
        kind = PlainStep
    step = kind(config, data_size(config).classes, ranks, folder)
    for line in sys.stdin:
        method, *arguments = line.split()
        measured = _time(partial(getattr(step, method), *arguments), ranks)
        answer = {"peak_bytes": peak_memory(ranks.device) - before, **measured}
        print(json.dumps(answer), file=out, flush=True)


def _time(work: Callable[[], dict[str, float] | None], ranks: Ranks) -> dict[str, float]:
    begin = time.perf_counter()
    measured = work() or {}
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    return {"seconds": time.perf_counter() - begin, **measured}


def main() -> None:
    """Run one variant until standard input ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved settings")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    args = parser.parse_args()
    out = os.fdopen(os.dup(1), "w")
    # What libraries print is not an answer.
    os.dup2(2, 1)
    serve(read_config(args.config), args.variant, args.config.parent, out)
    exit_process(0)


if __name__ == "__main__":
    main()
