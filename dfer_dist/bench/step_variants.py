"""The measured process of one variant of a step: train, test and save on command.

``python -m dfer_dist.bench.step_variants CONFIG VARIANT`` reads resolved settings, and a method and
its arguments from each line of standard input, calls it, and prints its seconds and peak memory as
a JSON line. :mod:`dfer_dist.bench.step` starts it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from dfer_dist.bench.loader import make_clips
from dfer_dist.bench.matrix_products import MatrixProducts, synchronized_time
from dfer_dist.checkpoints import portable
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.distributed.process_group import Ranks, exit_process, init_distributed, peak_memory
from dfer_dist.evaluation.evaluate import clip_logits
from dfer_dist.models.build import resolve_image_size
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.models.towers.open_clip_models import clip_config
from dfer_dist.planning.estimate import data_size
from dfer_dist.planning.measure import RandomStep, bytes_in_use, random_clips

PLAIN_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plain_step.py"


class OptimizedStep(RandomStep):
    """The engine of a run on one rank. Methods may return measurements of their own."""

    def __init__(
        self, config: Config, classes: tuple[str, ...], ranks: Ranks, folder: Path
    ) -> None:
        super().__init__(config, classes, ranks)
        self.config, self.folder, self.saves = config, folder, 0
        self.test_clips = random_clips(config, config.eval.batch)
        self.products = {"train": MatrixProducts(), "test": MatrixProducts()}
        self.text: Tensor | None = None
        self.checkpointer = AsyncCheckpointer(
            folder / "checkpoints", config, ranks, len(self.engine.trained), None
        )
        self.stream: Iterator[Batch] | None = None

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
        stream, waits = self.stream, list[float]()

        def micro_batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for _ in range(self.engine.accumulation):
                begin = time.perf_counter()
                batch = next(stream)
                waits.append(time.perf_counter() - begin)
                yield batch.pixels(self.device), batch.labels, batch.valid

        self.step(micro_batches())
        return {"waited": sum(waits)}

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

    def multiply(self, kind: str) -> dict[str, float]:
        """Compute only the matrix products of ``train`` or ``test``, which the first call records.

        Returns
        -------
        dict
            Their ``seconds``.
        """
        products = self.products[kind]
        if not products.counts:
            with products:
                getattr(self, kind)()
        return {"seconds": products.seconds(self.device)}


class PlainStep:
    """``benchmarks/plain_step.py`` on the same random clips, as float32."""

    def __init__(
        self, config: Config, classes: tuple[str, ...], ranks: Ranks, folder: Path
    ) -> None:
        texts = [own[0] for own in polarity_texts(classes, config.model)["positive"]]
        sizes = clip_config(config.model.backbone)
        sizes["vision_cfg"]["image_size"] = resolve_image_size(config)
        self.step = runpy.run_path(str(PLAIN_SCRIPT))["PlainStep"](
            sizes, texts, config.data.num_frames, config.model.context_tokens, ranks.device
        )
        batch = config.train.global_batch
        self.clips = (random_clips(config, batch) / 255).to(ranks.device)
        self.labels = (torch.arange(batch) % len(classes)).to(ranks.device)
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


def serve(config: Config, variant: str, folder: Path, out: TextIO) -> None:
    """Call the methods that standard input names until it ends, and print the measurements."""
    ranks = init_distributed(config.train.device)
    # Imported here so that their memory is not counted.
    import deepspeed  # noqa: F401
    import open_clip  # noqa: F401

    before = bytes_in_use(ranks)
    kind = PlainStep if variant == "baseline" else OptimizedStep
    step = kind(config, data_size(config).classes, ranks, folder)
    for line in sys.stdin:
        method, *arguments = line.split()
        begin = synchronized_time(ranks.device)
        measured = getattr(step, method)(*arguments) or {}
        seconds = synchronized_time(ranks.device) - begin
        peak = peak_memory(ranks.device) - before
        answer = {"peak_bytes": peak, "seconds": seconds, **measured}
        print(json.dumps(answer), file=out, flush=True)


def main() -> None:
    """Run one variant until standard input ends."""
    config, variant = Path(sys.argv[1]), sys.argv[2]
    out = os.fdopen(os.dup(1), "w")
    # What libraries print is not an answer.
    os.dup2(2, 1)
    serve(read_config(config), variant, config.parent, out)
    exit_process(0)


if __name__ == "__main__":
    main()
