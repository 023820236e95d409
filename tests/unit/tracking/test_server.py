"""What is said of a tracking server that fails."""

from __future__ import annotations

import pytest
from requests import exceptions

from dfer_dist.tracking.server import describe_failure

URI = "https://tracking.example.org"


class MlflowException(Exception):
    """As MLflow raises them."""


def failure(cause: Exception | None, message: str) -> str:
    """Return what is said of an exception of MLflow with a cause."""
    try:
        try:
            if cause:
                raise cause
        finally:
            raise MlflowException(message)
    except MlflowException as error:
        return describe_failure(URI, error)


@pytest.mark.parametrize(
    "cause", [exceptions.ConnectTimeout("slow"), exceptions.ConnectionError("refused")]
)
def test_silent_server_does_not_answer(cause: Exception) -> None:
    expected = f"tracking server {URI} does not answer (MlflowException failed)"
    assert failure(cause, "failed") == expected


@pytest.mark.parametrize(
    "answer",
    [
        "RESOURCE_DOES_NOT_EXIST: The experiment 1 must be in the 'active' state",
        "API request to endpoint /api/2.0 failed with error code 401 != 200",
    ],
)
def test_answer_is_repeated(answer: str) -> None:
    assert failure(None, answer) == f"tracking server {URI}: MlflowException {answer}"


def test_proxy_that_refuses_is_no_server_that_does_not_answer() -> None:
    said = failure(exceptions.ProxyError("Tunnel connection failed: 403 Forbidden"), "failed")
    assert "does not answer" not in said
    assert "403 Forbidden" in said and said.endswith("add its host to NO_PROXY")


@pytest.mark.parametrize("fault", ["WRONG_VERSION_NUMBER", "TLSV13_ALERT_CERTIFICATE_REQUIRED"])
def test_server_without_tls_is_no_untrusted_certificate(fault: str) -> None:
    said = failure(exceptions.SSLError(f"[SSL: {fault}]"), "failed")
    assert "not trusted" not in said and "does not answer" not in said
    assert fault in said and said.endswith("is its address http://…?")


@pytest.mark.parametrize("variable", [None, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_untrusted_certificate_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    for name in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        # it counts, and not SSL_CERT_FILE
        monkeypatch.setenv(variable, "/etc/ca.pem")
    cause = exceptions.SSLError("certificate verify failed: self-signed")
    said = failure(cause, "API request failed")
    assert "does not answer" not in said
    assert "self-signed" in said and "set MLFLOW_TRACKING_SERVER_CERT_PATH to" in said
    assert f"is not trusted{f' by {variable}' if variable else ''} (" in said
