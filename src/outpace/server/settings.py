"""The server's settings, resolved once by the command line."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from outpace.errors import UsageError
from outpace.server.keep_alive import DEFAULT_KEEP_ALIVE
from outpace.server.keys import KeyFile
from outpace.server.limits import KeyLimits
from outpace.server.prefix_rules import KNOWN_RULES, PrefixRule

SAMPLING_DEFAULTS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""Sampling parameters that a server may have a default of its own for."""
DEFAULT_MAX_BODY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the server listens and what it lets in."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    api_key: str | None = field(default=None, repr=False)  # None: no authentication
    api_keys: KeyFile | None = field(default=None, repr=False)  # further keys, of which hashes are known
    allow_open: bool = False  # whether anyone may use a server that other machines can reach
    cors_origins: tuple[str, ...] = ()  # sites whose pages may use the server, e.g. https://chat.example
    tls_cert: Path | None = None  # PEM, the chain; None: plain HTTP
    tls_key: Path | None = None  # PEM; None: in the certificate's file
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES  # a longer request body is refused with 413
    max_choices: int = 512  # prompts times n in one request
    head_timeout: float = 20.0  # seconds that a client may take to send a request's head
    read_timeout: float = 30.0  # seconds that a client may take to send a request's body
    request_timeout: float = 3600.0  # seconds that an answer may take in all; 0: any
    # Sampling parameters of requests that do not say them, by name; the others are as in `SamplingParams`.
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])
    constrain_tools: bool = False  # whether calls are held to their tools' schemas where nobody asks for it
    # Of each key that has none of its own; without keys, of all clients together.
    limits: KeyLimits = field(default_factory=KeyLimits)
    shutdown_grace: float = 3.0  # seconds that running requests get to finish at shutdown
    stream_interval: float = 0.016  # seconds between a stream's events; what comes meanwhile is one event
    heartbeat: float = 5.0  # seconds of silence after which a stream gives a sign of life
    prefix_rules: tuple[PrefixRule, ...] = KNOWN_RULES  # what is kept out of the beginning of prompts
    memory_bytes: int | None = None  # that all loaded models may take together; None: any
    keep_alive: float = DEFAULT_KEEP_ALIVE  # seconds that an idle model stays, the first one aside; inf: ever
    aliases: Mapping[str, str | None] = field(
        default_factory=dict[str, str | None]
    )  # further names of models

    def __post_init__(self) -> None:
        """Raises `UsageError` where settings can't be, or are unsafe together."""
        for spec in fields(self):
            if getattr(self, spec.name) != getattr(self, spec.name):  # NaN, which passes every limit
                raise UsageError(f"--{spec.name.replace('_', '-')}: this is no number")
        for origin in self.cors_origins:
            _check_origin(origin)
        _check_tls(self.tls_cert, self.tls_key)
        if not (self.is_loopback or self.has_keys or self.allow_open):
            raise UsageError(
                f"--host {self.host}: anyone who can reach it could use this server; set OUTPACE_API_KEY, or "
                "give --api-keys (outpace keys add NAME makes one), or let everyone in with --allow-open"
            )

    @property
    def has_keys(self) -> bool:
        """Whether clients are asked for a key."""
        return bool(self.api_key) or self.api_keys is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address without its port, means this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_origin(origin: str) -> None:
    try:
        parts = urlsplit(origin)
        written = f"{parts.scheme}://{parts.netloc}"
        sound = bool(parts.scheme and parts.hostname) and origin == written.lower() and "@" not in origin
        sound = sound and "*" not in origin and parts.port != {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(
            f"--cors-origin {origin}: write one origin as browsers do, in lower case, without a path and "
            "without the usual port: https://chat.example or http://localhost:3000"
        )


def _check_tls(cert: Path | None, key: Path | None) -> None:
    """Load them once, before anything slow happens."""
    if cert is None:
        if key is not None:
            raise UsageError("--tls-key without --tls-cert: give the certificate too")
        return
    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise UsageError(f"{option} {path}: can't be read: {error.strerror or error}") from None
    try:
        # A password of our own: without one OpenSSL would ask on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        where = f"{cert} and {key}" if key else f"{cert}"
        raise UsageError(
            f"{where}: no certificate with its key ({getattr(error, 'reason', None) or error}). Both must be "
            "PEM, fit each other, and have no password (openssl pkey -in KEY -out NEW removes it); where the "
            "key is a file of its own, give it as --tls-key"
        ) from None
