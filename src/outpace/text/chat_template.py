"""Chat templates: from messages and tools to the text that a model was trained on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import jinja2

from outpace.errors import InvalidParameterError, ModelFormatError
from outpace.text.template_limits import TemplateLimitError
from outpace.text.template_sandbox import ChatEnvironment

MAX_SOURCE = 1 << 20
"""Characters of a template; real ones have some thousands."""
MAX_DEPTH = 64
"""Levels of lists and objects within messages, tools and extra variables."""

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One model's template, compiled at its first use. Safe to share between threads."""

    def __init__(
        self,
        source: str,
        bos_token: str,
        eos_token: str,
        *,
        tool_source: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        name: str = "chat template",
    ) -> None:
        """`tool_source` is the template for requests with tools, for the models that have two.

        `special_tokens` are further names that the template may use, such as `unk_token`. `name` says in
        errors where the template comes from.
        """
        self.source = source
        self.tool_source = tool_source
        self._variables: dict[str, object] = {
            **(special_tokens or {}),
            "bos_token": bos_token,
            "eos_token": eos_token,
        }
        self._name = name

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **extra: object,
    ) -> str:
        """The conversation as text, ready for the answer to follow with `add_generation_prompt`.

        Messages are objects of the OpenAI API's form, values JSON values; keys whose value is None count as
        absent. `extra` are further variables of the template (`enable_thinking`, `documents`, ...).
        Raises `InvalidParameterError` where the template refuses these messages, `ModelFormatError` where
        the template itself is broken or asks for absurd time or memory.
        """
        if not messages:
            raise InvalidParameterError("messages is empty; send at least one message", "messages")
        counter = _Counter()
        chat = [_with_reasoning(counter.plain_message(message)) for message in messages]
        variables = {
            **self._variables,
            "documents": None,
            **{name: counter.plain(value, name) for name, value in extra.items()},
            "messages": chat,
            "tools": None if tools is None else counter.plain(list(tools), "tools"),
            "add_generation_prompt": add_generation_prompt,
        }
        use_tool_source = tools is not None and self.tool_source is not None
        return self._render(
            self._tool_template if use_tool_source else self._template, variables, counter.size
        )

    def _render(self, template: jinja2.Template, variables: Mapping[str, object], input_size: int) -> str:
        try:
            with self._environment.budget(input_size):
                return template.render(variables)
        except TemplateLimitError as error:
            raise ModelFormatError(self._name, "rendering", str(error)) from None
        except jinja2.exceptions.SecurityError as error:
            raise ModelFormatError(
                self._name, "rendering", f"it does what a template may not: {error}"
            ) from None
        except MemoryError:
            raise ModelFormatError(self._name, "rendering", "it ran out of memory") from None
        # What is left is the template's own refusal, or a message that is not of the form that it reads.
        except Exception as error:
            raise InvalidParameterError(
                f"the model's chat template refuses these messages: {error}", "messages"
            ) from error

    @functools.cached_property
    def _environment(self) -> ChatEnvironment:
        return ChatEnvironment()

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        return self._compile(self.source)

    @functools.cached_property
    def _tool_template(self) -> jinja2.Template:
        return self._compile(self.tool_source or self.source)

    def _compile(self, source: str) -> jinja2.Template:
        if len(source) > MAX_SOURCE:
            raise ModelFormatError(
                self._name, "length", f"has {len(source)} characters; the limit is {MAX_SOURCE}"
            )
        try:
            return self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFormatError(self._name, f"line {error.lineno}", error.message or "syntax") from None
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise ModelFormatError(self._name, "syntax", f"{type(error).__name__}: {error}") from None


def plain_json(value: object, name: str) -> object:
    """A copy of a JSON value as templates get it.

    Raises `InvalidParameterError`, with `name`, for any other, and for one that is nested too deeply.
    """
    return _Counter().plain(value, name)


def _with_reasoning(message: dict[str, object]) -> dict[str, object]:
    """Templates read a message's reasoning under several names; give it all that are in use."""
    for name in _REASONING_FIELDS:
        if message.get(name) is not None:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


class _Counter:
    """Copies JSON values so that a template sees nothing else, and counts their characters."""

    def __init__(self) -> None:
        self.size = 0

    def plain_message(self, message: object) -> dict[str, object]:
        """A message without its absent keys."""
        copy = self.plain(message, "messages")
        if not isinstance(copy, dict):
            raise InvalidParameterError(
                "each of messages must be an object with role and content", "messages"
            )
        return {key: value for key, value in cast(dict[str, object], copy).items() if value is not None}

    def plain(self, value: object, name: str, depth: int = 0) -> object:
        """A copy of a JSON value; raises `InvalidParameterError`, with `name`, for any other."""
        if depth > MAX_DEPTH:
            raise InvalidParameterError(f"{name} is nested deeper than {MAX_DEPTH} levels", name)
        self.size += 1
        if isinstance(value, str):
            self.size += len(value)
            return str.__str__(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            items = cast(Mapping[object, object], value).items()
            return {
                cast(str, self.plain(key, name, depth + 1)): self.plain(item, name, depth + 1)
                for key, item in items
            }
        if isinstance(value, list | tuple):
            return [self.plain(item, name, depth + 1) for item in cast(Iterable[object], value)]
        raise InvalidParameterError(f"{name} holds a {type(value).__name__}, which is no JSON value", name)
