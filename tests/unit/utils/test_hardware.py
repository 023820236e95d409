"""Facts about this machine, and the utilization of GPUs."""

from __future__ import annotations

import os
from pathlib import Path

from dfer_dist.utils.hardware import (
    cpu_flags,
    cpu_model,
    filesystem,
    has_open,
    loopback_bytes_sent,
    peak_resident_bytes,
    resident_bytes,
)


def test_peak_memory_follows_a_large_allocation() -> None:
    before = resident_bytes()
    block = bytearray(os.urandom(1 << 20) * 64)
    assert resident_bytes() - before > 48 << 20
    assert peak_resident_bytes() >= before + len(block) // 2
    assert peak_resident_bytes() == peak_resident_bytes(os.getpid())


def test_processor_is_named_as_linux_names_it() -> None:
    text = Path("/proc/cpuinfo").read_text()
    assert cpu_model() is None or cpu_model() in text
    assert cpu_flags() <= set(text.split())


def test_open_file_is_found_by_process(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("w"):
        assert has_open(os.getpid(), path)
    assert not has_open(os.getpid(), path)


def test_loopback_counter_never_falls() -> None:
    assert loopback_bytes_sent() <= loopback_bytes_sent()


def test_filesystem_of_a_missing_path_is_that_of_its_parent(tmp_path: Path) -> None:
    assert filesystem(tmp_path / "a" / "b") == filesystem(tmp_path)
    assert filesystem(Path("/proc/self")) == "proc"
