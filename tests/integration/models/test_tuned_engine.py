"""Tuned towers through the engine: ZeRO-3 on two ranks follows ZeRO-1 on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfer_dist.models.cpu_kernels import (
    MIN_WIDTH,
)
from dfer_dist.models.towers.open_clip_models import TINY
from tests.helpers.models.small_backbones import write_standalone
from tests.helpers.models.tiny_models import ENGINE
from tests.helpers.ranks.spawn import run_ranks

LINEAR = ("attn.in_proj_lora", "attn.out_proj.lora", "mlp.c_fc.lora", "mlp.c_proj.lora")


def factors(tower: str, *ends: str) -> set[str]:
    return {
        f"{tower}.transformer.resblocks.{i}.{linear}.{end}"
        for i in (0, 1)
        for linear in LINEAR
        for end in ends
    }


@pytest.mark.engine_full
def test_lora_under_zero_3_equals_zero_1(
    tmp_path: Path,
) -> None:
    """ZeRO-3 on two ranks with recomputed activations must follow ZeRO-1 on one."""
    one = run_ranks(ENGINE, 1, "--stage", "1", "--folder", str(tmp_path / "one"))
    assert one["rates"] == {"prompt": 1e-4, "lora": 1e-4}
    assert set(one["changed"]) == {"prompt.context"} | factors("image", "down", "up") | factors(
        "text", "down", "up"
    )
    assert one["frozen"] == 0 and one["taken"]
    assert one["losses"][-1] < one["losses"][0]
    three = run_ranks(ENGINE, 2, "--stage", "3", "--recompute", "--folder", str(tmp_path / "three"))
    assert three["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert three["changed"] == one["changed"] and three["frozen"] == 0 and three["taken"]


@pytest.mark.engine_full
@pytest.mark.parametrize("name", ["timm:test_vit", "ViT-B-16-SigLIP2"])
def test_lora_of_other_families_under_zero_3_equals_zero_1(name: str, tmp_path: Path) -> None:
    backbone, others = name, {"head"}
    if not name.startswith("timm:"):
        backbone, others = write_standalone(name, tmp_path), {"prompt"}
    given = ["--backbone", backbone]
    one = run_ranks(ENGINE, 1, *given, "--stage", "1", "--folder", str(tmp_path / "one"))
    assert set(one["rates"]) == {"lora"} | others
    changed = {name.partition(".")[0] for name in one["changed"] if "lora" not in name}
    assert changed == others and any("image.trunk.blocks.0" in name for name in one["changed"])
    assert one["frozen"] == 0 and one["taken"] and one["losses"][-1] < one["losses"][0]
    given += ["--stage", "3", "--recompute"]
    three = run_ranks(ENGINE, 2, *given, "--folder", str(tmp_path / "three"))
    assert three["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert three["changed"] == one["changed"] and three["frozen"] == 0 and three["taken"]


@pytest.mark.engine_full
def test_adapters_resume_to_the_bit_under_zero_3(tmp_path: Path) -> None:
    one = run_ranks(
        ENGINE, 1, "--kind", "adapters", "--stage", "1", "--folder", str(tmp_path / "one")
    )
    assert one["rates"] == {"adapters": 1e-3} and one["frozen"] == 0 and one["taken"]
    assert (
        len(one["changed"]) == 2 * 3 * 4 + 1 + 2 * 2 * 2 * 4
    )  # linear layers of adapters in 2 + 2 blocks, and positions
    assert one["losses"][-1] < one["losses"][0]
    three = ["--kind", "adapters", "--stage", "3", "--recompute"]
    two = run_ranks(ENGINE, 2, *three, "--folder", str(tmp_path / "two"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["changed"] == one["changed"] and two["frozen"] == 0 and two["taken"]
    again = run_ranks(
        ENGINE,
        2,
        *three,
        "--folder",
        str(tmp_path / "again"),
        "--resume",
        str(tmp_path / "two" / "step-00000002"),
    )
    assert again["losses"] == two["losses"][2:] and again["weights"] == two["weights"], (
        "equal to the bit"
    )


def test_modalities_under_zero_3_equal_zero_1(tmp_path: Path) -> None:
    args = ["--kind", "adapters", "--modalities"]
    one = run_ranks(ENGINE, 1, *args, "--stage", "1", "--folder", str(tmp_path / "one"))
    assert one["rates"] == {"adapters": 1e-3} and one["frozen"] == 0 and one["taken"]
    assert (
        len(one["changed"]) == 3 * (2 * 3 * 4 + 1) + 2 * 2 * 2 * 4 + 1
    )  # adapters and positions by level; the texts' adapters; weights
    assert one["losses"][-1] < one["losses"][0]
    two = run_ranks(
        ENGINE, 2, *args, "--stage", "3", "--recompute", "--folder", str(tmp_path / "two")
    )
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["changed"] == one["changed"] and two["frozen"] == 0 and two["taken"]


WIDE_TOWER = {
    **TINY,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 16,
        "width": MIN_WIDTH,
        "layers": 2,
        "head_width": 64,
    },
}


@pytest.mark.engine_full
@pytest.mark.parametrize("kind", ["all", "lora", "adapters"])
def test_wide_tower_in_bf16_under_zero_3_equals_zero_1(kind: str, tmp_path: Path) -> None:
    """Its layers' own products take weights that ZeRO-3 gathers for their moment only."""
    sizes = tmp_path / "wide.json"
    sizes.write_text(json.dumps(WIDE_TOWER))
    engine, own = (
        ENGINE,
        ["--kind", kind, "--backbone", str(sizes), "--precision", "bf16"],
    )
    one = run_ranks(engine, 1, *own, "--stage", "1", "--folder", str(tmp_path / "one"))
    own += ["--stage", "3", "--recompute"]
    two = run_ranks(engine, 2, *own, "--folder", str(tmp_path / "two"))
    assert (
        two["losses"] == pytest.approx(one["losses"], rel=1e-2)
        and one["losses"][-1] < one["losses"][0]
    )
    assert two["changed"] == one["changed"] and two["taken"]
    again = run_ranks(
        engine,
        2,
        *own,
        "--folder",
        str(tmp_path / "again"),
        "--resume",
        str(tmp_path / "two" / "step-00000002"),
    )
    assert again["losses"] == two["losses"][2:] and again["weights"] == two["weights"], (
        "equal to the bit"
    )
