"""Unit tests start no process and bind no socket."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import pytest

FORBIDDEN = frozenset(
    {
        "subprocess.Popen",
        "os.system",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "socket.bind",
        "multiprocessing.Process.start",
    }
)


class _Guard:
    """Raise on forbidden audit events while a test runs; an audit hook cannot be removed."""

    def __init__(self) -> None:
        self.active = False
        self.events: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        # importing torch runs ldconfig to find libraries
        if self.active and event in FORBIDDEN and "ldconfig" not in str(arguments[0]):
            self.events.append(f"{event}{arguments!r:.200}")
            raise RuntimeError(f"a unit test may not call {event}: move it to tests/integration")

    def refuse_start(self) -> None:
        """Stand for ``Process.start``: a process that is spawned raises no audit event."""
        self("multiprocessing.Process.start", ("spawn or fork",))


_guard = _Guard()
sys.addaudithook(_guard)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Guard a unit test with its fixtures of all scopes."""
    # This hook is called for the tests of other folders, too.
    _guard.active = item.path.is_relative_to(Path(__file__).parent)
    if not _guard.active:
        return (yield)
    with mock.patch.object(BaseProcess, "start", _guard.refuse_start):
        result = yield
    _guard.active = False
    return result


@pytest.fixture(autouse=True)
def no_processes_or_sockets() -> Iterator[None]:
    """Fail a test that starts a process or binds a socket, even where the error was caught."""
    _guard.events.clear()
    yield
    assert not _guard.events, f"a unit test started a process or bound a socket: {_guard.events}"
