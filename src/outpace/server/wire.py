"""The rules that both dialects' schemas share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, FailFast


class FirstError(FailFast):
    """Stop at a list's first error: a prompt of 100,000 ids is no list of strings, which one id shows."""

    def __hash__(self) -> int:
        """Pydantic's own has none, and a union's members need one."""
        return hash(self.fail_fast)


class Wire(BaseModel):
    """The common rules: strict types, unknown fields let through, finite numbers."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    def said(self, *names: str) -> dict[str, Any]:
        """Those of the fields that the request gives, by name; null is as good as nothing."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}
