"""The coding agents that `outpace launch` knows: a table of how each is told where the server is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CLIENTS", "Client", "Setup", "Target"]

_LOCAL_PRICES = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Keeps litellm from asking the network for prices at its import: seconds lost where there is none."""

_NO_KEY = "none"
"""Clients insist on some key, where the server asks for none."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server and the model that a client is to use."""

    url: str  # without a path
    model: str
    api_key: str  # "": none
    max_context: int  # tokens

    @property
    def key(self) -> str:
        """A key to show, in any case."""
        return self.api_key or _NO_KEY


@dataclass(frozen=True, slots=True)
class Setup:
    """What a client is started with."""

    environment: Mapping[str, str]
    arguments: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Client:
    """A coding agent: its program, how to install it, and what it is started with."""

    name: str
    program: str
    install: str
    about: str
    setup: Callable[[Target], Setup]


def _claude(target: Target) -> Setup:
    models = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    return Setup(
        {
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_AUTH_TOKEN": target.key,
            **dict.fromkeys(models, target.model),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # it would change the prompt's beginning at every turn
        }
    )


def _codex(target: Target) -> Setup:
    provider = {
        "name": "Outpace",
        "base_url": f"{target.url}/v1",
        "env_key": "OUTPACE_CLIENT_KEY",
        "wire_api": "responses",
    }
    settings = {
        "model": target.model,
        "model_provider": "outpace",
        "model_context_window": target.max_context,
        **{f"model_providers.outpace.{name}": value for name, value in provider.items()},
    }
    arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={json.dumps(value)}")]
    return Setup({"OUTPACE_CLIENT_KEY": target.key}, arguments)


def _qwen(target: Target) -> Setup:
    environment = {
        "OPENAI_BASE_URL": f"{target.url}/v1",
        "OPENAI_API_KEY": target.key,
        "OPENAI_MODEL": target.model,
    }
    return Setup(environment, ("--auth-type", "openai"))


def _opencode(target: Target) -> Setup:
    # It summarizes a session once context - output tokens are full: the whole context would mean at once.
    limit = {"context": target.max_context, "output": min(8192, target.max_context // 4)}
    model = {"name": target.model, "limit": limit}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Outpace",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": target.key},
        "models": {target.model: model},
    }
    config = {"model": f"outpace/{target.model}", "provider": {"outpace": provider}, "autoupdate": False}
    return Setup({"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


def _aider(target: Target) -> Setup:
    environment = {
        "OPENAI_API_BASE": f"{target.url}/v1",
        "OPENAI_API_KEY": target.key,
        "AIDER_CHECK_UPDATE": "false",
        **_LOCAL_PRICES,
    }
    return Setup(environment, ("--model", f"openai/{target.model}", "--no-show-model-warnings"))


def _mini(target: Target) -> Setup:
    environment = {
        "OPENAI_API_BASE": f"{target.url}/v1",
        "OPENAI_API_KEY": target.key,
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_CONFIGURED": "true",
        **_LOCAL_PRICES,
    }
    return Setup(environment, ("--model", f"openai/{target.model}"))


CLIENTS = {
    client.name: client
    for client in (
        Client("claude", "claude", "npm install -g @anthropic-ai/claude-code", "Claude Code", _claude),
        Client("codex", "codex", "npm install -g @openai/codex", "Codex CLI", _codex),
        Client("qwen", "qwen", "npm install -g @qwen-code/qwen-code", "Qwen Code", _qwen),
        Client("opencode", "opencode", "npm install -g opencode-ai", "OpenCode", _opencode),
        Client("aider", "aider", "pip install aider-chat", "aider", _aider),
        Client("mini", "mini", "pip install mini-swe-agent", "mini-swe-agent", _mini),
    )
}
