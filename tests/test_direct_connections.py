"""Claims about how calls past LiteLLM connect: TLS, proxies, redirects, whoever cannot be reached; as LiteLLM does."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from raw_replies import REPLIES, http
from test_direct import Both, outcome

from agents.models import Completion

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]
FINE = REPLIES["plain"]


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for 127.0.0.1 that only itself vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "model")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "model.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_a_certificate_is_checked_against_ssl_cert_file_both_ways(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    secure = Both(context)
    try:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        strange = [outcome(secure.answered(FINE, direct)) for direct in (True, False)]
        assert strange[0] == strange[1]
        assert strange[0][0] == "ModelUnavailable"
        assert secure.server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        known = [secure.answered(FINE, direct) for direct in (True, False)]
        assert outcome(known[0]) == outcome(known[1])
        assert isinstance(known[0], Completion)
    finally:
        secure.close()


def test_proxies_of_the_environment_are_used_and_passed_by_both_ways(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTP_PROXY", both.url)
    past, through = (both.asked(direct, api_base="http://model.invalid:8000/v1") for direct in (True, False))
    assert past == through
    assert past[0][0] == "POST http://model.invalid:8000/v1/chat/completions HTTP/1.1"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert both.asked(True)[0][0] == "POST /v1/chat/completions HTTP/1.1"


def test_whoever_cannot_be_reached_is_unavailable_both_ways(both: Both) -> None:
    tls = both.url.replace("http:", "https:")
    named = both.url.replace("//", "//me:secret@")
    for api_base in (
        "http://127.0.0.1:9/v1", "http://nobody.invalid/v1", f"{tls}/v1", "ftp://x", "nonsense", "http://",
        "http://127.0.0.1:99999/v1", "http://a b/v1", f"{named}/v1",
    ):  # fmt: skip
        past, through = (both.answered(FINE, direct, api_base=api_base) for direct in (True, False))
        assert outcome(past) == outcome(through), api_base
        assert outcome(past)[:3] == ("ModelUnavailable", "model_unavailable", True)
        assert "secret" not in str(past)


def test_a_redirect_is_followed_both_ways(both: Both) -> None:
    for direct in (True, False):
        both.server.queue = [http(b"", "307 Moved", ["Location: /elsewhere"])]
        assert both.answered(FINE, direct).text == "fine"  # type: ignore[union-attr]
        assert [head.split()[1] for head, _ in both.server.requests] == ["/v1/chat/completions", "/elsewhere"]
        assert both.server.requests[0][1] == both.server.requests[1][1]
