"""Estimates equal the real parameters, formulas and a real step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, Optimizer
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.models.build import build_model
from dfer_dist.models.flops import build_meta_model
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.estimate import (
    GIB,
    DataSize,
    Machine,
    PlannedStep,
    data_size,
    fastest,
    plan,
)
from dfer_dist.planning.scaling import scale
from dfer_dist.planning.step_costs import StepCosts, count_step
from dfer_dist.training.bf16_gradients import BUCKET
from dfer_dist.utils.errors import UserError
from tests.helpers.models.counted_steps import (
    FEW_LAYERS,
    counted_steps,  # noqa: F401 (a fixture)
)
from tests.helpers.paths import ROOT

EIGHT = Machine("cuda", 8, 80 * GIB, 1e14, 1e11, 1e-5)


def demo(*overrides: str) -> Config:
    kept = "model.checkpoint_temporal=false"
    return load_config("demo", ["train.precision=bf16", kept, *overrides])


@pytest.fixture(scope="module")
def counted() -> StepCosts:
    return count_step(demo(), SEVEN, fused_attention=False)


def test_parameters_are_those_of_the_real_model(counted: StepCosts) -> None:
    config = demo()
    model = build_model(config.model, SEVEN, config.data.num_frames, 64)
    assert counted.groups == {
        name: sum(p.numel() for _, p in own) for name, own in param_groups(model).items()
    }
    assert counted.trained + counted.frozen == sum(p.numel() for p in model.parameters())
    assert counted.graded[0] == 0 and counted.graded[-1] == counted.trained


def test_activations_are_those_saved_by_autograd(counted: StepCosts) -> None:
    """After the forward pass, live tensors are those saved for the backward pass."""
    config, clips = demo(), 5
    model = build_model(config.model, SEVEN, config.data.num_frames, 64).bfloat16()
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    frames = torch.zeros((clips, config.data.num_frames, 3, 64, 64), dtype=torch.uint8)
    torch.backends.cuda.enable_flash_sdp(False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        # The graph of the logits keeps what was saved.
        logits = model(frames)  # noqa: F841
    live = counted.live(clips)
    assert sum(kept.values()) + frames.nbytes == pytest.approx(live.max(), rel=0.1)
    assert live[-1] < live.max() / 4, "the backward pass frees them"


def test_flops_are_those_of_matrix_products(counted: StepCosts) -> None:
    """Two operations for each token and weight in each of three products.

    These are forward, gradients of inputs, and gradients of weights.
    """
    config = demo()
    model = build_model(config.model, SEVEN, config.data.num_frames, 64)
    frames, tokens = config.data.num_frames, 16 + 1
    layers = sum(p.numel() for p in model.image.transformer.parameters() if p.dim() == 2)
    over_time = sum(p.numel() for p in model.temporal.parameters() if p.dim() == 2)
    # Layers, operations, scores and values.
    scores = 2 * 6 * 2 * tokens**2 * 64 * frames
    # Pixels get no gradient.
    patches = 4 * model.image.conv1.weight.numel() * 16 * frames
    expected = 6 * layers * tokens * frames + 6 * over_time * (frames + 1) + scores + patches
    assert counted.flops.clip == pytest.approx(expected, rel=0.02)


def test_recomputing_needs_less_memory_and_more_flops() -> None:
    overrides = ["data.shards=dfew", FEW_LAYERS]
    kept = count_step(load_config("dfew_vitb32", overrides), SEVEN, fused_attention=False)
    recomputing = ["model.checkpoint_image=true"]
    again = count_step(
        load_config("dfew_vitb32", overrides + recomputing), SEVEN, fused_attention=False
    )
    assert again.live(8).max() < kept.live(8).max() / 3
    assert 1.2 * kept.flops.clip < again.flops.clip < 1.4 * kept.flops.clip


def test_fused_kernel_keeps_no_scores(counted: StepCosts) -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    fused = count_step(demo(), SEVEN, fused_attention=True)
    assert fused.live(8).max() < counted.live(8).max()
    assert fused.flops(8) == counted.flops(8)
    assert torch.nn.functional.scaled_dot_product_attention is attention, "restored"


def made_up(**sizes: int) -> StepCosts:
    """A model of 100 million trained parameters whose activations are a megabyte a clip."""
    groups = {"temporal": 10_000_000, "image": sizes.get("image", 90_000_000)}
    linear = type("L", (), {"__call__": lambda self, micro: np.array([0.0, 1e6 * micro, 0.0])})()
    return StepCosts(
        groups, 50_000_000, 20_000_000, 60, linear, linear, np.array([0, 0, sum(groups.values())])
    )


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(
    ("name", "ema", "moments"),
    [(Optimizer.sgd, 0.0, 1), (Optimizer.adamw, 0.0, 2), (Optimizer.adamw, 0.9, 3)],
)
def test_memory_by_stage(name: Optimizer, ema: float, moments: int, offload: bool) -> None:
    config = demo()
    config = replace(
        config,
        optim=replace(config.optim, name=name),
        train=replace(config.train, offload_optimizer=offload, ema=ema),
    )
    one, two, three = (
        PlannedStep(made_up(), config, EIGHT, stage, 1, 1).memory for stage in (1, 2, 3)
    )
    share = 4e8 / 8
    assert one.weights == two.weights == 2 * 150e6 + share * (not offload)
    assert three.weights == 2 * 150e6 / 8 + 2 * 130e6 + share * (not offload)
    assert one.moments == two.moments == three.moments == moments * share * (not offload)
    assert one.host == (share * (2 + moments) + 2e8 / 8 if offload else 0)
    buckets = 2 * BUCKET
    assert (one.gradients, two.gradients, three.gradients) == (
        (6e8, 2 * buckets, buckets)
        if offload
        else (4e8 + 2e8, 2 * buckets + share, buckets + share)
    )


@pytest.mark.parametrize(("device", "bucket"), [("cuda", 2 * 4 * BUCKET), ("cpu", 2 * BUCKET)])
def test_gradients_of_zero_1_in_float16(device: str, bucket: int) -> None:
    """Float32 gradients of all parameters, a copy of a rank's share, and the buckets."""
    step = PlannedStep(
        made_up(), demo("train.precision=fp16"), replace(EIGHT, device=device), 1, 1, 1
    )
    memory = step.memory
    assert memory.weights == 2 * 150e6 + 4e8 / 8
    assert memory.gradients == 4e8 + 4e8 / 8 + bucket
    assert step.sent == 7 / 8 * (2 * 2e8 + 2e8)


def test_bytes_sent_are_those_of_real_steps() -> None:
    """Two ranks, ViT-B/32, two micro batches, as in ``docs/background/memory.md``.

    A ring of two sends half of what it gathers.
    """
    step = PlannedStep(made_up(), demo(), replace(EIGHT, ranks=2), 1, 1, 2)
    assert step.sent == (2 * 2e8 + 2e8) / 2
    assert replace(step, stage=2).sent == (2 * 2 * 2e8 + 2e8) / 2
    assert replace(step, stage=3).sent == (2 * 2e8 + 2 * 2 * 130e6) / 2
    assert replace(step, machine=replace(EIGHT, ranks=1)).sent == 0


def test_plan_has_every_stage_and_micro_batch() -> None:
    config = load_config("dfew_vitb32", ["data.shards=dfew", FEW_LAYERS])
    rows = plan(config, EIGHT, SEVEN)
    assert [(r.stage, r.micro, r.accumulation) for r in rows] == [
        (s, m, 6 // m) for s in (1, 2, 3) for m in (1, 2, 3, 6)
    ]
    best = fastest(rows)
    assert best is not None and (best.stage, best.micro) == (1, 6)
    hours = 9357 // 48 * 50 * 5 * 48 / best.clips_per_second / 3600
    assert best.hours(DataSize(SEVEN, 9357, 5)) == pytest.approx(hours)
    small = plan(config, replace(EIGHT, memory=0.5 * GIB), SEVEN)
    assert fastest(small) is None and not any(r.fits for r in small)
    slow = plan(config, replace(EIGHT, flops=EIGHT.flops / 2), SEVEN)
    assert all(s.clips_per_second < r.clips_per_second for s, r in zip(slow, rows, strict=True))


def test_data_size_is_that_of_index_or_lists(tmp_path: Path, tiny_shards: Index) -> None:
    unpacked = load_config("ferv39k_vitb32", [f"data.shards={tmp_path}/ferv39k"])
    assert data_size(unpacked).clips == 31_088
    got = data_size(load_config("dfew_vitb32", [f"data.shards={tiny_shards.root}"]))
    assert (got.clips, got.folds, got.classes) == (48, 5, SEVEN)
    with pytest.raises(UserError, match="pack first, or set data"):
        data_size(load_config("dfew_vitb32", [f"data.shards={tmp_path}/other"]))


def test_network_seconds_are_bytes_and_hops() -> None:
    eight = PlannedStep(made_up(), demo(), EIGHT, 1, 1, 1)
    # Two buckets and two groups, each three hops up and down.
    seconds = 3 * 7 / 8 * 2e8 / 1e11 + (2 + 2) * 2 * 3 * 1e-5
    assert eight.network_seconds == pytest.approx(seconds)
    assert replace(eight, machine=replace(EIGHT, ranks=1)).network_seconds == 0


def test_scale_ends_at_the_limit_of_the_network() -> None:
    config = load_config("dfew_vitb32", ["data.workers=2", FEW_LAYERS])
    one, two, many = scale(config, EIGHT, 1e9, 1e9, [1, 2, 512], SEVEN)
    assert (one.ranks, two.ranks, many.ranks, one.clips, many.clips) == (8, 16, 4096, 6, 6)
    assert one.compute == many.compute and one.network < two.network < many.network
    assert two.network > 10 * one.network, "nodes have a hundredth of the bandwidth"
    assert one.limit == "compute" and many.limit == "network"
    assert one.efficiency > two.efficiency > many.efficiency > 0
    assert many.clips_per_second == pytest.approx(4096 * 6 / (many.compute + many.network))
    (slow,) = scale(config, EIGHT, 1e9, 1.0, [1], SEVEN)
    assert slow.limit == "data" and slow.seconds == 6 / 2 and slow.efficiency == 1


@pytest.mark.parametrize("name", sorted(f.stem for f in (ROOT / "configs").glob("*_*.yaml")))
def test_every_experiment_builds_without_weights_or_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = load_config(name, ["data.shards=dfew"])
    model = build_meta_model(config, SEVEN)
    assert model.image.output_dim > 0 and sum(p.requires_grad for p in model.parameters())
