"""What a node checks: locks and signals."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from dfer_dist.utils.hardware import filesystem
from dfer_dist.utils.locks import file_lock
from launch.doctor import probe
from launch.doctor.checks import OK, WRONG
from launch.doctor.machine import on_network


def test_lock_must_be_seen_on_the_other_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_lock(tmp_path / "lock"):
        assert probe.check_shared_folder(tmp_path).state == OK
    check = probe.check_shared_folder(tmp_path)
    assert check.state == WRONG and "not seen" in check.text

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    check = probe.check_shared_folder(tmp_path)
    assert check.state == WRONG and "has no flock (No locks available)" in check.text


def test_missing_signals_are_named() -> None:
    assert probe.check_signals(["SIGTERM", "SIGUSR2"]).state == OK
    check = probe.check_signals(["SIGTERM"])
    assert check.state == WRONG and check.text.startswith("SIGUSR2 sent to the job reached no rank")


def test_file_system_is_known_by_its_mount(tmp_path: Path) -> None:
    assert filesystem(Path("/proc/self")) == "proc"
    assert filesystem(tmp_path) == filesystem(tmp_path / "not" / "there")
    assert on_network("nfs4") and on_network("fuse.sshfs") and not on_network("ext4")
