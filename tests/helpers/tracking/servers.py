"""A real PostgreSQL and a real ``mlflow server`` on it, checked by reading the tables."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

from launch.processes import free_port

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
ADMIN = "admin"


def unprivileged() -> dict[str, Any]:
    """Return arguments of ``Popen`` for another user than root: PostgreSQL refuses to run as it."""
    if os.getuid():
        return {}
    names = {p.pw_name for p in pwd.getpwall()}
    who = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}


@dataclass
class Postgres:
    """A cluster of its own in ``folder``, which any user must be able to enter."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://dfer@127.0.0.1:{self.port}/mlflow"

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if who := unprivileged():
            os.chown(self.folder, who["user"], who["group"])
        command = [
            BINARIES[-1] / "initdb",
            "-D",
            self.folder / "data",
            "-U",
            "dfer",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **unprivileged())
        self.start()
        command = [
            BINARIES[-1] / "createdb",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "dfer",
            "mlflow",
        ]
        subprocess.run(command, check=True, cwd="/")

    def start(self) -> None:
        if self.process and self.process.poll() is None:
            return
        command = [
            str(BINARIES[-1] / "postgres"),
            "-D",
            str(self.folder / "data"),
            "-p",
            str(self.port),
            "-k",
            str(self.folder),
        ]
        command += [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "max_wal_size=64MB",
            "-c",
            "min_wal_size=32MB",
        ]
        with (self.folder.parent / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", **unprivileged()
            )
        deadline = time.monotonic() + 60
        while True:
            with suppress(psycopg2.OperationalError):
                self._connect("postgres").close()
                return
            assert time.monotonic() < deadline and self.process.poll() is None, (
                "PostgreSQL does not come up"
            )
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            # PostgreSQL's "fast shutdown".
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)

    def _connect(self, database: str) -> Any:
        return psycopg2.connect(host="127.0.0.1", port=self.port, user="dfer", dbname=database)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        connection = self._connect("mlflow")
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def metrics(self, run_id: str) -> Counter[tuple[str, int, int, float]]:
        """Return every row of a run's metrics: name, step, milliseconds, value."""
        return Counter(
            self.rows("select key, step, timestamp, value from metrics where run_uuid = %s", run_id)
        )

    def everything(self) -> dict[str, str]:
        """Return a hash of each table."""
        names = [
            n for (n,) in self.rows("select tablename from pg_tables where schemaname = 'public'")
        ]
        return {
            n: hashlib.sha256(
                repr(sorted(map(repr, self.rows(f'select * from "{n}"')))).encode()
            ).hexdigest()
            for n in names
        }


@dataclass
class Mlflow:
    """``mlflow server`` on a PostgreSQL, artifacts through it into a folder."""

    postgres: Postgres
    artifacts: Path
    # Of the user "admin"; turns basic auth on.
    password: str | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            self.postgres.uri,
            "--workers",
            "1",
        ]
        command += [
            "--artifacts-destination",
            str(self.artifacts),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        folder = self.artifacts.parent
        if self.password:
            command += ["--app-name", "basic-auth"]
            settings = folder / "auth.ini"
            settings.write_text(
                "[mlflow]\ndefault_permission = READ\n"
                f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = {ADMIN}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            env |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(settings),
                "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            }
            env |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of this test"}
        with (folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            assert time.monotonic() < deadline and self.process.poll() is None, (
                folder / "mlflow.log"
            ).read_text()[-2000:]
            time.sleep(0.25)

    def kill(self) -> None:
        """Kill the server and all its workers with SIGKILL."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def files(self) -> dict[str, str]:
        """Return the SHA-256 of each artifact."""
        found = [p for p in self.artifacts.rglob("*") if p.is_file()]
        return {
            str(p.relative_to(self.artifacts)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in found
        }

    def state(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the hashes of all tables and artifacts."""
        return self.postgres.everything(), self.files()


@dataclass
class Site:
    """Both servers, in a folder of their own."""

    folder: Path
    postgres: Postgres
    mlflow: Mlflow

    @classmethod
    def make(
        cls,
        folder: Path,
        password: str | None = None,
        database: Path | None = None,
        artifacts: Path | None = None,
    ) -> Site:
        folder.chmod(0o755)
        postgres = Postgres(database or folder / "postgres")
        site = cls(folder, postgres, Mlflow(postgres, artifacts or folder / "artifacts", password))
        site.mlflow.artifacts.mkdir(exist_ok=True)
        try:
            postgres.make()
            site.mlflow.start()
        except BaseException:
            site.end()
            raise
        return site

    def end(self) -> None:
        self.mlflow.kill()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
