"""Files that are sent to the tracking server."""

from __future__ import annotations

from pathlib import Path

from dfer_dist.tracking.sync import log_end


def test_long_log_is_sent_from_a_whole_line_on(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("step 1: ü\n" * 3 + "the end\n")
    assert log_end(log) == log.read_text()
    size = log.stat().st_size
    assert log_end(log, size) == log.read_text()
    # in the middle of an ü
    shown = log_end(log, len("\nthe end\n") + 1)
    assert shown == f"(the first {size - 10} bytes are left out)\nthe end\n"
