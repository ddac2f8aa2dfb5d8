"""The tools of a request that its client runs: under which names the model sees them, and how.

A namespace holds tools whose names are unique in it alone, and models know no namespaces. So each of these
tools is shown under one name made of both, and a call of it goes to the client under the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from outpace.server.conversation import MAX_TOOL_NAME, ToolUse, check_allowed, check_tool_names
from outpace.server.errors import APIError, given
from outpace.server.openai.responses.schema import ClientTool, NamedTool, ResponseRequest, Tool, ToolChoice
from outpace.text.tool_calls.grammar import TextArgument
from outpace.types import Grammar

CUSTOM_INPUT = "input"
"""The one argument of a custom tool, as the model is shown it."""
_OF_CLIENTS = {"function", "custom"}


@dataclass(frozen=True, slots=True)
class ShownTool:
    """A tool under the name that the model sees."""

    shown_name: str
    name: str
    namespace: str  # "" for a tool of none
    tool: ClientTool
    place: str  # in the request
    description: str | None

    @property
    def is_custom(self) -> bool:
        """Whether it takes text instead of arguments."""
        return self.tool.type == "custom"


class ShownTools:
    """All of them, in the request's order.

    Tools that the API itself would run (web search and the like) are left out: the model does not see them.
    Raises `APIError` for a tool without a name.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.all = list(_shown_tools(tools))
        self._by_shown_name = {tool.shown_name: tool for tool in self.all}
        self._shown_names = {(tool.namespace, tool.name): tool.shown_name for tool in self.all}

    def get(self, called: str) -> ShownTool | None:
        """The tool that the model calls by that name; None where there is none.

        Small models leave the namespace out, so that is the tool too which alone has that name in its own.
        """
        shown = self._by_shown_name.get(called)
        same = [tool for tool in self.all if tool.name == called] if shown is None else [shown]
        return same[0] if len(same) == 1 else None

    def shown_name(self, namespace: str | None, name: str) -> str:
        """The name that the model sees, also of a tool that the request no longer has."""
        key = (namespace or "", name)
        return self._shown_names.get(key) or _joined(*key)

    def named(self, namespace: str | None, name: str) -> ShownTool | None:
        """The tool that a choice names; where it names no namespace, one of none comes first."""
        found = [
            tool
            for tool in self.all
            if name in {tool.name, tool.shown_name} and namespace in {None, tool.namespace}
        ]
        return min(found, key=lambda tool: bool(tool.namespace), default=None)

    def check_names(self) -> None:
        """Raise `APIError` for names that a model cannot write, or that stand for two tools."""
        for namespace in dict.fromkeys(tool.namespace for tool in self.all):
            tools = [tool for tool in self.all if tool.namespace == namespace]
            check_tool_names([tool.name for tool in tools], [f"{tool.place}.name" for tool in tools])
        namespaces = {tool.namespace: tool.place.partition(".")[0] for tool in self.all if tool.namespace}
        check_tool_names(namespaces, [f"{place}.name" for place in namespaces.values()])


def tool_use(request: ResponseRequest, tools: ShownTools) -> ToolUse | None:
    """The use of the tools that the model may call; None where it may call none. Raises `APIError`."""
    if request.tool_choice == "none":
        return None
    tools.check_names()
    required, named, allowed = _choice(request.tool_choice, tools)
    if required and not tools.all:
        raise _not_there()
    if not tools.all:
        return None
    return ToolUse(
        [_for_template(tool) for tool in tools.all],
        required=required,
        named=named,
        allowed=allowed,
        parallel=request.parallel_tool_calls is not False,
        strict=frozenset(tool.shown_name for tool in tools.all if tool.tool.strict),
        texts=dict(_texts(tools.all)),
        where="{}.parameters",
        where_text="{}.format.definition",
        places=[tool.place for tool in tools.all],
    )


def _choice(choice: str | ToolChoice | None, tools: ShownTools) -> tuple[bool, str, frozenset[str]]:
    """Whether a tool must be called, the one that the choice names, and those that it allows.

    By their shown names: "" where it names none; it allows all where it says nothing of that.
    """
    if choice is None or isinstance(choice, str):
        return choice == "required", "", frozenset()
    if choice.type != "allowed_tools":
        return True, _chosen(choice, tools), frozenset()
    # Tools that the API itself would run are not shown to the model, so they need not be allowed.
    allowed = frozenset(_chosen(each, tools) for each in choice.tools or () if each.type in _OF_CLIENTS)
    check_allowed(allowed)
    return choice.mode == "required", "", allowed


def _chosen(choice: NamedTool, tools: ShownTools) -> str:
    tool = tools.named(choice.namespace, choice.name or "")
    if tool is None:
        raise _not_there()
    return tool.shown_name


def _not_there() -> APIError:
    message = "'tool_choice' asks for a tool that 'tools' does not have"
    return APIError(400, message, param="tool_choice", code="invalid_value")


def _shown_tools(tools: Sequence[Tool]) -> Iterator[ShownTool]:
    taken = {tool.name for tool in tools if tool.type in _OF_CLIENTS}
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if tool.type in _OF_CLIENTS:
            name = given(tool.name, place, "name")
            yield ShownTool(name, name, "", tool, place, tool.description)
        elif tool.type == "namespace":
            namespace = given(tool.name, place, "name")
            for number, each in enumerate(tool.tools or ()):
                inner = f"{place}.tools[{number}]"
                if each.type not in _OF_CLIENTS:
                    continue
                name = given(each.name, inner, "name")
                shown = _joined(namespace, name)
                if shown in taken:
                    shown = _hashed(namespace, name)
                taken.add(shown)
                description = tool.description if each.description is None else each.description
                yield ShownTool(shown, name, namespace, each, inner, description)


def _joined(namespace: str, name: str) -> str:
    """The name of a tool of a namespace among all tools."""
    if not namespace:
        return name
    joined = f"{namespace}{'' if namespace.endswith('__') else '__'}{name}"
    return joined if len(joined) <= MAX_TOOL_NAME else _hashed(namespace, name)


def _hashed(namespace: str, name: str) -> str:
    """Such a name where the plain one is too long, or another tool's."""
    digest = hashlib.sha256(f"{namespace}\n{name}".encode("utf-8", "replace")).hexdigest()[:12]
    return f"{name[: MAX_TOOL_NAME - 13]}_{digest}"


def _texts(tools: Sequence[ShownTool]) -> Iterator[tuple[str, TextArgument]]:
    """The grammars of custom tools' texts, by the tools' shown names. Raises `APIError`."""
    for tool in tools:
        said = tool.tool.format
        if not tool.is_custom or said is None or said.type != "grammar":
            continue
        where = f"{tool.place}.format"
        if said.syntax not in {"lark", "regex"}:
            message = f"'{where}.syntax' must be 'lark' or 'regex'"
            raise APIError(400, message, param=f"{where}.syntax", code="invalid_value")
        source = given(said.definition, where, "definition")
        kind: Literal["lark", "regex"] = "lark" if said.syntax == "lark" else "regex"
        yield tool.shown_name, TextArgument(CUSTOM_INPUT, Grammar(kind, source))


def _for_template(tool: ShownTool) -> dict[str, Any]:
    """A tool as chat templates show it."""
    shown: dict[str, Any] = {"name": tool.shown_name}
    if tool.description is not None:
        shown["description"] = tool.description
    shown["parameters"] = tool.tool.parameters or {"type": "object", "properties": {}}
    if tool.is_custom:
        definition = tool.tool.format.definition if tool.tool.format else None
        text = (
            {"type": "string", "description": f"Text of this grammar:\n{definition}"}
            if definition
            else {"type": "string"}
        )
        shown["parameters"] = {
            "type": "object",
            "properties": {CUSTOM_INPUT: text},
            "required": [CUSTOM_INPUT],
        }
    return {"type": "function", "function": shown}
