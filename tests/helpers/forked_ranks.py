"""Ranks that are forked from a process that has imported the large libraries once.

This process is a child of the command, forked before the command starts threads.
"""

from __future__ import annotations

import os
import pickle
import runpy
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkProcess
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

_TICK = 0.05  # seconds
_MAX_MESSAGE = 1 << 18  # bytes
# Variable with the seconds that each step of a rank takes longer: a test that interrupts a fold
# needs one that is still in its training when the signal comes.
SLOW_STEPS = "DFER_TESTS_SLOW_STEPS"


@dataclass(frozen=True)
class _Start:
    """Options of :class:`subprocess.Popen`; its files are sent apart."""

    command: Sequence[str]
    environment: Mapping[str, str]


class ForkedRank:
    """The part of :class:`subprocess.Popen` that ``launch.processes`` uses, also in threads."""

    _lock: ClassVar[threading.RLock] = threading.RLock()  # of messages
    _statuses: ClassVar[dict[int, int]] = {}  # of ranks that ended, by process id

    def __init__(
        self,
        server: socket.socket,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: BinaryIO,
        stderr: BinaryIO,
        pass_fds: Sequence[int] = (),
        **_: Any,
    ) -> None:
        assert stdout is stderr
        self._server = server
        message = pickle.dumps(_Start(command, dict(env)))
        with self._lock:
            socket.send_fds(server, [message], [stdout.fileno(), *pass_fds])
            self._pid = 0
            while not self._pid:
                self._receive()

    @property
    def returncode(self) -> int | None:
        return self._statuses.get(self._pid)

    def poll(self) -> int | None:
        with self._lock:
            while self.returncode is None and select.select([self._server], [], [], 0)[0]:
                self._receive()
        return self.returncode

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(_TICK)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _receive(self) -> None:
        """Read one message: the process id of a new rank, or how one ended."""
        pid, status = pickle.loads(self._server.recv(_MAX_MESSAGE))
        if status is None:
            self._pid = pid
        else:
            self._statuses[pid] = status


def fork_ranks() -> None:
    """Fork the ranks that this process starts from now on. It must have no threads yet."""
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        client.close()
        _serve(server)
        os._exit(0)
    server.close()
    from launch import processes

    processes.subprocess = SimpleNamespace(Popen=partial(ForkedRank, client))  # type: ignore


def _serve(server: socket.socket) -> None:
    """Start ranks and say how they end, until the command ends; its death is their SIGTERM."""
    ranks: dict[int, ForkProcess] = {}
    while True:
        if select.select([server], [], [], _TICK)[0]:
            message, fds, *_ = socket.recv_fds(server, _MAX_MESSAGE, 2)
            if not message:
                break
            rank = ForkProcess(target=_run_rank, args=(pickle.loads(message), fds[0]))
            rank.start()
            for fd in fds:
                os.close(fd)
            ranks[rank.pid] = rank
            server.send(pickle.dumps((rank.pid, None)))
        for pid in [pid for pid, rank in ranks.items() if rank.exitcode is not None]:
            server.send(pickle.dumps((pid, ranks.pop(pid).exitcode)))
    for rank in ranks.values():
        rank.terminate()
    for rank in ranks.values():
        rank.join()


def _run_rank(start: _Start, log: int) -> None:
    os.setsid()
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    os.environ.clear()
    os.environ.update(start.environment)
    sys.path[:0] = start.environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = list(start.command[start.command.index("-m") + 1 :])
    if seconds := start.environment.get(SLOW_STEPS):
        _slow_steps(float(seconds))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _slow_steps(seconds: float) -> None:
    from dfer_dist.training import meters
    from tests.helpers.training import hooks

    hooks.slow(meters, seconds)
