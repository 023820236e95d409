"""Submitit in folders whose path holds one of its tags, such as ``/data/100%job``.

Submitit replaces ``%j``, ``%t``, ``%A`` and ``%a`` in whole paths: it would write into another
folder, or raise. :func:`keep_folders` replaces ``JobPaths._format_id`` and
``JobPaths.get_first_id_independent_folder``, so that only names of files change. Read in Submitit
1.5.3 and 1.5.4: ``setup.cfg`` bounds the version, and ``tests/unit/launch/slurm/test_batch.py``
fails when one of these functions changes.

A job of such a folder runs this module in place of ``submitit.core._submit``.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from submitit.core.submission import submitit_main
from submitit.core.utils import JobPaths
from submitit.slurm.slurm import SlurmExecutor

_format_id = JobPaths._format_id


class _FolderKeepingExecutor(SlurmExecutor):
    """An executor whose jobs do not replace tags in the path of their folder."""

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m {__name__} {shlex.quote(str(self.folder))}"


def executor_class(folder: Path) -> type[SlurmExecutor]:
    """Return the class of an executor for a folder: Submitit's own, unless its path holds a tag."""
    if not re.search("%[jtAa]", str(folder)):
        return SlurmExecutor
    keep_folders()
    return _FolderKeepingExecutor


def keep_folders() -> None:
    """Let Submitit replace tags in names of files only, in this process."""
    JobPaths._format_id = _format_name  # type: ignore[method-assign,assignment]
    JobPaths.get_first_id_independent_folder = staticmethod(Path)  # type: ignore[method-assign]


def _format_name(paths: JobPaths, path: Path | str) -> Path:
    path = Path(path)
    return path if path == paths._folder else path.with_name(str(_format_id(paths, path.name)))


if __name__ == "__main__":
    keep_folders()
    submitit_main()
