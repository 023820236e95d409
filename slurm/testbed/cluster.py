"""A Slurm of several nodes on one machine, in one folder: ``python slurm/testbed/cluster.py up``, ``down``, ``crash NODE``.

munge, MariaDB and slurmdbd (unless accounting is left out), slurmctld, and a slurmd for each node with a host name of its own, where
the machine lets a person have namespaces. Nothing of the system is touched, root is not needed, and what is up already is left as it
is. Seen to work with Debian 12's Slurm 22.05.
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

CONF = Path(__file__).parent / "conf"
SEARCH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
)  # Debian keeps daemons out of a person's PATH
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
ACCOUNTING_DAEMONS = ("slurmdbd", "mariadbd", "mariadb-install-db")
_SOCKET_ROOM = 60  # bytes of a socket's path (107) that the parts below the folder need


class TestbedError(Exception):
    """One line: what is wrong and what to do."""


# a host name and mounts of its own; without root inside a user namespace
_APART = ["unshare", "--mount", "--uts"]
if os.geteuid() != 0:
    _APART += ["--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}", "--keep-caps"]


@cache
def namespaces() -> bool:
    """Whether this machine lets us have namespaces: some distributions and containers do not."""
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

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which ``sbatch``, ``squeue`` and the rest talk to this cluster, and in which jobs find each other."""
        return {**os.environ, "PATH": SEARCH, **self._variables}

    @property
    def _variables(self) -> dict[str, str]:
        found = {
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        return (
            found if namespaces() else found | {"MASTER_ADDR": "127.0.0.1"}
        )  # else by the nodes' own names

    def ask(self, *words: str) -> str:
        """What a client such as ``squeue`` prints; its error as a CalledProcessError."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def up(self) -> None:
        """Start what does not run, and wait until all nodes are there.

        Raises
        ------
        TestbedError
            If something is not installed, another cluster runs in the folder, or a daemon does not come up.
        """
        missing = [
            d
            for d in DAEMONS + self.accounting * ACCOUNTING_DAEMONS
            if not shutil.which(d, path=SEARCH)
        ]
        if missing:
            raise TestbedError(f"{', '.join(missing)}: not installed; make slurm-install")
        if len(str(self.root)) > 107 - _SOCKET_ROOM:
            raise TestbedError(
                f"{self.root}: too long for the sockets below it; choose a folder such as /tmp/slurm"
            )
        for name in ("run", "log", "state", "dev", "spool", "munge"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._munge()
        self._write_conf()
        if self.accounting:
            self._accounting()
        self._start("slurmctld", "slurmctld", "-i", "-f", str(self.root / "slurm.conf"))
        for node in self.names:
            self._start_node(node)
        states = ("idle", "mixed", "allocated")
        self._wait(
            "nodes",
            lambda: (
                sum(s in states for s in self.ask("sinfo", "-hNp", "low", "-o", "%T").split())
                == self.nodes
            ),
        )

    def down(self, purge: bool = False) -> None:
        """Cancel all jobs and stop the daemons; ``purge`` does not wait for any of them and removes the folder."""
        if self._pid("slurmctld") and not purge:
            with suppress(subprocess.SubprocessError):
                self.ask("scancel", "--user", self._user)
                self._wait("jobs to end", lambda: not self.ask("squeue", "-h"), 15)
        self._stop(
            [pid for name in ("slurmctld", *self._slurmds()) if (pid := self._pid(name))], purge
        )
        self._stop(self._in_nodes(), True)  # of jobs that would not end
        for name in ("slurmdbd", "mariadbd", "munged"):
            pid = self._pid(name)
            self._stop([pid] if pid else [], purge)
        if purge:
            shutil.rmtree(self.root, ignore_errors=True)

    def crash(self, node: str) -> None:
        """End a node as if its power had gone: SIGKILL to all that runs on it, slurmd included. ``up`` brings it back."""
        pid = self._pid(f"slurmd-{node}")
        if not pid:
            raise TestbedError(f"{node} does not run")
        if not namespaces():
            raise TestbedError(
                "without namespaces (unshare) what runs on one node cannot be told from what runs on another"
            )
        name = os.readlink(f"/proc/{pid}/ns/uts")
        self._stop([p for p in self._in_nodes() if os.readlink(f"/proc/{p}/ns/uts") == name], True)

    def kill(self, daemon: str) -> None:
        """SIGKILL one daemon, such as ``slurmctld``. ``up`` brings it back."""
        pid = self._pid(daemon)
        self._stop([pid] if pid else [], True)

    @property
    def names(self) -> list[str]:
        return [f"n{i}" for i in range(1, self.nodes + 1)]

    @property
    def _user(self) -> str:
        return pwd.getpwuid(os.geteuid()).pw_name

    def _munge(self) -> None:
        key, socket = self.root / "munge" / "key", self.root / "munge" / "socket"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(os.urandom(128))
        files = {"key": key, "socket": socket, "seed": self.root / "munge" / "seed"}
        files |= {"pid": self.root / "run" / "munged.pid", "log": self.root / "log" / "munged.log"}
        self._start(
            "munged",
            "munged",
            "--force",
            f"--socket={socket}",
            *(f"--{k}-file={f}" for k, f in files.items() if k != "socket"),
        )

    def _write_conf(self) -> None:
        """Write the configuration, which must not change under running daemons."""
        last = self.port + 10 + self.nodes
        words = {
            "root": self.root,
            "user": self._user,
            "port": self.port,
            "dbd_port": self.port + 1,
            "node_port": self.port + 10,
        }
        words |= {
            "node_ports": f"{self.port + 11}-{last}",
            "srun_ports": f"{self.port + 100}-{self.port + 499}",
        }
        words |= {"nodes": f"n[1-{self.nodes}]", "gpus": self.gpus, "last_gpu": self.gpus - 1}
        words["first_job"] = int((self.root / "munge" / "key").stat().st_mtime) % 1_000_000
        text = {
            name: Template((CONF / name).read_text()).substitute(words) for name in os.listdir(CONF)
        }
        text["slurm.conf"] += text.pop("accounting.conf") * self.accounting
        there = self.root / "slurm.conf"
        if self._pid("slurmctld") and there.read_text() != text["slurm.conf"]:
            raise TestbedError(f"another cluster runs in {self.root}: make slurm-down first")
        for name, content in text.items():
            (self.root / name).touch(0o600)  # slurmdbd insists
            (self.root / name).write_text(content)
        for i in range(
            self.gpus
        ):  # slurmd wants device files, and jobs then find CUDA_VISIBLE_DEVICES
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
        """MariaDB on a socket, and slurmdbd with this cluster known to it."""
        data, socket = self.root / "mysql", self.root / "run" / "mysql.sock"
        client = ("-uroot", f"--socket={socket}")
        if not (data / "mysql").is_dir():
            words = [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                f"--user={self._user}",
                "--skip-test-db",
            ]
            self._run("mariadb-install-db", [*words, "--auth-root-authentication-method=normal"])
        words = [
            f"--user={self._user}",
            f"--datadir={data}",
            f"--socket={socket}",
            f"--pid-file={self.root}/run/mariadbd.pid",
        ]
        words += [
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
        ]  # slurmdbd warns of less
        words += [
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",
            "--performance-schema=OFF",
        ]
        self._start("mariadbd", "mariadbd", "--no-defaults", *words)
        self._wait("MariaDB", lambda: self.ask("mariadb-admin", "--no-defaults", *client, "ping"))
        sql = "CREATE DATABASE IF NOT EXISTS slurm_acct; CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm'; "
        self.ask(
            "mariadb",
            "--no-defaults",
            *client,
            "-e",
            sql + "GRANT ALL ON slurm_acct.* TO slurm@localhost",
        )
        self._start(
            "slurmdbd", "slurmdbd", MYSQL_UNIX_PORT=str(socket)
        )  # the only way to tell it of a socket
        self._wait("slurmdbd", lambda: [self.ask("sacctmgr", "-n", "show", "cluster")])
        if (
            "testbed"
            not in self.ask("sacctmgr", "-nP", "show", "cluster", "format=cluster").split()
        ):
            self.ask("sacctmgr", "-i", "add", "cluster", "testbed")

    def _start_node(self, node: str) -> None:
        """slurmd with a host name and an ``/etc/hosts`` of its own, if that can be."""
        (self.root / "spool" / node).mkdir(exist_ok=True)
        slurmd = ["slurmd", "-N", node, "-f", str(self.root / "slurm.conf")]
        if not namespaces():
            self._start(f"slurmd-{node}", *slurmd)
            return
        plain = [] if os.geteuid() == 0 else ["setpriv", "--ambient-caps=-all", "--inh-caps=-all"]
        script = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        self._start(
            f"slurmd-{node}",
            *_APART,
            "sh",
            "-c",
            script,
            "sh",
            node,
            str(self.root / "hosts"),
            *plain,
            *slurmd,
        )

    def _start(self, name: str, *words: str, **more: str) -> None:
        """Start a daemon that does not run, and wait until its pid file is there."""
        if self._pid(name):
            return
        (self.root / "run" / f"{name}.pid").unlink(missing_ok=True)
        if name == "mariadbd":  # the one that stays in the foreground
            with (self.root / "log" / "mariadbd.log").open("ab") as log:
                subprocess.Popen(
                    words,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        else:
            self._run(name, words, more)
        self._wait(name, lambda: self._pid(name))

    def _run(
        self, name: str, words: list[str] | tuple[str, ...], more: dict[str, str] | None = None
    ) -> None:
        file = self.root / "log" / f"{name}.start"
        with file.open("wb") as log:
            done = subprocess.run(
                words,
                env=self.environment | (more or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if done.returncode:
            raise TestbedError(
                f"{name} did not start: {file.read_text().strip() or 'it said nothing'}"
            )

    def _slurmds(self) -> list[str]:
        return [f.stem for f in (self.root / "run").glob("slurmd-*.pid")]

    def _pid(self, name: str) -> int | None:
        """The process of a daemon, if it runs and is this cluster's."""
        try:
            pid = int((self.root / "run" / f"{name}.pid").read_text())
            if (
                not _runs(pid)
                or Path(f"/proc/{pid}/comm").read_text().strip() != name.partition("-")[0]
            ):
                return None
            words = (
                Path(f"/proc/{pid}/cmdline").read_bytes()
                + Path(f"/proc/{pid}/environ").read_bytes()
            )
        except (OSError, ValueError):
            return None
        return pid if str(self.root).encode() + b"/" in words else None

    def _in_nodes(self) -> list[int]:
        """Everything that runs on a node: its ``/etc/hosts`` is this cluster's."""
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
    """Whether a process is there; one that has ended and is not yet collected is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
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
            print(
                f"{cluster.nodes} nodes up after {time.monotonic() - begin:.1f} s; now: source {cluster.root}/env.sh"
            )
        elif args.verb == "down":
            cluster.down(args.purge)
        else:
            cluster.crash(args.node or parser.error("crash which node?"))
    except TestbedError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
