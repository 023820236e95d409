"""``dfer plan``: its tables, advice and numbers of nodes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import split_batch
from dfer_dist.utils.errors import UserError
from launch.commands.plan import node_counts
from tests.helpers.cli import invoke
from tests.helpers.models.counted_steps import (
    FEW_LAYERS,
    counted_steps,  # noqa: F401 (a fixture)
)


def test_plan_prints_a_row_for_each_choice(tmp_path: Path) -> None:
    given = ["--gpus", "8", "--gpu-memory", "80", FEW_LAYERS]
    done = invoke("plan", "dfew_vitb32", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fastest") == 1
    starts = [line.strip()[:1] for line in done.stdout.splitlines()]
    assert sum(start in ("1", "2", "3") for start in starts) == 12
    # the last line is the fastest row, as settings that `dfer crossval` takes
    last = done.stdout.splitlines()[-1]
    use = re.fullmatch(r"use: (.+) \((\S+) of 80 GiB, about \S+ (s|min|h)\)", last)
    assert use, last
    config = load_config("dfew_vitb32", ["data.shards=x", *use[1].split()])
    (fastest,) = (line.split() for line in done.stdout.splitlines() if "fastest" in line)
    micro, accumulation = split_batch(config, 8)
    assert [str(config.train.zero_stage), str(micro)] == fastest[:2]
    assert (micro * accumulation, use[2]) == (config.train.global_batch // 8, fastest[-6])


def test_plan_gives_advice_where_nothing_fits(tmp_path: Path) -> None:
    done = invoke("plan", "dfew_vitb32", "--gpu-memory", "1", FEW_LAYERS, cwd=tmp_path)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("nothing fits 1 GiB: set model.checkpoint_image=true")


def test_scale_prints_nodes_and_what_limits_them(tmp_path: Path) -> None:
    given = ["--gpus", "8", "--tflops", "20", "--scale", "1,2,...,512", FEW_LAYERS]
    done = invoke("plan", "dfew_vitb32", *given, cwd=tmp_path)
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [int(row[0]) for row in rows] == [2**i for i in range(10)], done.stderr
    assert all(row[-1] == "compute" for row in rows)


def test_node_counts_continue_by_their_factor() -> None:
    powers = [2**i for i in range(10)]
    assert node_counts("1,2,4") == [1, 2, 4]
    assert node_counts("1, 2,4,...,512") == powers
    assert node_counts("1,2,4,\N{HORIZONTAL ELLIPSIS},512") == powers
    assert node_counts("1,3,...,20") == [1, 3, 9, 20]


@pytest.mark.parametrize("text", ["", "0,1", "2,1", "1,...,8", "1,2,...", "1,x", "2,2"])
def test_node_counts_refuse_other_text(text: str) -> None:
    with pytest.raises(UserError, match="give numbers of nodes"):
        node_counts(text)
