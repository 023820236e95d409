"""The all-reduce by which ``dfer doctor`` checks the network, between two real processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

from tests.helpers.paths import ROOT

CODE = """
import json
from launch.doctor.network import check_all_reduce
print(json.dumps(check_all_reduce("gloo")))
"""


def start(rank: int, port: int) -> subprocess.Popen[str]:
    variables = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CODE],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> list[str]:
    state, text = json.loads(process.communicate(timeout=120)[0])
    return [state, text]


def test_two_ranks_measure_the_network() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for state, text in map(result, [start(rank, port) for rank in (0, 1)]):
        measured = re.fullmatch(
            r"gloo, (.+) GB/s bus bandwidth \(64 MiB\), latency (\d+) µs \(8 bytes\)", text
        )
        assert state == "ok" and measured, text
        # between processes of one machine
        assert 0.01 < float(measured[1]) < 100 and 5 < int(measured[2]) < 1e5


def test_rank_that_cannot_listen_says_why() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        state, text = result(start(0, s.getsockname()[1]))
    assert state == "wrong" and "address already in use" in text
    assert "open all TCP ports between the nodes" in text
