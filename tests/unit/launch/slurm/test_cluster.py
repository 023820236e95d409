"""Settings of a cluster: its file, and ``cluster.KEY=VALUE`` on the command line."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest

from dfer_dist.utils.errors import UserError
from launch.slurm.cluster import Cluster, load_cluster, restore_cluster, split_overrides
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "cluster").glob("*.yaml")), ids=lambda f: f.stem
)
def test_packaged_cluster_loads_by_name_and_path(file: Path) -> None:
    assert load_cluster(file.stem) == load_cluster(str(file))


def write(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "partition: gpu\nnodes: 2\ngpus_per_node: 8\nsetup: [module load cuda]\n"
        "environment: {A: b}\n",
    )
    cluster = load_cluster(file)
    assert (cluster.partition, cluster.tasks, cluster.ranks) == ("gpu", 8, 16)
    assert cluster.setup == ["module load cuda"]
    cluster = load_cluster(file, ["cluster.nodes=1", "cluster.environment.C=d=e"])
    assert (cluster.nodes, cluster.gpus_per_node, cluster.setup) == (1, 8, ["module load cuda"])
    assert cluster.environment == {"A": "b", "C": "d=e"}
    assert load_cluster(file, ["cluster.partition=null"]).partition is None


def test_every_setting_can_be_overridden() -> None:
    values = {
        "memory_gb": "1.5",
        "setup": "[x, module load y]",
        "environment": "{A: b}",
        "sbatch": "{exclude: n3}",
        "summary": "{partition: cpu}",
        "settings": "[train.device=cpu, data.workers=2]",
    }
    overrides = [f"cluster.{f.name}={values.get(f.name, '7')}" for f in fields(Cluster)]
    cluster = load_cluster("testbed", [*overrides, "cluster.notice_seconds=9"])
    assert (cluster.nodes, cluster.memory_gb, cluster.account) == (7, 1.5, "7")
    assert (cluster.setup, cluster.environment["A"]) == (["x", "module load y"], "b")
    assert (cluster.sbatch, cluster.summary) == ({"exclude": "n3"}, {"partition": "cpu"})
    assert cluster.settings == ["train.device=cpu", "data.workers=2"]


def test_values_stay_text_for_the_shell_and_slurm(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "account: 0123\nscratch: ${SLURM_TMPDIR}/x\nsetup: ['source ${HOME}/env.sh']\n"
        "environment: {A: on, B: 010, C: '${D}'}\nsbatch: {begin: 16:00, exclusive: true}\n",
    )
    cluster = load_cluster(file)
    assert (cluster.account, cluster.scratch) == ("0123", "${SLURM_TMPDIR}/x")
    assert cluster.setup == ["source ${HOME}/env.sh"]
    assert cluster.environment == {"A": "on", "B": "010", "C": "${D}"}
    assert cluster.sbatch == {"begin": "16:00", "exclusive": True}


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("90:30", 91),
        ("24:00:00", 1440),
        ("1-12", 2160),
        ("1-00:30", 1470),
        ("2-00:00:00", 2880),
    ],
)
def test_time_is_read_as_sbatch_reads_it(tmp_path: Path, time: str, minutes: int) -> None:
    cluster = load_cluster(write(tmp_path, f'time_minutes: "{time}"\n'))
    assert cluster.time_minutes == minutes
    assert load_cluster("gpus8", [f"cluster.time_minutes={time}"]).time_minutes == minutes


def test_overrides_are_separated_from_settings() -> None:
    given = ["train.epochs=1", "cluster.nodes=2", "model.backbone=tiny"]
    assert split_overrides(given) == (["train.epochs=1", "model.backbone=tiny"], given[1:2])


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["nodes=0"], "cluster.nodes=0: must be at least 1"),
        (["nodes=two"], "cluster.nodes=two: must be a whole number"),
        (["nodes=null"], "cluster.nodes=null: must be a whole number"),
        (["time_minutes=1 day"], "cluster.time_minutes=1 day: must be whole minutes, or a time"),
        (["memory_gb=much"], "cluster.memory_gb=much: must be a number"),
        (["gpus_per_node=-1"], "cluster.gpus_per_node=-1: must be at least 0"),
        (["gpus_per_node=8", "tasks_per_node=2"], "each GPU needs one rank"),
        (["time_minutes=2", "notice_seconds=120"], "preempted before"),
        (["environment=A"], "give cluster.environment.KEY=VALUE"),
        (["partition=[a, b]"], "must be a single value"),
        (["partitoin=gpu"], "did you mean 'partition'"),
        (["gres=gpu:4"], "unknown key; .* an option of sbatch is given as sbatch.gres$"),
        (["gpus_per_node=a100:4"], "whole number; give the type as sbatch.gres=gpu:a100:4 too$"),
        (["nodes"], "is not of the form cluster.KEY=VALUE"),
        (["sbatch={a: b"], "cannot be read as YAML"),
        (["environment={A: b, A: c}"], "'A' is given twice"),
        (["environment={A-B: c}"], "cluster.environment.A-B: no shell exports a variable"),
        (["environment.1A=c"], "cluster.environment.1A: no shell exports a variable"),
        (["environment.MLFLOW_TRACKING_PASSWORD=secret"], "^(?!.*secret).*jobs inherit it"),
        (["setup=export MLFLOW_TRACKING_TOKEN=secret"], "^(?!.*secret).*jobs inherit it"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(overrides: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        load_cluster("gpus8", [f"cluster.{text}" for text in overrides])
    assert "\n" not in str(caught.value)


def test_unknown_cluster_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no cluster 'gpu8': .*did you mean 'gpus8'"):
        load_cluster("gpu8")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("partion: gpu\n", "did you mean 'partition'"),
        ("- gpu\n", "must hold keys and values"),
        ("nodes: 1\nnodes: 2\n", "'nodes' is given twice"),
        ("a: [\n", "cannot be read as YAML"),
    ],
)
def test_wrong_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"mine\.yaml.*{why}"):
        load_cluster(write(tmp_path, text))


def test_stored_settings_are_restored() -> None:
    cluster = load_cluster("gpus8", ["cluster.sbatch={exclusive: true}", "cluster.setup=[x]"])
    assert restore_cluster(asdict(cluster), Path("jobs.json")) == cluster


def test_settings_of_older_versions_are_restored() -> None:
    # as version 0.1.0 stored them: without sbatch, summary and settings
    stored = asdict(load_cluster("gpus8"))
    del stored["sbatch"], stored["summary"], stored["settings"]
    assert restore_cluster(stored, Path("jobs.json")) == load_cluster("gpus8")
