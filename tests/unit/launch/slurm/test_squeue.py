"""What ``squeue`` says."""

from __future__ import annotations

import pytest

from launch.slurm import squeue
from launch.slurm.squeue import QueuedJob, query_squeue, reason_text


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("Resources", "nodes are busy (Resources)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n3",
            "nodes are down or reserved (ReqNodeNotAvail)",
        ),
        ("QOSMaxJobsPerUserLimit", "a limit of the account or QOS (QOSMaxJobsPerUserLimit)"),
        (
            "job requeued in held state",
            "requeued, held: scontrol release (job requeued in held state)",
        ),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_reason_is_explained_with_slurms_own_term(reason: str, text: str) -> None:
    assert reason_text(reason) == text


def test_only_whole_lines_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "7|PENDING||1:00|0:00|N/A|a|b\n8|PENDING\n"
    monkeypatch.setattr(squeue, "run_client", lambda *_, **__: lines)
    assert query_squeue() == {"7": QueuedJob("7", "PENDING", "", "1:00", "0:00", "N/A", "a|b")}
