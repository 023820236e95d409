"""Addresses and credentials of an endpoint, without a server."""

from __future__ import annotations

import pytest

from dfer_dist.data.captions.endpoint import (
    KEY_VARIABLE,
    Endpoint,
    completions_url,
)
from dfer_dist.utils.errors import UserError


@pytest.mark.parametrize("secret", ["two parts", "line\nbreak", "ключ"])
def test_endpoint_does_not_show_invalid_credential(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, secret)
    with pytest.raises(UserError, match=KEY_VARIABLE) as e:
        Endpoint("http://localhost/v1", "m", {})
    assert secret not in str(e.value)


@pytest.mark.parametrize("url", ["http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"])
def test_completions_url_accepts_base_and_full_url(url: str) -> None:
    assert completions_url(url) == "http://h/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "h/v1",
        "ftp://h",
        "http://",
        "http://me:pw@h/v1",
        "http://h/v1?key=pw",
        "http://h:99999/v1",
        "http://h/#pw",
    ],
)
def test_completions_url_refuses_invalid_url_without_secret(url: str) -> None:
    with pytest.raises(UserError, match="--endpoint") as e:
        completions_url(url)
    assert "pw" not in str(e.value).replace("password", "")
