"""What ``squeue`` says."""

from __future__ import annotations

import pytest

from launch.slurm.squeue import QueuedJob, reason_text


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("Resources", "nodes are busy (Resources)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n3",
            "nodes are down or reserved (ReqNodeNotAvail)",
        ),
        ("QOSMaxJobsPerUserLimit", "a limit of the account or QOS (QOSMaxJobsPerUserLimit)"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_reason_is_explained_with_slurms_own_term(reason: str, text: str) -> None:
    assert reason_text(reason) == text


def test_line_is_read_and_half_a_line_is_not() -> None:
    job = QueuedJob.parse("7|PENDING||1:00|N/A|a|b")
    assert job == QueuedJob("7", "PENDING", "", "1:00", "a|b", "N/A")
    assert job is not None and job.waits
    assert QueuedJob.parse("7|PENDING") is None
