"""Real processes, forked from one that has imported the large libraries once.

Importing them took a process 7 s of processor time on busy cores, more than most tests need for
themselves.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers.forked_ranks import fork_ranks
from tests.helpers.paths import DFER

# MLflow would start a thread that sends telemetry, and threads do not survive a fork.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
_SERVER = multiprocessing.get_context("forkserver")
_IMPORTED = [
    "torch",
    "torchvision.transforms.v2",
    "open_clip",
    "mlflow",
    "sklearn.metrics",
    "scipy.stats",
    "matplotlib.figure",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "webdataset",
    "av",
    "omegaconf",
    "typer",
    "rich.table",
    "safetensors.torch",
]
# DeepSpeed looks for GPUs when it is imported, and a process that did cannot fork processes that
# use them.
if not Path("/dev/nvidiactl").exists():
    _IMPORTED.append("deepspeed")
_SERVER.set_forkserver_preload(_IMPORTED)
# Wait for the server at the end, so that the processor time of its children counts as the tests'.
atexit.register(multiprocessing.forkserver._forkserver._stop)

# A test in this process may add folders: MLflow adds the code of a model that it loads.
_PATH = list(sys.path)

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class _Command:
    arguments: list[str]
    environment: dict[str, str]
    cwd: Path
    out: Path
    err: Path
    module_path: list[str]
    forks_ranks: bool
    new_session: bool


class Forked:
    """A running script or ``dfer`` command, as :class:`subprocess.Popen` is one.

    Parameters
    ----------
    arguments : sequence of str
        Path of a Python script, or ``dfer``, and its arguments.
    forks_ranks : bool
        Fork the ranks that the command starts, too. By default they are new processes.
    new_session : bool
        Make the process the first of a session and a process group.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path | None = None,
        forks_ranks: bool = False,
        new_session: bool = False,
    ) -> None:
        self._folder = TemporaryDirectory()
        self._command = _Command(
            arguments=list(arguments),
            environment=dict(environment),
            cwd=cwd or Path.cwd(),
            out=Path(self._folder.name, "out"),
            err=Path(self._folder.name, "err"),
            module_path=_PATH,
            forks_ranks=forks_ranks,
            new_session=new_session,
        )
        self._process = _SERVER.Process(target=_run, args=(self._command,))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self, timeout: float) -> Done:
        """Return the exit status and the output; kill the process after ``timeout`` seconds."""
        command = self._command
        with self._folder:
            self._process.join(timeout)
            status = self._process.exitcode
            if status is None:
                self._process.kill()
                self._process.join()
            out, err = (file.read_text() for file in (command.out, command.err))
        if status is None:
            raise subprocess.TimeoutExpired(command.arguments, timeout, out, err)
        return Done(command.arguments, status, out, err)


def _run(command: _Command) -> None:
    """Be the process: with its environment, current folder, output files and arguments."""
    if command.new_session:
        os.setsid()
    for file, stream in ((command.out, sys.stdout), (command.err, sys.stderr)):
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, stream.fileno())
        os.close(fd)
    os.environ.clear()
    os.environ.update(command.environment)
    os.chdir(command.cwd)
    python_path = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv, sys.path[:] = command.arguments, [*python_path, *command.module_path]
    if sys.argv[0] != DFER:
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    if command.forks_ranks:
        fork_ranks()
    from launch.cli import main

    main()
