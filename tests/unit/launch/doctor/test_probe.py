"""What a node checks: signals and file systems."""

from __future__ import annotations

from pathlib import Path

from dfer_dist.utils.hardware import filesystem
from launch.doctor import probe
from launch.doctor.checks import OK, WRONG
from launch.doctor.machine import on_network


def test_missing_signals_are_named() -> None:
    assert probe.check_signals(["SIGTERM", "SIGUSR2"]).state == OK
    check = probe.check_signals(["SIGTERM"])
    assert check.state == WRONG and check.text.startswith("SIGUSR2 sent to the job reached no rank")


def test_file_system_is_known_by_its_mount(tmp_path: Path) -> None:
    assert filesystem(Path("/proc/self")) == "proc"
    assert filesystem(tmp_path) == filesystem(tmp_path / "not" / "there")
    assert on_network("nfs4") and on_network("fuse.sshfs") and not on_network("ext4")
