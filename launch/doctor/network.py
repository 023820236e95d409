"""Check what machines need of each other: a folder with locks that all see, and an all-reduce.

``python -m launch.doctor.network BACKEND`` joins the all-reduce and prints how long it takes. It is
a process of its own, because a library that does not reach the other rank may hang or abort.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import psutil

from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.hardware import filesystem
from dfer_dist.utils.locks import file_lock, is_locked
from launch.doctor.checks import WRONG, Check, Result, ok, wrong

_MEETING_SECONDS = 60
_JOIN_SECONDS = 15  # torch may take twice that
_PROCESS_SECONDS = 45  # of an all-reduce
_LARGE, _SMALL = 64 << 20, 8  # bytes
_REPETITIONS = 10


class Meeting(NamedTuple):
    """The probes of a job, one on each node, which wait for each other in the shared folder."""

    folder: Path
    rank: int
    size: int

    def exchange(self, name: str, value: str = "") -> list[str]:
        """Return the values of all probes, in the order of their ranks.

        Raises
        ------
        TimeoutError
            If one does not come within a minute.
        """
        files = [self.folder / f"{name}-{rank}.json" for rank in range(self.size)]
        write_json(files[self.rank], {"value": value})
        for _ in range(10 * _MEETING_SECONDS):
            if all(file.exists() for file in files):
                return [read_json(file)["value"] for file in files]
            time.sleep(0.1)
            # makes a network file system read the folder again
            os.listdir(self.folder)
        raise TimeoutError(f"the other node is not ready within {_MEETING_SECONDS} s")


def check_network(meeting: Meeting) -> Iterator[Check]:
    """Check this node together with the other one, which does the same."""
    try:
        import torch

        backend = "nccl" if torch.cuda.is_available() else "gloo"
        yield Check("locks between nodes", *check_locks(meeting))
        interface = check_interface(backend)
        yield Check("interface", *interface)
        if WRONG in meeting.exchange("interface", interface.state):
            return
        result = check_all_reduce(backend)
        # both measure the same
        if meeting.rank == 0 or result.state == WRONG:
            yield Check("all-reduce", *result)
    except (OSError, ImportError) as e:
        yield Check("network", WRONG, f"not checked: {e}")


def check_locks(meeting: Meeting) -> Result:
    """Check that a lock of the other node is seen here."""
    with file_lock(meeting.folder / f"lock-{meeting.rank}"):
        meeting.exchange("locked")
        result = check_shared_folder(meeting.folder / f"lock-{1 - meeting.rank}")
        meeting.exchange("looked")
    return result


def check_shared_folder(lock: Path) -> Result:
    """Check that a lock of another machine is seen here; its files are, as this runs."""
    kind = filesystem(lock.parent)
    seen = "files that one machine writes and renames are seen on the other"
    try:
        if is_locked(lock):
            return ok(f"{seen}, and locks hold ({kind})")
        fault = f"a lock of one machine is not seen on another ({kind})"
    except OSError as e:
        fault = f"{kind} has no flock ({e.strerror})"
    return wrong(f"{seen}, but {fault}: two jobs could train the same fold; mount it with flock")


def check_interface(backend: str) -> Result:
    """Check whether the name of rank 0's node is known, and return which interface ranks use."""
    from dfer_dist.distributed.process_group import export_rank_variables

    export_rank_variables()
    master, variable = os.environ["MASTER_ADDR"], f"{backend.upper()}_SOCKET_IFNAME"
    try:
        socket.getaddrinfo(master, None)
    except OSError as e:
        fault = f"MASTER_ADDR={master} does not resolve ({e.strerror})"
        return wrong(f"{fault}: correct DNS or /etc/hosts, or cluster.environment if it sets it")
    named, present = os.environ.get(variable), psutil.net_if_addrs()
    if named and not (selected := _select(named, list(present), backend)):
        fault = f"{variable}={named} names no interface of this node"
        return wrong(f"{fault}: set cluster.environment.{variable} to one of {', '.join(present)}")
    if named:
        return ok(f"{', '.join(selected)} ({variable})")
    if backend == "nccl":
        return ok("chosen by NCCL")
    # gloo takes the address of the node's name, or loopback if no interface has it
    address = socket.gethostbyname(socket.gethostname())
    found = (name for name, all in present.items() for a in all if a.address == address)
    return ok(f"{next(found, 'lo')}, by the address of this node's name, {address}")


def _select(named: str, present: list[str], backend: str) -> list[str]:
    """Return the interfaces that a variable names: a list for gloo, a pattern for NCCL."""
    names = named.lstrip("^=").split(",")
    if backend == "gloo":
        return names if set(names) <= set(present) else []
    end = "$" * ("=" in named[:2])
    pattern = re.compile(f"({'|'.join(map(re.escape, names))}){end}")
    return [name for name in present if bool(pattern.match(name)) != named.startswith("^")]


def check_all_reduce(backend: str) -> Result:
    """Measure an all-reduce with the other rank, or return why there is none."""
    command = [*python_command(), "-m", "launch.doctor.network", backend]
    # NCCL says which interface it chooses
    env, output = os.environ | {"NCCL_DEBUG": "INFO"}, ""
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, env=env, capture_output=True, timeout=_PROCESS_SECONDS)
        output = done.stdout.decode(errors="replace")
    if measured := re.search("^seconds (.+) (.+)$", output, re.MULTILINE):
        # as nccl-tests count it: 2 (n - 1) / n * bytes / seconds, for two ranks
        bandwidth, latency = _LARGE / float(measured[1]) / 1e9, 1e6 * float(measured[2])
        interfaces = re.findall(r"NET/\w+ *: Using *\[.*", output)
        text = f"{bandwidth:.3g} GB/s bus bandwidth ({_LARGE >> 20} MiB), latency {latency:.0f} µs"
        return ok("; ".join([f"{backend}, {text} ({_SMALL} bytes)", *interfaces[:1]]))
    why = re.findall("^failed (.+)$", output, re.MULTILINE) or ["no answer"]
    return wrong(
        f"{backend}: the ranks do not find each other ({why[0]}): open all TCP ports between the "
        f"nodes, or name an interface by which they reach each other in cluster.environment."
        f"{backend.upper()}_SOCKET_IFNAME"
    )


def main() -> None:
    """Join the all-reduce as a rank, and print the seconds of a large and of a small one."""
    import torch
    import torch.distributed as dist

    seconds, device = [], {"nccl": "cuda", "gloo": "cpu"}[sys.argv[1]]
    try:
        dist.init_process_group(sys.argv[1], timeout=timedelta(seconds=_JOIN_SECONDS))
        for num_bytes in (_LARGE, _SMALL):
            values = torch.zeros(num_bytes // 4, device=device)
            # the first call connects the ranks
            for count in (1, _REPETITIONS):
                begin = time.perf_counter()
                for _ in range(count):
                    dist.all_reduce(values)
                # waits for a GPU
                values[0].item()
            seconds.append((time.perf_counter() - begin) / _REPETITIONS)
        print("seconds", *seconds, flush=True)
    except Exception as e:
        print("failed", *str(e).split(), flush=True)
    # torch would wait for the other rank
    os._exit(0)


if __name__ == "__main__":
    main()
