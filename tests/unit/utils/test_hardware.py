"""Facts about this machine, and the utilization of GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dfer_dist.utils import hardware
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


def test_extension_of_another_libc_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of two systems that share an environment do not compile it in turns."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    here = hardware.extensions_dir()
    assert here.parent == Path(sys.prefix).resolve() / "torch_extensions"
    monkeypatch.setattr(hardware.os, "confstr", lambda _: "glibc 2.99")
    assert hardware.extensions_dir() == here.with_name("glibc-2.99")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
    assert hardware.extensions_dir() == Path("/elsewhere")


def test_extension_of_an_environment_of_two_names_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A symbolic link, or a folder above that has another name under automount."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    (tmp_path / "home" / "env").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("home/env")
    (tmp_path / "net").symlink_to("home")
    found = set()
    for name in ("home/env", "alias", "net/env", "net/../alias"):
        monkeypatch.setattr(sys, "prefix", str(tmp_path / name))
        found.add(hardware.extensions_dir())
    assert len(found) == 1
