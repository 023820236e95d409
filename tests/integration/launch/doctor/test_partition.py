"""What Slurm would say to the folds of a cluster."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

import pytest

from launch.doctor.checks import NOTE, OK, WRONG, Check
from launch.doctor.partition import check_slurm
from launch.slurm.cluster import Cluster
from tests.helpers.slurm.scripted_slurm import FINE, NODES, PARTITION, ScriptedSlurm


def faults(cluster: Cluster) -> list[Check]:
    return [check for check in check_slurm(cluster) if check.state != OK]


def test_cluster_that_fits_is_fine(slurm: ScriptedSlurm) -> None:
    checks = list(check_slurm(replace(FINE, account="lab", qos="high")))
    assert {check.state for check in checks} == {OK}
    assert [check.subject for check in checks][:7] == [
        "Slurm",
        "environment",
        "partition",
        "nodes",
        "account",
        "qos",
        "time",
    ]
    assert faults(replace(FINE, partition=None)) == []  # the default


def test_one_partition_of_a_list_must_fit(slurm: ScriptedSlurm) -> None:
    """As for Slurm, which refuses a list with an unknown one."""
    closed = PARTITION.replace("State=UP", "State=DOWN")
    long = PARTITION.replace("=gpu", "=long").replace("MaxTime=2", "MaxTime=9")
    slurm.set_output("partitions", closed, long)
    both = replace(FINE, partition="gpu,long")
    assert faults(replace(both, time_minutes=5 * 1440)) == []
    (found,) = faults(replace(both, time_minutes=10 * 1440))
    assert (found.subject, found.state) == ("time", WRONG)
    (found,) = faults(replace(FINE, partition="long,cpu"))
    assert found.text.startswith("there is no 'long,cpu': this cluster has gpu, long")


class Fault(NamedTuple):
    """A change of the cluster or of what Slurm prints, and the check that it makes wrong."""

    subject: str
    text: str  # a regular expression
    changes: dict[str, object] | None = None
    prints: dict[str, list[str]] | None = None
    state: str = WRONG


def partition(old: str, new: str) -> dict[str, list[str]]:
    return {"partitions": [PARTITION.replace(old, new)]}


FAULTS = {
    "partition": Fault("partition", "no 'cpu': this cluster has gpu, long", {"partition": "cpu"}),
    "no default": Fault(
        "partition", "cluster.partition=NAME", {"partition": None}, partition("YES", "NO")
    ),
    "closed": Fault("partition", "gpu is DRAIN", {}, partition("State=UP", "State=DRAIN")),
    "gpus": Fault(
        "nodes",
        "9 GPUs of a node asked for, the largest of the partition has 8",
        {"gpus_per_node": 9, "cpus_per_task": 1},
    ),
    "gres": Fault("nodes", "asks for 4 GPUs of each node", {"sbatch": {"gres": "gpu:a100:4"}}),
    "processors": Fault("nodes", "72 processors", {"cpus_per_task": 9}),
    "memory": Fault(
        "nodes",
        "300 GB of memory of a node asked for, the largest of the partition has 250",
        {"memory_gb": 300},
    ),
    "number of nodes": Fault("nodes", "4 asked for, the partition has 3", {"nodes": 4}),
    "feature": Fault("nodes", "has 0 with .* the feature h100", {"constraint": "h100"}),
    "nodes down": Fault(
        "nodes",
        "3 with .* 1 are in service",
        {},
        {
            "nodes": [
                NODES[0],
                NODES[1].replace("idle", "drained"),
                NODES[2].replace("idle", "idle*"),
            ]
        },
    ),
    "account": Fault(
        "account", r"'theirs' is not among yours \(lab, other\)$", {"account": "theirs"}
    ),
    "qos": Fault("qos", r"'urgent' is not among yours \(high, normal\)$", {"qos": "urgent"}),
    "no account": Fault("account", "you have none here", {}, {"accounts": []}),
    "account of the partition": Fault(
        "account",
        "does not take 'lab', only x,y",
        {"account": "lab"},
        partition("AllowAccounts=ALL", "AllowAccounts=x,y"),
    ),
    "time": Fault(
        "time",
        "the partition allows 2880: give cluster.time_minutes=2880",
        {"time_minutes": 2881},
    ),
    "refused": Fault(
        "a fold's job",
        "QOSMaxGRESPerUser; allocation failure: no$",
        {},
        {"refusal": ["sbatch: error: QOSMaxGRESPerUser", "allocation failure: no"]},
    ),
    "summary refused": Fault(
        "the summary's job",
        "no GPUs; the last fold would write the summary; see cluster.summary",
        {},
        {"refusal-of-summary": ["sbatch: error: no GPUs"]},
        NOTE,
    ),
    "short grace": Fault(
        "preemption",
        "REQUEUE, 5 s after SIGTERM",
        {},
        partition("GraceTime=120", "GraceTime=5"),
        NOTE,
    ),
    "cancelled": Fault(
        "preemption", "does not bring a job back", {}, partition("=REQUEUE", "=CANCEL"), NOTE
    ),
    "suspended": Fault(
        "preemption", "stopped, not ended", {}, partition("=REQUEUE", "=GANG,SUSPEND"), NOTE
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_fault_is_one_check(slurm: ScriptedSlurm, fault: Fault) -> None:
    for file, lines in (fault.prints or {}).items():
        slurm.set_output(file, *lines)
    (found,) = faults(replace(FINE, **(fault.changes or {})))  # type: ignore[arg-type]
    assert (found.state, found.subject) == (fault.state, fault.subject)
    assert re.search(fault.text, found.text), found.text


@pytest.mark.parametrize(
    ("changes", "cluster", "expected"),
    [
        ({"AccountingStorageType": "accounting_storage/none"}, replace(FINE, account="theirs"), []),
        ({"AccountingStorageType": "(null)"}, replace(FINE, account="theirs"), []),
        (
            {"AccountingStorageEnforce": "none"},
            replace(FINE, account="theirs"),
            [(NOTE, "account")],
        ),
        ({"PreemptType": "preempt/none"}, FINE, []),
        ({"PreemptType": "preempt/qos"}, FINE, [(NOTE, "preemption")]),
        ({"KillWait": "10 sec"}, FINE, [(NOTE, "exit")]),
        ({"KillWait": "10 sec"}, replace(FINE, notice_seconds=20), [(WRONG, "exit")]),
        ({"JobRequeue": "0"}, FINE, []),
    ],
)
def test_configuration_of_slurm_is_judged(
    slurm: ScriptedSlurm, changes: dict[str, str], cluster: Cluster, expected: list[tuple[str, str]]
) -> None:
    slurm.config(**changes)
    assert [(check.state, check.subject) for check in faults(cluster)] == expected


@pytest.mark.parametrize("name", ["SBATCH_PARTITION", "SLURM_JOB_ID", "MASTER_PORT", "RANK"])
def test_variable_that_jobs_do_not_get_is_named(
    slurm: ScriptedSlurm, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    (found,) = faults(FINE)
    assert (found.state, found.subject) == (NOTE, "environment") and name in found.text


def test_slurm_without_an_answer_is_one_check(
    slurm: ScriptedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.break_client("sacctmgr", "Connection refused")
    (found,) = faults(FINE)
    assert found.state == NOTE and "Connection refused" in found.text
    slurm.break_client("scontrol", "Unable to contact slurm controller")
    (found,) = faults(FINE)
    assert found.state == WRONG and found.text.startswith(
        "Unable to contact slurm controller: is this a login node"
    )
    (slurm.root / "sinfo").unlink()
    monkeypatch.setenv("PATH", str(slurm.root))
    (found,) = check_slurm(FINE)
    assert found.text.startswith("sinfo not on PATH")
