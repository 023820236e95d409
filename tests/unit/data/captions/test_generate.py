"""Generation of descriptions, without a server."""

from __future__ import annotations

import pytest

from dfer_dist.utils.errors import UserError


def test_open_folder_refuses_a_server() -> None:
    from dfer_dist.data.captions.generate import open_folder

    with pytest.raises(UserError, match="local folder"):
        open_folder("https://example.org/dfew")
