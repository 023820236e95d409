"""The server that most of these tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tracking.proxy import Proxy
from tests.helpers.tracking.servers import BINARIES, Site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    if not BINARIES:
        pytest.skip("no PostgreSQL here: make system, or apt-get install postgresql")
    site = Site.make(Path(tempfile.mkdtemp(prefix="dfer-site-")))
    yield site
    site.end()


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    proxy = Proxy(site.mlflow.uri)
    yield proxy
    proxy.end()
