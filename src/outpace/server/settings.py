"""The server's settings, resolved once by the command line."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_MAX_BODY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the server listens and what it lets in."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    api_key: str | None = field(default=None, repr=False)  # None: no authentication
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES  # a longer request body is refused with 413
    max_choices: int = 512  # prompts times n in one request
    read_timeout: float = 30.0  # seconds that a client may take to send a request's body
    shutdown_grace: float = 3.0  # seconds that running requests get to finish at shutdown
    heartbeat: float = 5.0  # seconds of silence after which a stream of Anthropic's dialect sends a ping
    aliases: Mapping[str, str | None] = field(
        default_factory=dict[str, str | None]
    )  # further names of models

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
