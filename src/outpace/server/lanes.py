"""The lane of a request, by what the wires call it."""

from __future__ import annotations

from outpace.types import Lane

LANES: dict[str, Lane] = {"auto": "default", "default": "default", "priority": "priority", "flex": "flex"}
"""OpenAI's service tiers. As there, "auto" is what the project says, and here that is "default"."""


def lane_of(service_tier: str | None) -> Lane:
    """The lane of a request with OpenAI's `service_tier`."""
    return LANES[service_tier or "auto"]
