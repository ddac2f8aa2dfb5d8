"""TLS with a real certificate, and pages of other sites that were named."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from serving import running

from outpace.errors import UsageError
from outpace.llm import LLM
from outpace.server.settings import ServerSettings

ORIGIN = "https://chat.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


def openssl(*arguments: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("NOT TESTED: the openssl program is not installed")
    subprocess.run([program, *arguments], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl("req", "-x509", *curve, *name, "-keyout", str(key), "-out", str(cert))
    return cert, key


def test_tls(served_llm: LLM, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with running(served_llm, ServerSettings(port=0, tls_cert=cert, tls_key=key)) as server:
        url = server.url.replace("http:", "https:")
        trusting = ssl.create_default_context(cafile=cert)
        with httpx.Client(base_url=url, verify=trusting, timeout=30) as http:
            body = {"prompt": "a", "max_tokens": 3, "ignore_eos": True, "stream": True}
            with http.stream("POST", "/v1/completions", json=body) as answer:
                assert answer.read().rstrip().endswith(b"data: [DONE]")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
            httpx.get(f"{url}/health", timeout=30)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/health", timeout=30)
        assert httpx.get(f"{url}/health", verify=trusting, timeout=30).status_code == 200


def test_a_key_in_the_certificates_file(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text("".join(path.read_text() for path in certificate))
    assert ServerSettings(tls_cert=both).tls_key is None


def test_tls_errors(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    other, locked = tmp_path / "other.pem", tmp_path / "locked.pem"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(other))
    openssl("pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked))
    with pytest.raises(UsageError, match="give the certificate too"):
        ServerSettings(tls_key=key)
    with pytest.raises(UsageError, match=r"--tls-cert .*none\.pem: can't be read"):
        ServerSettings(tls_cert=tmp_path / "none.pem")
    with pytest.raises(UsageError, match=r"--tls-key .*none\.pem: can't be read"):
        ServerSettings(tls_cert=cert, tls_key=tmp_path / "none.pem")
    for wrong in (None, other, locked, cert):
        with pytest.raises(UsageError, match="PEM, fit each other, and have no password"):
            ServerSettings(tls_cert=cert, tls_key=wrong)


def test_named_origins_may_come_in(served_llm: LLM) -> None:
    settings = ServerSettings(port=0, api_key="sk-secret", cors_origins=(ORIGIN, "http://localhost:3000"))
    with running(served_llm, settings) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        for origin in settings.cors_origins:
            preflight = http.options("/v1/messages", headers={"origin": origin, **PREFLIGHT})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert "authorization" in preflight.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in preflight.headers
            for key, status in (("sk-secret", 200), ("wrong", 401)):  # a page can read its error too
                headers = {"origin": origin, "authorization": f"Bearer {key}"}
                answer = http.get("/v1/models", headers=headers)
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == origin
                assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        for origin in ("https://evil.example", f"{ORIGIN}.evil.example", "http://chat.example"):
            key = {"origin": origin, "authorization": "Bearer sk-secret"}
            for answer in (
                http.options("/v1/messages", headers={"origin": origin, **PREFLIGHT}),
                http.get("/v1/models", headers=key),
            ):
                assert answer.status_code == 403
                assert "access-control-allow-origin" not in answer.headers
        rebound = http.get("/health", headers={"origin": ORIGIN, "host": "chat.example"})
        assert rebound.status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "chat.example",
        f"{ORIGIN}/",
        "https://*.example",
        "https://a@b.c",
        "HTTPS://chat.example",
        "https://chat.example:443",
        "https://[::1",
        "",
    ],
)
def test_origins_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(UsageError, match="--cors-origin"):
        ServerSettings(cors_origins=(origin,))
