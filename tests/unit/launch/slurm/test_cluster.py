"""What a cluster is like: its file, its flags, and what is made of them. Nothing here needs a Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dfer_dist.data.shards.index import Index
from dfer_dist.utils.errors import UserError
from launch.slurm.cluster import Cluster, load_cluster, with_cluster_flags
from launch.slurm.submit import JobRequest
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "cluster").glob("*.yaml")), ids=lambda f: f.stem
)
def test_files_that_come_with_the_product(file: Path) -> None:
    assert load_cluster(file.stem) == load_cluster(str(file))


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "partition: gpu\nnodes: 2\ngpus_per_node: 8\nsetup: [module load cuda]\nenvironment: {A: b}\n"
    )
    cluster = load_cluster(str(file))
    assert (cluster.partition, cluster.tasks, cluster.ranks, cluster.setup) == (
        "gpu",
        8,
        16,
        ["module load cuda"],
    )
    cluster = load_cluster(
        str(file), {"nodes": 1, "gpus_per_node": None, "setup": [], "environment": ["C=d=e"]}
    )
    assert (cluster.nodes, cluster.gpus_per_node, cluster.setup) == (1, 8, ["module load cuda"])
    assert cluster.environment == {"A": "b", "C": "d=e"}


def test_every_value_is_a_flag() -> None:
    app, seen = typer.Typer(), {}

    @app.command()
    @with_cluster_flags
    def probe(word: str, flags: dict[str, object] | None = None) -> None:
        seen.update(flags or {}, word=word)

    words = {"nodes": "3", "memory_gb": "1.5", "setup": "x", "environment": "A=b"}
    given = [
        w
        for f in fields(Cluster)
        for w in (f"--{f.name.replace('_', '-')}", words.get(f.name, "7"))
    ]
    done = CliRunner().invoke(app, ["here", *given])
    assert done.exit_code == 0, done.output
    assert seen.pop("word") == "here" and seen.keys() == {f.name for f in fields(Cluster)}
    assert (seen["nodes"], seen["memory_gb"], seen["setup"], seen["time_minutes"]) == (
        3,
        1.5,
        ["x"],
        7,
    )


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"nodes": 0}, "nodes: must be at least 1"),
        ({"gpus_per_node": 8, "tasks_per_node": 2}, "each GPU wants one rank"),
        ({"time_minutes": 2, "notice_seconds": 120}, "told to leave before"),
        ({"environment": ["A"]}, "give NAME=VALUE"),
        ({"environment": ["MLFLOW_TRACKING_PASSWORD=secret"]}, "^(?!.*secret).*jobs inherit it"),
        ({"setup": ["export MLFLOW_TRACKING_TOKEN=secret"]}, "^(?!.*secret).*jobs inherit it"),
    ],
)
def test_what_cannot_be(values: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        load_cluster("gpus8", values)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"no cluster 'gpu8': .*did you mean 'gpus8'"):
        load_cluster("gpu8")


def test_an_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("partion: gpu\n")
    with pytest.raises(UserError, match="did you mean 'partition'"):
        load_cluster(str(tmp_path / "c.yaml"))


def wish(sweep: str | None) -> JobRequest:
    return JobRequest("demo", ["train.epochs=1"], None, Path("runs"), None, (), sweep)


def test_a_sweep_is_a_run_for_each_value() -> None:
    assert wish(None).variants() == [("demo", ["train.epochs=1"])]
    assert wish("model.backbone=ViT-B-32,a/b").variants() == [
        ("demo-ViT-B-32", ["train.epochs=1", "model.backbone=ViT-B-32"]),
        ("demo-a-b", ["train.epochs=1", "model.backbone=a/b"]),
    ]


@pytest.mark.parametrize("words", ["model.backbone", "model.backbone=tiny", "a=b/c,b:c", "=a,b"])
def test_no_sweep(words: str) -> None:
    with pytest.raises(UserError, match="--sweep"):
        wish(words).variants()


def dry_run(tiny_shards: Index, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "srun").chmod(0o755)
    # torch out of reach, as on a login node that has better things to do
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'deepspeed', 'open_clip', 'mlflow'):\n"
        "            raise ImportError(name + ' is out of reach')\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from launch.cli import main\nmain()\n"
    )
    given = [
        "crossval",
        "demo",
        "--cluster",
        "gpus8",
        "--dry-run",
        f"data.shards={tiny_shards.root}",
        *words,
    ]
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *given],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_shows_all_and_makes_nothing(tiny_shards: Index, tmp_path: Path) -> None:
    words = [
        "--max-parallel",
        "2",
        "--time-minutes",
        "90",
        "--setup",
        "module load cuda",
        "--environment",
        "A=b c",
        "--account",
        "x",
    ]
    done = dry_run(tiny_shards, tmp_path, *words, "train.epochs=7", "train.global_batch=64")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    options = {
        f"#SBATCH --{o}"
        for o in (
            "array=0-4%2",
            "time=90",
            "nodes=2",
            "gpus-per-node=8",
            "ntasks-per-node=8",
            "account=x",
        )
    }
    assert options | {
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "#SBATCH --mem=245760MB",
    } <= set(lines)
    assert (
        lines.index("module load cuda")
        < lines.index("export A='b c'")
        < lines.index("folds=(1 2 3 4 5)")
    )
    assert "--kill-on-bad-exit=1" in next(line for line in lines if line.startswith("srun "))
    assert "  epochs: 7" in lines
    assert [f.name for f in tmp_path.iterdir()] == ["srun"]


def test_scratch_stages_the_shards(tiny_shards: Index, tmp_path: Path) -> None:
    done = dry_run(tiny_shards, tmp_path, "--scratch", "/local/$USER", "train.global_batch=64")
    assert done.returncode == 0, done.stderr
    assert (
        f"  shards: {tiny_shards.root.as_uri()}" in done.stdout
        and "  cache: /local/$USER" in done.stdout
    )


def test_a_batch_that_the_ranks_cannot_share(tiny_shards: Index, tmp_path: Path) -> None:
    done = dry_run(tiny_shards, tmp_path, "train.global_batch=24")
    assert done.returncode == 2 and "16 ranks" in done.stderr


@pytest.mark.parametrize("words", [["--partition", "low"], ["--wait"], ["--sweep", "a=1,2"]])
def test_flags_of_a_cluster_without_one(tmp_path: Path, words: list[str]) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("dfer"), "crossval", "demo", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "give --cluster NAME too" in done.stderr
