"""How quick ``dfer --help`` is, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import DFER

PLAIN_APP = """
import typer
app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
)
app.command("a")(lambda: None)
app.command("b")(lambda: None)
app()
"""


def test_help_is_as_quick_as_a_plain_app(tmp_path: Path) -> None:
    """At most twice the processor time that Typer takes for two commands, in one of seven turns.

    A slow moment of the machine slows both.
    """
    plain = tmp_path / "plain.py"
    plain.write_text(PLAIN_APP)
    ratios = (
        processor_seconds([DFER, "--help"])
        / processor_seconds([sys.executable, str(plain), "--help"])
        for _ in range(7)
    )
    assert any(ratio < 2 for ratio in ratios)


def processor_seconds(command: list[str]) -> float:
    """Return the processor time of a command."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("arguments", "unread"),
    [
        (["--help"], {"torch", "omegaconf", "launch.commands.train", "launch.slurm.status"}),
        (["crossval", "demo", "train.epoch=3"], {"torch", "launch.commands.bench"}),
    ],
    ids=["help", "refused setting"],
)
def test_command_does_not_import(arguments: list[str], unread: set[str], tmp_path: Path) -> None:
    code = (
        f"import sys\nsys.argv = {['dfer', *arguments]!r}\nfrom launch.cli import main\n"
        f"try:\n    main()\nfinally:\n    print({unread!r} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_shell_completion_lists_commands(tmp_path: Path) -> None:
    env = {"_DFER_COMPLETE": "complete_bash", "COMP_WORDS": "dfer cro", "COMP_CWORD": "1"}
    done = subprocess.run(
        [DFER], env=os.environ | env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["crossval", "crosseval"]


def test_shell_completion_lists_options_of_a_command(tmp_path: Path) -> None:
    env = {
        "_DFER_COMPLETE": "complete_bash",
        "COMP_WORDS": "dfer crossval --max",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [DFER], env=os.environ | env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert {"--max-minutes", "--max-parallel"} <= set(done.stdout.split())
