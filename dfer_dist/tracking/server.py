"""Connect to a tracking server, and say what is wrong with one."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.tracking.uploader import reason
from dfer_dist.utils.files import atomic_path
from dfer_dist.utils.locks import file_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Locks of SQLite do not hold between nodes: jobs of a cluster do not write to such a store.
SQLITE = "sqlite:///"
# The first one that is set counts.
_CERTIFICATES = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROBE_SECONDS = 3.0  # in which a server has to answer when a run starts


def client(uri: str) -> MlflowClient:
    """Return an MLflow client with short time-outs that sends no usage statistics.

    It never retries a request: creating a run with a late answer would create two.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

    _trust_own_certificates()

    # Creating the tables of a sqlite store logs many lines.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    file = Path(uri.removeprefix(SQLITE))
    # MLflow fails if two processes create the tables at a time.
    with lock_if_possible(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            _create_store(file)
        return MlflowClient(store_url(uri))


def store_url(uri: str) -> str:
    """Return the URI of a sqlite store, with its path encoded if SQLAlchemy would change it.

    MLflow leaves an empty folder of the encoded name next to that of the store.
    """
    from sqlalchemy import URL, make_url

    path = uri.removeprefix(SQLITE)
    if make_url(uri).database == path:
        return uri
    return URL.create("sqlite", database=path).render_as_string()


def _trust_own_certificates() -> None:
    """Let requests use ``SSL_CERT_FILE``, and not warn where certificates are not checked."""
    own = os.environ.get("SSL_CERT_FILE")
    if own and not set(_CERTIFICATES) & set(os.environ):
        os.environ["REQUESTS_CA_BUNDLE"] = own
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS"):
        warnings.filterwarnings("ignore", "Unverified HTTPS request")


def _create_store(file: Path) -> None:
    """Create a sqlite store with all tables.

    MLflow cannot complete one that a killed process left with some of them.
    """
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with atomic_path(file) as temporary:
        url = store_url(f"{SQLITE}{temporary}")
        store = SqlAlchemyStore(url, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
        store.engine.dispose()


def probe(api: MlflowClient) -> None:
    """Wait a few seconds for an answer to a small request, including the look-up of the name.

    It is one of MLflow's own requests, with its certificates and credentials.

    Raises
    ------
    Exception
        A TimeoutError, or whatever MLflow raises.
    """
    errors: list[Exception] = [TimeoutError(f"no answer in {_PROBE_SECONDS:.0f} s")]

    def request() -> None:
        try:
            api.search_experiments(max_results=1)
            errors.clear()
        except Exception as e:
            errors.append(e)

    thread = threading.Thread(target=request, name="probe", daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if errors:
        raise errors[-1]


def describe_failure(uri: str, error: Exception) -> str:
    """Return in one line whether a server did not answer, or what it answered."""
    from requests import exceptions

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)

    def is_any(*types: type[BaseException]) -> bool:
        return any(isinstance(cause, types) for cause in causes)

    if is_any(exceptions.ProxyError):
        return (
            f"tracking server {uri} is not reached through the proxy of this environment "
            f"({reason(causes[-1])}): add its host to NO_PROXY"
        )
    if is_any(exceptions.SSLError):
        fault = reason(causes[-1])
        if "verify failed" not in fault:
            return f"no TLS connection to tracking server {uri} ({fault}): is its address http://…?"
        used = next((f" by {name}" for name in _CERTIFICATES if os.environ.get(name)), "")
        return (
            f"the certificate of tracking server {uri} is not trusted{used} ({fault}): "
            f"set {_CERTIFICATES[0]} to the file of its CA"
        )
    if is_any(exceptions.ConnectionError, exceptions.Timeout, TimeoutError):
        return f"tracking server {uri} does not answer ({reason(error)})"
    return f"tracking server {uri}: {reason(error)}"


@contextmanager
def lock_if_possible(file: Path) -> Iterator[None]:
    """Hold a file lock, or continue without one if the file system has none.

    Runs that are created twice are found later; a table created twice is an error of MLflow's.
    """
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(file_lock(file))
        yield
