"""The page about the command line is what the commands say."""

from __future__ import annotations

from launch.cli import COMMANDS
from launch.reference import PAGE, build_page


def test_page_is_up_to_date() -> None:
    """Write it again with ``python -m launch.reference``."""
    assert PAGE.read_text(encoding="utf-8") == build_page()


def test_page_has_each_command_and_option() -> None:
    page = build_page()
    for name in (name for panel in COMMANDS.values() for name in panel):
        assert f"\n### dfer {name}\n" in page
    assert "\n#### `dfer bench loader`\n" in page
    assert (
        "* `--allow-drift KEY`: Resume despite a changed KEY: a setting, code or versions (repeatable)."
        in page
    )
