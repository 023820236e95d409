"""Log lines: which are shown on which rank, and in what form."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Iterator

import pytest

from dfer_dist.utils import log

Capture = pytest.CaptureFixture[str]
OURS = logging.getLogger("dfer_dist.any")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put loggers back that :func:`log.setup_logging` changed."""
    monkeypatch.delenv("DFER_DEBUG", raising=False)
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers
    for name in ("dfer_dist", "launch"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_rank_0_shows_info_with_its_time(capsys: Capture) -> None:
    log.setup_logging(0)
    OURS.info("step 1 of 2")
    OURS.debug("nothing")
    date, _, text = capsys.readouterr().err.strip().split(" ", 2)
    assert date.count("-") == 2
    assert text == "step 1 of 2"


def test_other_ranks_show_warnings_alone(capsys: Capture) -> None:
    log.setup_logging(3)
    OURS.info("step 1 of 2")
    OURS.warning("little space")
    OURS.error("no space")
    assert capsys.readouterr().err == "warning: little space\nerror: no space\n"


def test_two_setups_show_a_line_once(capsys: Capture) -> None:
    log.setup_logging()
    log.setup_logging()
    OURS.warning("once")
    assert capsys.readouterr().err == "warning: once\n"


def test_dependencies_are_shown_with_dfer_debug_alone(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_CHATTER", ("chatty",))
    for debug in (False, True):
        if debug:
            monkeypatch.setenv("DFER_DEBUG", "1")
        log.setup_logging()
        log.demote_dependencies()
        logging.getLogger("chatty.part").warning("built")
        with log.prints_at_debug():
            print("printed")
        shown = capsys.readouterr().err
        assert ("chatty.part: built" in shown) is debug
        assert ("printed" in shown) is debug
    logging.getLogger("chatty").error("broken")
    assert "error: chatty: broken\n" in capsys.readouterr().err


def test_full_disk_under_the_log_raises_nothing(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log.setup_logging()
    with monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "write", refuse)
        OURS.error("lost")
    assert not capsys.readouterr().err
