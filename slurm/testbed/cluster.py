"""A Slurm of several nodes on one machine, in one folder.

``python slurm/testbed/cluster.py up``, ``down`` or ``crash NODE``. It runs munge, MariaDB and
slurmdbd (unless accounting is left out), slurmctld, and a slurmd for each node, which has a host
name of its own if the machine allows namespaces. It changes nothing of the system, needs no root,
and leaves alone what runs already. Tested with Debian 12's Slurm 22.05.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

CONF = Path(__file__).parent / "conf"
# Debian keeps daemons out of a user's PATH
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
ACCOUNTING_DAEMONS = ("slurmdbd", "mariadbd", "mariadb-install-db")
_SOCKET_SUFFIX = 60  # bytes of a socket's path (107) that the parts below the folder need


class TestbedError(Exception):
    """One line: what is wrong and what to do."""


# a host name and mounts of its own; without root inside a user namespace
_APART = ["unshare", "--mount", "--uts"]
if os.geteuid() != 0:
    _APART += ["--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}", "--keep-caps"]


@cache
def namespaces() -> bool:
    """Return whether this machine allows namespaces: some distributions and containers do not."""
    done = subprocess.run(
        [*_APART, "sh", "-c", "hostname n0 && mount --bind /etc/hosts /etc/hosts"],
        capture_output=True,
    )
    return done.returncode == 0


@dataclass(frozen=True)
class Cluster:
    """The cluster in folder ``root``; it listens on ``port`` to ``port`` + 499 of this machine."""

    root: Path
    port: int = 27000
    nodes: int = 4
    gpus: int = 8  # on each node; links to /dev/null
    accounting: bool = True
    kill_wait: int = 15  # seconds from SIGTERM to SIGKILL

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's clients use this cluster and jobs find each other."""
        return {**os.environ, "PATH": SEARCH, **self._variables}

    @property
    def _variables(self) -> dict[str, str]:
        return {
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }

    def ask(self, *command: str) -> str:
        """Return what a client such as ``squeue`` prints; raise CalledProcessError if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def up(self) -> None:
        """Start what does not run, and wait for all nodes.

        Raises
        ------
        TestbedError
            If something is not installed, another cluster runs in the folder, or a daemon does
            not start.
        """
        needed = DAEMONS + self.accounting * ACCOUNTING_DAEMONS
        missing = [name for name in needed if not shutil.which(name, path=SEARCH)]
        if missing:
            raise TestbedError(f"{', '.join(missing)}: not installed; make slurm-install")
        if len(str(self.root)) > 107 - _SOCKET_SUFFIX:
            raise TestbedError(
                f"{self.root}: too long for the sockets in it; choose a folder such as /tmp/slurm"
            )
        for name in ("run", "log", "state", "dev", "spool", "munge"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._munge()
        self._write_conf()
        if self.accounting:
            self._accounting()
        conf = str(self.root / "slurm.conf")
        # from 24.11 on slurmctld looks up the nodes' names too
        self._start_isolated("slurmctld", os.uname().nodename, ["slurmctld", "-i", "-f", conf])
        for node in self.names:
            (self.root / "spool" / node).mkdir(exist_ok=True)
            self._start_isolated(f"slurmd-{node}", node, ["slurmd", "-N", node, "-f", conf])
        self._wait("nodes", lambda: self._num_ready_nodes() == self.nodes)

    def _num_ready_nodes(self) -> int:
        states = self.ask("sinfo", "-hNp", "low", "-o", "%T").split()
        return sum(state in ("idle", "mixed", "allocated") for state in states)

    def down(self, purge: bool = False) -> None:
        """Cancel all jobs and stop the daemons; ``purge`` kills them and removes the folder."""
        if self._pid("slurmctld") and not purge:
            with suppress(subprocess.SubprocessError):
                self.ask("scancel", "--user", self._user)
                self._wait("jobs to end", lambda: not self.ask("squeue", "-h"), 15)
        pids = map(self._pid, ("slurmctld", *self._slurmds()))
        self._stop([pid for pid in pids if pid], purge)
        # of jobs that do not end
        self._stop(self._in_nodes(), True)
        for name in ("slurmdbd", "mariadbd", "munged"):
            pid = self._pid(name)
            self._stop([pid] if pid else [], purge)
        if purge:
            shutil.rmtree(self.root, ignore_errors=True)

    def crash(self, node: str) -> None:
        """Kill all that runs on a node, slurmd included. ``up`` starts it again."""
        pid = self._pid(f"slurmd-{node}")
        if not pid:
            raise TestbedError(f"{node} does not run")
        if not namespaces():
            raise TestbedError(
                "without namespaces (unshare) the processes of one node cannot be "
                "distinguished from others"
            )
        name = os.readlink(f"/proc/{pid}/ns/uts")
        self._stop([p for p in self._in_nodes() if os.readlink(f"/proc/{p}/ns/uts") == name], True)

    def kill(self, daemon: str) -> None:
        """Kill one daemon, such as ``slurmctld``. ``up`` starts it again."""
        pid = self._pid(daemon)
        self._stop([pid] if pid else [], True)

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [f"n{i}" for i in range(1, self.nodes + 1)]

    @property
    def _user(self) -> str:
        return pwd.getpwuid(os.geteuid()).pw_name

    def _munge(self) -> None:
        folder = self.root / "munge"
        key = folder / "key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(os.urandom(128))
        self._start(
            "munged",
            "munged",
            "--force",
            f"--socket={folder}/socket",
            f"--key-file={key}",
            f"--seed-file={folder}/seed",
            f"--pid-file={self.root}/run/munged.pid",
            f"--log-file={self.root}/log/munged.log",
        )

    def _write_conf(self) -> None:
        """Write the configuration, which must not change under running daemons."""
        values = {
            "root": self.root,
            "user": self._user,
            "port": self.port,
            "dbd_port": self.port + 1,
            "node_port": self.port + 10,
            "node_ports": f"{self.port + 11}-{self.port + 10 + self.nodes}",
            "srun_ports": f"{self.port + 100}-{self.port + 499}",
            "nodes": f"n[1-{self.nodes}]",
            "gpus": self.gpus,
            "kill_wait": self.kill_wait,
            "last_gpu": self.gpus - 1,
            "first_job": int((self.root / "munge" / "key").stat().st_mtime) % 1_000_000,
        }
        text = {file.name: Template(file.read_text()).substitute(values) for file in CONF.iterdir()}
        text["slurm.conf"] += text.pop("accounting.conf") * self.accounting
        if not namespaces():
            # nodes without host names of their own: ranks cannot find the first one by its name
            prolog = self.root / "prolog.sh"
            prolog.write_text("#!/bin/sh\necho export MASTER_ADDR=127.0.0.1\n")
            prolog.chmod(0o755)
            text["slurm.conf"] += f"TaskProlog={prolog}\n"
        present = self.root / "slurm.conf"
        if self._pid("slurmctld") and present.read_text() != text["slurm.conf"]:
            raise TestbedError(f"another cluster runs in {self.root}: make slurm-down first")
        for name, content in text.items():
            # slurmdbd refuses a file that others can read
            (self.root / name).touch(0o600)
            (self.root / name).write_text(content)
        # with device files jobs get CUDA_VISIBLE_DEVICES
        for i in range(self.gpus):
            link = self.root / "dev" / f"nvidia{i}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")
        hosts = "".join(f"127.0.0.1 {node}\n" for node in self.names)
        if not (self.root / "hosts").exists():  # nodes have it mounted
            (self.root / "hosts").write_text(Path("/etc/hosts").read_text() + hosts)
        (self.root / "env.sh").write_text(
            "".join(f"export {key}={value}\n" for key, value in self._variables.items())
        )

    def _accounting(self) -> None:
        """Start MariaDB on a socket, and slurmdbd, and register this cluster with it."""
        data, socket = self.root / "mysql", self.root / "run" / "mysql.sock"
        client = ("-uroot", f"--socket={socket}")
        if not (data / "mysql").is_dir():
            self._run(
                "mariadb-install-db",
                [
                    "mariadb-install-db",
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--user={self._user}",
                    "--skip-test-db",
                    "--auth-root-authentication-method=normal",
                ],
            )
        self._start(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            f"--user={self._user}",
            f"--datadir={data}",
            f"--socket={socket}",
            f"--pid-file={self.root}/run/mariadbd.pid",
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            # slurmdbd warns of less
            "--innodb-lock-wait-timeout=900",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",
            "--performance-schema=OFF",
        )
        self._wait("MariaDB", lambda: self.ask("mariadb-admin", "--no-defaults", *client, "ping"))
        sql = "CREATE DATABASE IF NOT EXISTS slurm_acct; "
        sql += "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm'; "
        sql += "GRANT ALL ON slurm_acct.* TO slurm@localhost"
        self.ask("mariadb", "--no-defaults", *client, "-e", sql)
        # slurmdbd takes a socket from this variable only
        self._start("slurmdbd", "slurmdbd", MYSQL_UNIX_PORT=str(socket))
        self._wait("slurmdbd", lambda: [self.ask("sacctmgr", "-n", "show", "cluster")])
        known = self.ask("sacctmgr", "-nP", "show", "cluster", "format=cluster").split()
        if "testbed" not in known:
            self.ask("sacctmgr", "-i", "add", "cluster", "testbed")

    def _start_isolated(self, name: str, host: str, command: list[str]) -> None:
        """Start a daemon with a host name and an ``/etc/hosts`` of its own, if possible."""
        if not namespaces():
            self._start(name, *command)
            return
        plain = [] if os.geteuid() == 0 else ["setpriv", "--ambient-caps=-all", "--inh-caps=-all"]
        script = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        isolated = [*_APART, "sh", "-c", script, "sh", host, str(self.root / "hosts")]
        self._start(name, *isolated, *plain, *command)

    def _start(self, name: str, *command: str, **env: str) -> None:
        """Start a daemon that does not run, and wait for its pid file."""
        if self._pid(name):
            return
        (self.root / "run" / f"{name}.pid").unlink(missing_ok=True)
        if name != "mariadbd":
            self._run(name, command, env)
        else:  # the one that stays in the foreground
            with (self.root / "log" / "mariadbd.log").open("ab") as log:
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self._wait(name, lambda: self._pid(name))

    def _run(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        file = self.root / "log" / f"{name}.start"
        with file.open("wb") as log:
            done = subprocess.run(
                command,
                env=self.environment | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if done.returncode:
            reason = file.read_text().strip() or "it printed nothing"
            raise TestbedError(f"{name} did not start: {reason}")

    def _slurmds(self) -> list[str]:
        return [f.stem for f in (self.root / "run").glob("slurmd-*.pid")]

    def _pid(self, name: str) -> int | None:
        """Return the process id of a daemon, if it runs and is this cluster's."""
        try:
            pid = int((self.root / "run" / f"{name}.pid").read_text())
            process = Path(f"/proc/{pid}")
            is_daemon = (process / "comm").read_text().strip() == name.partition("-")[0]
            origin = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except (OSError, ValueError):
            return None
        is_own = str(self.root).encode() + b"/" in origin
        return pid if _runs(pid) and is_daemon and is_own else None

    def _in_nodes(self) -> list[int]:
        """Return all processes on nodes: their ``/etc/hosts`` is this cluster's."""
        found = []
        with suppress(OSError):
            mine = (self.root / "hosts").stat()
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if os.path.samestat((folder / "root/etc/hosts").stat(), mine):
                        found.append(int(folder.name))
        return found

    def _stop(self, pids: list[int], hard: bool = False) -> None:
        deadline = time.monotonic() + 15
        for number in (signal.SIGKILL,) if hard else (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(_runs, pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            while any(map(_runs, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)

    def _wait(self, what: str, ready: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with suppress(subprocess.SubprocessError):
                if ready():
                    return
            if time.monotonic() > deadline:
                raise TestbedError(f"waited {seconds:.0f} s for {what}: see {self.root}/log")
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    """Start or stop a cluster, or crash a node of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["up", "down", "crash"])
    parser.add_argument("node", nargs="?", help="to crash, such as n2")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(f"/tmp/dfer-slurm-{os.geteuid()}"),
        help="its folder (%(default)s)",
    )
    parser.add_argument("--port", type=int, default=27000, help="the first of 500 (%(default)s)")
    parser.add_argument(
        "--no-accounting", action="store_true", help="no MariaDB and slurmdbd, so no sacct"
    )
    parser.add_argument("--purge", action="store_true", help="down: at once, and remove the folder")
    args = parser.parse_args()
    cluster = Cluster(args.root.resolve(), args.port, accounting=not args.no_accounting)
    begin = time.monotonic()
    try:
        if args.verb == "up":
            cluster.up()
            seconds = time.monotonic() - begin
            print(f"{cluster.nodes} nodes up after {seconds:.1f} s")
            print(f"use them with: source {cluster.root}/env.sh")
        elif args.verb == "down":
            cluster.down(args.purge)
        else:
            cluster.crash(args.node or parser.error("crash which node?"))
    except TestbedError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
