"""Host lists of Slurm, with and without its ``scontrol``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dfer_dist.utils.hosts import expand_host_list


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-2]", ["n1", "n2"]),
        ("gpu[08-10,12],login", ["gpu08", "gpu09", "gpu10", "gpu12", "login"]),
        ("rack[1-2]-n[1-2]", ["rack1-n1", "rack1-n2", "rack2-n1", "rack2-n2"]),
        ("", []),
    ],
)
def test_host_list_is_expanded_without_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: str, names: list[str]
) -> None:
    """As in a container that has no client of Slurm, or one that finds no controller."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert expand_host_list(hosts) == names
    (tmp_path / "scontrol").symlink_to(str(shutil.which("false", path="/bin:/usr/bin")))
    assert expand_host_list(hosts) == names


def test_scontrol_expands_a_host_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$1 $2 of $3" | /usr/bin/tr " " "\\n"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert expand_host_list("n[1-2]") == ["show", "hostnames", "of", "n[1-2]"]
