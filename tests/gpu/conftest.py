"""The device of these tests: one GPU, or the CPU with ``--device cpu`` to try the tests."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=["cuda", "cpu"], default="cuda", help="where tests/gpu computes"
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail if GPU tests were selected and torch sees no GPU: a skipped test would look passed."""
    asked = (
        any(item.get_closest_marker("gpu") for item in session.items)
        and not session.config.option.collectonly
    )
    if asked and session.config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("no GPU here: torch sees none, so nothing of tests/gpu was run")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    return pytestconfig.option.device
