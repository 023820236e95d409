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


def test_untrusted_certificate_is_named() -> None:
    cause = exceptions.SSLError("certificate verify failed: self-signed")
    said = failure(cause, "API request failed")
    assert "does not answer" not in said
    assert "self-signed" in said and "MLFLOW_TRACKING_SERVER_CERT_PATH" in said
