"""``dfer crossval --cluster`` with an ``sbatch`` that refuses some jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import expand
from launch.slurm.jobs import submissions
from tests.helpers.cli import check_refusal
from tests.helpers.forked import Done
from tests.helpers.slurm.fake_clients import FakeSlurm, run_dfer

# takes the folds' job, and does what a test says with that of the summary
SBATCH = """#!/bin/bash
grep -q job-name=dfer-summary "${@: -1}" || { echo "Submitted batch job 120"; exit; }
"""


@pytest.fixture
def sbatch(slurm: FakeSlurm) -> Path:
    for name in ("sbatch", "srun"):
        (slurm.root / name).write_text("#!/bin/sh\n")
        (slurm.root / name).chmod(0o755)
    return slurm.root / "sbatch"


def submit(shards: Index, runs: Path, *arguments: str) -> Done:
    settings = [f"data.shards={shards.root}", "tracking.enabled=false", "cluster.nodes=1"]
    return run_dfer(
        "crossval", "demo", "--cluster", "testbed", "--runs", runs, *settings, *arguments
    )


@pytest.mark.parametrize(
    ("refuse", "why"),
    [
        ("echo 'sbatch: error: no GPUs asked for' >&2; exit 1", "no GPUs asked for"),
        # several lines of a plugin, and Slurm's own after them
        (
            "printf 'sbatch: Ask for GPUs.\\nsbatch: error: Batch job submission failed\\n' >&2;"
            "exit 1",
            "Ask for GPUs.; Batch job submission failed",
        ),
        # wrappers of a site
        ("printf 'too small\\nfor this partition\\n' >&2; exit 3", "too small for this partition"),
        ("echo 'see the wiki'; exit 1", "see the wiki"),
        ("exit 3", "sbatch gives no reason"),
        ("echo 'your job was put aside'", 'of sbatch output "your job was put aside"'),
    ],
)
def test_folds_run_without_a_summary_job(
    sbatch: Path, slurm: FakeSlurm, tiny_shards: Index, tmp_path: Path, refuse: str, why: str
) -> None:
    sbatch.write_text(SBATCH + refuse)
    done = submit(tiny_shards, tmp_path, "--folds", "1-2")
    assert (done.returncode, done.stderr, slurm.cancelled) == (0, "", [])
    # a slow machine says meanwhile what it does
    said, submitted = [line for line in done.stdout.splitlines() if not line.endswith("…")]
    assert said.startswith("no summary job (Slurm refuses the job: ") and why in said
    assert "the last fold of a run writes its summary; cluster.summary sets" in said
    assert submitted.startswith("submitted 2 folds as job 120; follow them")
    (entry,) = submissions(RunDir(tmp_path / "demo"))
    assert (entry.folds, entry.summary) == ({"1": "120_0", "2": "120_1"}, None)


def test_settings_and_seeds_are_one_array(sbatch: Path, tiny_shards: Index, tmp_path: Path) -> None:
    """Without a summary job the command says how to compare them."""
    sbatch.write_text(SBATCH + "echo 'sbatch: error: no' >&2; exit 1")
    arguments = ["--sweep", "train.epochs=1,2", "--seeds", "0-1", "--folds", "1-3"]
    done = submit(tiny_shards, tmp_path, *arguments)
    assert "submitted 12 folds as job 120; follow them with dfer status" in done.stdout
    assert f"compare the runs with dfer report {tmp_path}/demo.sweep" in done.stdout
    names = ["demo-1-seed0", "demo-2-seed0", "demo-1-seed1", "demo-2-seed1"]
    for i, name in enumerate(names):
        (entry,) = submissions(RunDir(tmp_path / name))
        assert entry.folds == {str(k): f"120_{3 * i + k - 1}" for k in (1, 2, 3)}
        assert entry.folder == "../demo.sweep/1"
    assert expand(tmp_path / "demo.sweep") == [RunDir(tmp_path / name) for name in names]


@pytest.mark.parametrize("sweep", [(), ("--seeds", "0-1")], ids=["run", "sweep"])
def test_refused_folds_leave_nothing(
    sbatch: Path, tiny_shards: Index, tmp_path: Path, sweep: tuple[str, ...]
) -> None:
    sbatch.write_text("#!/bin/sh\necho 'no account'\nexit 1\n")
    check_refusal(submit(tiny_shards, tmp_path, *sweep), "Slurm refuses the job: no account")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("demo")]


@pytest.mark.parametrize("name", ["it's 50%accurate", "a b;c&d $HOME"])
@pytest.mark.parametrize("folds", ["1", "1-3"])
def test_folder_of_any_name_holds_what_its_jobs_need(
    sbatch: Path, tiny_shards: Index, tmp_path: Path, name: str, folds: str
) -> None:
    """Submitit puts the arguments of each task into the folder, under the id of its job."""
    sbatch.write_text('#!/bin/sh\necho "Submitted batch job 120"\n')
    runs = tmp_path / name
    done = submit(tiny_shards, runs, "--folds", folds)
    assert (done.returncode, done.stderr) == (0, "")
    ids = {"1": ["120"], "1-3": ["120_0", "120_1", "120_2"]}[folds]
    files = {file.name for file in (runs / "demo" / "slurm" / "1").iterdir()}
    # the fake gives the summary's job the same id
    assert {"120_submission.sh", "120_submitted.pkl"} | {f"{i}_submitted.pkl" for i in ids} <= files
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["bin", name])
