"""A sweep: runs of several settings or seeds, and the folder ``NAME.sweep`` next to them."""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, ClassVar

from dfer_dist.runs.layout import SEARCH_FILE, SWEEP_FILE, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.locks import file_lock
from dfer_dist.utils.records import Record


@dataclass(frozen=True)
class SweepMember:
    """A run of a sweep.

    ``run`` is the name of its folder, ``setting`` the values that the sweep gives it, such as
    ``train.epochs=3``, and ``seed`` that of ``--seeds``, None without it. ``pruned`` marks a trial
    of a search that was stopped since its scores were low.
    """

    run: str
    setting: list[str] = field(default_factory=list)
    seed: int | None = None
    pruned: bool = False


@dataclass(frozen=True)
class SweepInfo(Record):
    """``sweep.json``: the runs of a sweep, in the order in which they were asked for.

    ``key`` is the sweep's own identifier at MLflow, and ``run_id`` its run there; it is None until
    the server has answered.
    """

    remedy: ClassVar[str] = "give its dfer crossval command again"

    key: str
    members: list[SweepMember]
    run_id: str | None = None


@dataclass(frozen=True)
class SweepDir:
    """Paths of a sweep; its runs are next to it."""

    root: Path

    @classmethod
    def of(cls, runs: Path, name: str) -> SweepDir:
        """Return the sweep ``name`` of the runs in a folder."""
        return cls((runs / f"{name}.sweep").resolve())

    @property
    def file(self) -> Path:
        """The file of :class:`SweepInfo`."""
        return self.root / SWEEP_FILE

    @property
    def search(self) -> Path:
        """The file of what is searched, of the trials of ``dfer tune``."""
        return self.root / SEARCH_FILE

    @property
    def name(self) -> str:
        """The name that its runs begin with."""
        return self.root.name.removesuffix(".sweep")

    def info(self) -> SweepInfo:
        """Return the content of ``sweep.json``.

        Raises
        ------
        UserError
            If this folder is not a sweep, or the file is damaged.
        """
        return SweepInfo.read(self.file)

    def runs(self) -> list[RunDir]:
        """Return the runs that exist."""
        runs = [RunDir(self.root.with_name(member.run)) for member in self.info().members]
        return [run for run in runs if run.run.is_file()]

    def member(self, run: RunDir) -> SweepMember | None:
        """Return what is recorded of a run; None if it is not in this sweep yet."""
        if not self.file.is_file():
            return None
        return next((m for m in self.info().members if m.run == run.root.name), None)

    def add(self, run: RunDir, member: SweepMember) -> None:
        """Record that a run, which exists, belongs to this sweep; an earlier sweep keeps it."""
        with self.lock():
            info = SweepInfo(uuid.uuid4().hex, [])
            if self.file.is_file():
                info = self.info()
            members = [m for m in info.members if m.run != member.run]
            if member not in info.members:
                replace(info, members=[*members, member]).write(self.file)
        if not run.info().sweep:
            run.update_info(sweep=self.root.name)

    def update(self, **changes: Any) -> None:
        """Replace fields in ``sweep.json``, one process at a time."""
        with self.lock():
            replace(self.info(), **changes).write(self.file)

    def lock(self) -> AbstractContextManager[IO[str]]:
        """Return a lock on the sweep's file, to use in a ``with`` block."""
        self.root.mkdir(parents=True, exist_ok=True)
        return file_lock(self.root / ".sweep.lock")


def sweep_of(run: RunDir) -> SweepDir | None:
    """Return the sweep that a run belongs to; None for a run of its own."""
    name = run.info().sweep
    if not name:
        return None
    sweep = SweepDir(run.root.with_name(name))
    return sweep if sweep.file.is_file() else None


def is_pruned(run: RunDir) -> bool:
    """Return whether a run is a trial that its search has stopped for good."""
    sweep = sweep_of(run)
    member = sweep and sweep.member(run)
    return bool(member and member.pruned)


def expand(folder: Path) -> list[RunDir]:
    """Return the runs of a sweep's folder, or the run that is in the folder.

    Raises
    ------
    UserError
        If none of the sweep's runs is left.
    """
    sweep = SweepDir(folder.resolve())
    if not sweep.file.is_file():
        return [RunDir(sweep.root)]
    runs = sweep.runs()
    if not runs:
        raise UserError(
            f"{folder}: none of its runs exists in {sweep.root.parent}: give its dfer crossval "
            "command again"
        )
    return runs
