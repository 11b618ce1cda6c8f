"""Encryption."""

import http.client
import json
import socket
import ssl
from pathlib import Path

import pytest

from coterie.cli.serve import _tls
from coterie.errors import InputError, UsageError
from coterie.server.tls import Tls
from server.conftest import DATA, chat

FILES = DATA / "tls"
CERTIFICATE, KEY = FILES / "certificate.pem", FILES / "key.pem"


def test_a_server_speaks_with_those_who_know_its_certificate(serve) -> None:
    served = serve(tls=Tls(CERTIFICATE, KEY))
    trust = ssl.create_default_context(cafile=CERTIFICATE)
    connection = http.client.HTTPSConnection("127.0.0.1", served.port, timeout=30, context=trust)
    connection.request("POST", "/v1/chat/completions", json.dumps(chat(max_tokens=2, stream=True)),
                       {"Content-Type": "application/json"})  # fmt: skip
    assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.close()
    stranger = http.client.HTTPSConnection("127.0.0.1", served.port, timeout=30, context=ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.request("GET", "/healthz")
    old = ssl.create_default_context(cafile=CERTIFICATE)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP/1.1 200" not in plain.recv(1000)


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        (FILES / "nothing.pem", KEY, "cannot be read"),
        (CERTIFICATE, FILES, "cannot be read"),
        (CERTIFICATE, FILES / "other.pem", "not that of the certificate"),
        (CERTIFICATE, FILES / "locked.pem", "has a password"),
        (KEY, CERTIFICATE, "no certificate and its key"),
        (FILES / "README.md", KEY, "no certificate and its key"),
    ],
)
def test_what_cannot_be_used_is_told_before_the_model_is_opened(certificate: Path, key: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        _tls(certificate, key)


def test_one_is_nothing_without_the_other() -> None:
    assert _tls(None, None) is None
    for given in ((CERTIFICATE, None), (None, KEY)):
        with pytest.raises(UsageError, match="together"):
            _tls(*given)
