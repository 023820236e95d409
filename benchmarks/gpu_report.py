"""Measure one GPU in at most 12 minutes, and print Markdown tables for ``docs/development/gpu.md``.

``make gpu-report``: the same numbers as on the CPU, kernels, a training step from ViT-B/32 to
ViT-H/14 with its model FLOPs utilization, with ``train.compile`` and without where that setting
exists, and saving and resuming. Weights and clips are random; nothing is downloaded. Each case runs
in a process of its own, so one that fails, as for lack of memory, is a row that says so.

Without a GPU, or with ``--dry-run``, all cases run on the CPU at tiny sizes. This shows that the
script works, and nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfer_dist.bench.matrix_products import synchronized_time
from dfer_dist.checkpoints import portable
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, Precision, flatten, split_batch
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.distributed.process_group import (
    FAST_BF16,
    Ranks,
    device_name,
    exit_process,
    init_distributed,
    peak_memory,
)
from dfer_dist.models.attention import attend
from dfer_dist.models.build import build_untrained, model_dtype
from dfer_dist.models.cpu_kernels import FusedQuickGELU, PatchEmbedding
from dfer_dist.models.flops import model_flops
from dfer_dist.utils.hardware import mfu

Rows = list[list[str]]
_SECONDS = 12 * 60
_WARMUP, _STEPS = 3, 10  # steps that are not timed, and those that are
_FLOAT32 = 1e-4  # relative tolerances, as in tests/gpu
_HALF = 3e-2


@dataclass(frozen=True)
class StepCase:
    """A training step: an experiment, clips of a step and of a micro batch."""

    name: str
    experiment: str
    clips: int
    micro_batch: int

    def settings(self, *more: str) -> list[str]:
        """Return its settings; whatever optimizer state is needed fits 80 GB."""
        sizes = [f"train.global_batch={self.clips}", f"train.micro_batch={self.micro_batch}"]
        return ["data.shards=dfew", *sizes, *more]


_STEP_CASES = (
    StepCase("ViT-B/32", "dfew_vitb32", 48, 48),
    StepCase("ViT-B/16", "dfew_vitb16", 24, 24),
    StepCase("ViT-L/14", "dfew_vitl14", 16, 8),
    StepCase("ViT-H/14", "dfew_vith14", 8, 4),
)
_DRY_CASES = (StepCase("tiny", "demo", 4, 2),)


def precision_here(device: torch.device) -> Precision:
    """Return bf16, or fp16 on a GPU that has no bf16."""
    is_old = device.type == "cuda" and torch.cuda.get_device_capability(device) < FAST_BF16
    return Precision.fp16 if is_old else Precision.bf16


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference by the largest value of ``b``."""
    return float((a.cpu().float() - b.cpu().float()).abs().max() / b.float().abs().max().cpu())


# ------------------------------------------------------------------ cases, each in its own process


def numbers(device: torch.device, precision: Precision) -> dict[str, Any]:
    """Compare the model and its parts on the device with float32 on the CPU."""
    half = model_dtype(precision)
    return {
        "tiny model, logits and gradients, float32": (_model_parity(device), _FLOAT32),
        f"attention, {precision.name}": (_attention_parity(device, half), _HALF),
        f"QuickGELU, {precision.name}": (_layer_parity(FusedQuickGELU(), device, half), _HALF),
        f"patch embedding, {precision.name}": (_patch_parity(device, half), _HALF),
    }


def _model_parity(device: torch.device) -> float:
    config = load_config("demo", ["data.shards=dfew", "data.num_frames=4"])
    torch.manual_seed(0)
    model = build_untrained(config, SEVEN)
    frames = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8)
    results = []
    for where in (torch.device("cpu"), device):
        own = model.to(where)
        own.zero_grad()
        logits = own(frames.to(where))
        F.cross_entropy(logits, torch.tensor([0, 1], device=where)).backward()
        gradients = [p.grad.flatten() for p in own.parameters() if p.grad is not None]
        results.append([logits.detach().cpu(), torch.cat(gradients).cpu()])
    return max(difference(there, here) for here, there in zip(*results, strict=True))


def _both(work: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return a result and the gradients of its sum with fixed weights."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = work(*leaves).float()
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    (out * weights).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _attention_parity(device: torch.device, half: torch.dtype) -> float:
    q, k, v = torch.randn(3, 2, 4, 257, 64)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / 8).softmax(-1) @ v

    exact = _both(plain, q, k, v)
    seen = _both(attend, *(x.to(device, half) for x in (q, k, v)))
    return max(difference(a, b) for a, b in zip(seen, exact, strict=True))


def _layer_parity(layer: nn.Module, device: torch.device, half: torch.dtype) -> float:
    x = 4 * torch.randn(5, 7, 64)
    exact = _both(lambda x: x * torch.sigmoid(1.702 * x), x)
    seen = _both(layer.to(device), x.to(device, half))
    return max(difference(a, b) for a, b in zip(seen, exact, strict=True))


def _patch_parity(device: torch.device, half: torch.dtype) -> float:
    conv, x = nn.Conv2d(3, 64, 16, stride=16, bias=False), torch.randn(2, 3, 64, 64)
    exact = conv(x).detach()
    patches = PatchEmbedding(conv).to(device, half)
    return difference(patches(x.to(device, half)).detach(), exact)


def step(case: StepCase, settings: Sequence[str], ranks: Ranks) -> dict[str, float]:
    """Time steps on random clips."""
    # DeepSpeed reads which device to use when it is imported.
    from dfer_dist.planning.measure import RandomStep

    config = load_config(case.experiment, list(settings))
    random = RandomStep(config, SEVEN, ranks)
    seconds = []
    for _ in range(_WARMUP + _STEPS):
        begin = synchronized_time(ranks.device)
        random.train()
        seconds.append(synchronized_time(ranks.device) - begin)
    micro, accumulation = split_batch(config, 1)
    return {
        "first": seconds[0],
        "seconds": statistics.median(seconds[_WARMUP:]),
        "flops": accumulation * model_flops(config, SEVEN, micro, train=True),
        "peak_bytes": peak_memory(ranks.device),
    }


def resume(config: Config, folder: Path, ranks: Ranks) -> dict[str, float]:
    """Take eight steps, and the last four of them again from a checkpoint in the middle."""
    whole = _Training(config, folder, ranks)
    first = [whole.train(k) for k in range(4)]
    begin = time.perf_counter()
    whole.save(4)
    seconds = time.perf_counter() - begin
    rest = [whole.train(k) for k in range(4, 8)]
    begin = time.perf_counter()
    resumed = _Training(config, folder, ranks, portable.newest(folder))
    restart = time.perf_counter() - begin
    again = [resumed.train(k) for k in range(4, 8)]
    apart = max(abs(a - b) / abs(b) for a, b in zip(again, rest, strict=True))
    moved = abs(rest[-1] - first[0])
    return {"save": seconds, "restart": restart, "apart": apart, "moved": moved}


class _Training:
    """The engine of a run on clips that depend on the step alone."""

    def __init__(
        self, config: Config, folder: Path, ranks: Ranks, checkpoint: Path | None = None
    ) -> None:
        from dfer_dist.checkpoints.optimizer_state import restore
        from dfer_dist.models.dferclip import OutputsModule
        from dfer_dist.models.tuning import param_groups
        from dfer_dist.training.engine import build_engine
        from dfer_dist.training.losses import Objective

        torch.manual_seed(0)
        model, self.ranks, self.config = build_untrained(config, SEVEN), ranks, config
        groups = param_groups(model)
        trained = {name: p for group in groups.values() for name, p in group}
        self.frozen = portable.frozen_checksum(model, trained)
        saved = portable.read(checkpoint) if checkpoint else None
        if saved:
            portable.load_weights(model, trained, saved)
        self.engine = build_engine(OutputsModule(model), groups, config, ranks, 1000)
        if saved:
            restore(self.engine, saved, config, ranks)
            self.engine.load_state_dict(saved.state)
        self.objective = Objective(config, [1] * len(SEVEN), ranks.device)
        self.checkpointer = AsyncCheckpointer(folder, config, ranks, 0, None)

    def train(self, step: int) -> float:
        """Take step ``step`` and return its loss."""
        self.engine.set_learning_rates(step)
        random = torch.Generator().manual_seed(step)
        clips, data = self.engine.micro_batch, self.config.data
        shape = (clips, data.num_frames, 3, data.image_size or 64, data.image_size or 64)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        labels, valid = torch.arange(clips) % len(SEVEN), torch.ones(clips, dtype=torch.bool)
        loss = self.objective(
            self.engine.deepspeed(frames.to(self.ranks.device)), labels, valid, None
        ).mean()
        self.engine.micro_step(loss)
        return float(loss)

    def save(self, step: int) -> None:
        """Write a checkpoint."""
        state = {"step": step, "skipped_steps": 0, "frozen_sha256": self.frozen}
        self.checkpointer.save(self.engine, state | self.engine.state_dict())
        self.checkpointer.wait()


def run_case(name: str, is_dry: bool) -> dict[str, Any]:
    """Run a case in this process and return its measurements."""
    on = "cpu" if is_dry else "cuda"
    config = load_config("demo", ["data.shards=dfew", f"train.device={on}"])
    if name == "numbers":
        device = torch.device(on)
        return numbers(device, precision_here(device))
    ranks = init_distributed(config.train.device)
    precision = precision_here(ranks.device)
    given = [f"train.device={on}", f"train.precision={precision.name}"]
    if name == "resume":
        sizes = ["data.num_frames=4", "train.global_batch=4", "optim.warmup_epochs=0"]
        config = load_config("demo", ["data.shards=dfew", *sizes, *given])
        with tempfile.TemporaryDirectory() as folder:
            return resume(config, Path(folder), ranks)
    index, _, more = name.removeprefix("step ").partition(" ")
    case = (_DRY_CASES if is_dry else _STEP_CASES)[int(index)]
    return step(case, case.settings(*given, *more.split()), ranks)


# ------------------------------------------------------------------------------------- the report


class Report:
    """Runs cases within a time limit and makes tables of them."""

    def __init__(self, is_dry: bool, seconds: float) -> None:
        self.is_dry = is_dry
        self.deadline = time.monotonic() + seconds
        self.failed = False

    def run(self, name: str) -> dict[str, Any] | str:
        """Return what a case measured in a process of its own, or why it did not."""
        left = self.deadline - time.monotonic()
        if left < 1:
            return "not measured: time is up"
        command = [sys.executable, __file__, "--case", name, *["--dry-run"] * self.is_dry]
        try:
            done = subprocess.run(
                command, text=True, capture_output=True, timeout=left, check=False
            )
        except subprocess.TimeoutExpired:
            return "not measured: time is up"
        line = next((x for x in done.stdout.splitlines() if x.startswith('{"case"')), None)
        if line:
            measured: dict[str, Any] = json.loads(line)["case"]
            return measured
        self.failed = True
        lines = done.stderr.strip().splitlines() or ["no message"]
        is_memory = any("out of memory" in x for x in lines)
        return "out of memory" if is_memory else f"failed: {lines[-1]}"

    def numbers(self) -> str:
        """Return the table of numbers that are compared with the CPU's."""
        found = self.run("numbers")
        if isinstance(found, str):
            return f"Numbers: {found}."
        rows = []
        for part, (apart, tolerance) in found.items():
            is_equal = apart <= tolerance
            self.failed |= not is_equal
            rows.append(
                [part, f"{apart:.1e}", f"{tolerance:.0e}", "equal" if is_equal else "**apart**"]
            )
        return table(
            ["Compared with float32 on the CPU", "largest difference", "allowed", ""], rows
        )

    def steps(self, name: str, precision: Precision) -> str:
        """Return the table of training steps on the device ``name``."""
        rows = []
        for i, case in enumerate(_DRY_CASES if self.is_dry else _STEP_CASES):
            rows.append(self._step(case, f"step {i}", name, precision))
            if "train.compile" in flatten(Config()):
                compiled = replace(case, name=f"{case.name}, compiled")
                rows.append(self._step(compiled, f"step {i} train.compile=true", name, precision))
        heads = [f"Step, {precision.name}", "clips", "first, s", "step, s", "clips/s"]
        return table([*heads, "TFLOP/s", "MFU", "GiB"], rows)

    def _step(self, case: StepCase, name: str, device: str, precision: Precision) -> list[str]:
        found = self.run(name)
        clips = f"{case.clips} = {case.clips // case.micro_batch} x {case.micro_batch}"
        if isinstance(found, str):
            return [case.name, clips, found, *[""] * 5]
        seconds, flops = found["seconds"], found["flops"]
        share = mfu(flops, seconds, device, precision.name)
        return [
            case.name,
            clips,
            f"{found['first']:.2f}",
            f"{seconds:.3f}",
            f"{case.clips / seconds:.1f}",
            f"{flops / seconds / 1e12:.3g}",
            "" if share is None else f"{share:.0%}",
            f"{found['peak_bytes'] / 2**30:.2f}",
        ]

    def resume(self) -> str:
        """Return a sentence on saving and resuming."""
        found = self.run("resume")
        if isinstance(found, str):
            return f"Saving and resuming: {found}."
        self.failed |= found["apart"] > 1e-3 or not found["moved"]
        return (
            f"A checkpoint of the tiny model is written in {found['save']:.2f} s and resumed in "
            f"{found['restart']:.2f} s; the next four losses differ by {found['apart']:.1e} at most "
            "from those of the uninterrupted training (allowed: 1e-03)."
        )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def main() -> int:
    """Print the report; return 1 if a case failed or differs from the CPU."""
    parser = argparse.ArgumentParser(description="Measure one GPU in at most 12 minutes.")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--seconds", type=float, default=_SECONDS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps({"case": run_case(given.case, given.dry_run)}), flush=True)
        exit_process(0)
    is_dry = given.dry_run or not torch.cuda.is_available()
    device = torch.device("cpu" if is_dry else "cuda")
    name, precision = device_name(device), precision_here(device)
    begin, report = time.monotonic(), Report(is_dry, given.seconds)
    parts = [report.numbers(), report.steps(name, precision), report.resume()]
    note = "**Dry run on the CPU: it shows nothing about a GPU.** " * is_dry
    about = f"{note}{name}; torch {torch.__version__}; {date.today()}; "
    print("\n\n".join([f"{about}{time.monotonic() - begin:.0f} s.", *parts]))
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
