"""Options that are passed on to ``sbatch``."""

from __future__ import annotations

import pytest

from dfer_dist.utils.errors import UserError
from launch.slurm.cluster import load_cluster
from launch.slurm.sbatch_options import arguments, count_gpus, read_options, sent


def test_options_are_named_as_sbatch_names_them() -> None:
    given = {"--mail_type": "END", "exclusive": "true", "hold": "false", "gres": "gpu:a100:4"}
    options = read_options(given, "sbatch")
    assert options == {
        "mail-type": "END",
        "exclusive": True,
        "hold": False,
        "gres": "gpu:a100:4",
    }
    assert sent(options) == {"mail_type": "END", "exclusive": True, "gres": "gpu:a100:4"}
    assert arguments(sent(options)) == ["--mail-type=END", "--exclusive", "--gres=gpu:a100:4"]


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("array", "--folds and --max-parallel"),
        ("requeue", "cluster.max_requeues"),
        ("no-requeue", "cluster.max_requeues=0"),
        ("signal", "cluster.notice_seconds"),
        ("output", "dfer logs"),
        ("error", "dfer logs"),
        ("open-mode", "dfer logs"),
        ("open_mode", "dfer logs"),
        ("export", "cluster.environment"),
        ("nodes", "cluster.nodes"),
        ("ntasks", "cluster.gpus_per_node"),
        ("gpus-per-node", "cluster.gpus_per_node"),
        ("cpus_per_task", "cluster.cpus_per_task"),
        ("mem", "cluster.memory_gb"),
        ("time", "cluster.time_minutes"),
        ("partition", "cluster.partition"),
        ("job-name", "--name"),
        ("parti", "cluster.partition"),  # sbatch takes the beginning of a name
        ("p", "long name"),
        ("Partition", "long name"),
    ],
)
def test_option_with_a_setting_of_its_own_is_refused(option: str, instead: str) -> None:
    with pytest.raises(UserError, match=rf"^cluster\.sbatch\.{option}: .*{instead}"):
        load_cluster("gpus8", [f"cluster.sbatch.{option}=1"])


@pytest.mark.parametrize("option", ["array", "dependency", "nodes", "cpus-per-task", "requeue"])
def test_summary_option_that_is_set_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=rf"^cluster\.summary\.{option}: dfer sets --{option}"):
        load_cluster("gpus8", [f"cluster.summary.{option}=1"])


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:a100:4", 4),
        ("gpu:8(S:0-1)", 8),
        ("gres:gpu", 1),
        ("gpu:h100", 1),
        ("gpu:a100:2,gpu:h100:1,nvme:4", 3),
        ("shard:16", 0),
        ("none", 0),
    ],
)
def test_gpus_of_generic_resources_are_counted(gres: str, gpus: int) -> None:
    assert count_gpus(gres) == gpus
