"""What machines need of each other: locks, names, interfaces and an all-reduce."""

from __future__ import annotations

import errno
import fcntl
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dfer_dist.utils.locks import file_lock
from launch.doctor import network
from launch.doctor.checks import OK, WRONG, Result
from launch.doctor.network import Meeting

INTERFACES = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "eth10": "10.0.1.5", "ib0": "10.0.2.5"}
NCCL_OUTPUT = """\
n1:7:7 [0] NCCL INFO NET/IB : No device found.
n1:7:7 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.5<0>
n1:7:7 [0] NCCL INFO NET/Socket: Using 2 threads and 8 sockets per thread
seconds 0.005 2.5e-05
"""


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make this process a rank on a node with :data:`INTERFACES`."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    addresses = {name: [SimpleNamespace(address=address)] for name, address in INTERFACES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "10.0.0.5")
    return monkeypatch


def test_lock_must_be_seen_on_the_other_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_lock(tmp_path / "lock"):
        assert network.check_shared_folder(tmp_path / "lock").state == OK
    check = network.check_shared_folder(tmp_path / "lock")
    assert check.state == WRONG and "not seen" in check.text

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    check = network.check_shared_folder(tmp_path / "lock")
    assert check.state == WRONG and "has no flock (No locks available)" in check.text


def check_locks_of_both(folder: Path) -> list[Result]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(network.check_locks, [Meeting(folder, rank, 2) for rank in (0, 1)]))


def test_each_node_sees_the_lock_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {result.state for result in check_locks_of_both(tmp_path)} == {OK}
    # local locks, as of NFS with local_lock=all
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert {result.state for result in check_locks_of_both(tmp_path)} == {WRONG}


def test_node_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_MEETING_SECONDS", 1)
    *_, check = network.check_network(Meeting(tmp_path, 0, 2))
    assert check.subject == "network" and check.state == WRONG
    assert check.text == "not checked: the other node is not ready within 1 s"


@pytest.mark.parametrize(
    ("backend", "named", "selected"),
    [
        ("gloo", "eth0", "eth0"),
        ("gloo", "eth0,ib0", "eth0, ib0"),
        ("gloo", "eth", None),
        ("gloo", "eth0,eth7", None),
        ("nccl", "eth", "eth0, eth10"),
        ("nccl", "eth1,ib", "eth10, ib0"),
        ("nccl", "=eth1", None),
        ("nccl", "=eth0", "eth0"),
        ("nccl", "^lo,eth", "ib0"),
        ("nccl", "^=eth1", "lo, eth0, eth10, ib0"),
        ("nccl", "eth7", None),
    ],
)
def test_interface_that_a_variable_names_must_be_there(
    rank: pytest.MonkeyPatch, backend: str, named: str, selected: str | None
) -> None:
    variable = f"{backend.upper()}_SOCKET_IFNAME"
    rank.setenv(variable, named)
    result = network.check_interface(backend)
    if selected:
        assert result == (OK, f"{selected} ({variable})")
        return
    assert result.state == WRONG
    assert result.text.startswith(f"{variable}={named} names no interface of this node: set ")
    assert result.text.endswith(f"cluster.environment.{variable} to one of lo, eth0, eth10, ib0")


@pytest.mark.parametrize(
    ("address", "interface"), [("10.0.2.5", "ib0"), ("127.0.1.1", "lo"), ("10.9.9.9", "lo")]
)
def test_gloo_takes_the_address_of_the_node_name(
    rank: pytest.MonkeyPatch, address: str, interface: str
) -> None:
    rank.setattr(socket, "gethostbyname", lambda _: address)
    text = f"{interface}, by the address of this node's name, {address}"
    assert network.check_interface("gloo") == (OK, text)
    assert network.check_interface("nccl") == (OK, "chosen by NCCL")


def test_node_of_rank_0_must_have_an_address(rank: pytest.MonkeyPatch) -> None:
    rank.setenv("MASTER_ADDR", "nowhere.invalid")
    result = network.check_interface("gloo")
    assert result.state == WRONG and "MASTER_ADDR=nowhere.invalid does not resolve" in result.text


def test_bandwidth_is_that_of_nccl_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB in 5 ms between two ranks: 2 (2 - 1) / 2 * 67108864 / 0.005 = 13.4e9 bytes/s."""
    done = subprocess.CompletedProcess([], 0, NCCL_OUTPUT.encode(), b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert network.check_all_reduce("nccl") == (
        OK,
        "nccl, 13.4 GB/s bus bandwidth (64 MiB), latency 25 µs (8 bytes); "
        "NET/Socket : Using [0]eth0:10.0.0.5<0>",
    )


def test_rank_that_hangs_or_crashes_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(subprocess, "run", hang)
    result = network.check_all_reduce("nccl")
    assert result.state == WRONG and "do not find each other (no answer): open" in result.text
    crashed = subprocess.CompletedProcess([], -6, b"", b"terminate called")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: crashed)
    assert network.check_all_reduce("nccl") == result
