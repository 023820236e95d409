"""A tracking server whose certificate is that of a private CA."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest import mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dfer_dist.tracking import server
from dfer_dist.tracking.server import client, describe_failure, probe
from tests.helpers.quiet_server import QuietServer

VARIABLES = (
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
)


class Handler(BaseHTTPRequestHandler):
    """Answers as an MLflow server without experiments."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a self-signed certificate of 127.0.0.1, and its key in ``key.pem``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    file = folder / "certificate.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PROBE_SECONDS", 60)


@pytest.fixture(scope="module")
def uri(certificate: Path) -> Iterator[str]:
    web = QuietServer(Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    web.socket = context.wrap_socket(web.socket, server_side=True)
    yield f"https://127.0.0.1:{web.server_port}"
    web.shutdown()


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name != "CURL_CA_BUNDLE"])
def test_variable_makes_the_certificate_trusted(
    certificate: Path, uri: str, variable: str, recwarn: pytest.WarningsRecorder
) -> None:
    value = "true" if "INSECURE" in variable else str(certificate)
    with mock.patch.dict(os.environ):
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ[variable] = value
        probe(client(uri))
    assert not [w for w in recwarn if "Unverified" in str(w.message)]


def test_untrusted_certificate_is_not_a_server_that_does_not_answer(uri: str) -> None:
    with mock.patch.dict(os.environ):
        for name in VARIABLES:
            os.environ.pop(name, None)
        with pytest.raises(Exception, match="certificate") as e:
            probe(client(uri))
    said = describe_failure(uri, e.value)
    assert "does not answer" not in said and "MLFLOW_TRACKING_SERVER_CERT_PATH" in said
